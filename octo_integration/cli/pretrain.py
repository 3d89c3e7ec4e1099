"""`maps-vla pretrain`; its options are beside what they configure."""

from octo_integration.cli.devices import say_devices
from octo_integration.cli.following import say_next
from octo_integration.pretrain.align import align
from octo_integration.pretrain.loop import PretrainConfig, pretrain
from octo_integration.state.described import DEFAULT

STAGES = {"whole": pretrain, "align": align}


def run(config: PretrainConfig) -> int:
    """Makes pretrained weights."""
    say_devices()
    weights = STAGES[config.stage](config)
    print(weights)
    model = [] if config.weights is not None else ["--model", config.model or DEFAULT]
    say_next(("finetune", "--out", "runs/new", *model, "--weights", str(weights)))
    return 0
