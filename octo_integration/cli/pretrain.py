"""`maps-vla pretrain`; its options are beside what they configure."""

from octo_integration.cli.devices import say_devices
from octo_integration.cli.following import say_next
from octo_integration.pretrain.loop import PretrainConfig, pretrain


def run(config: PretrainConfig) -> int:
    """Makes pretrained weights."""
    say_devices()
    weights = pretrain(config)
    print(weights)
    say_next(("finetune", "--out", "runs/new", "--model", config.model, "--weights", str(weights)))
    return 0
