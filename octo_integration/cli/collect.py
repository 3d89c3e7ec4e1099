"""`maps-vla collect`; its options are beside what they configure."""

from octo_integration.cli.following import say_next
from octo_integration.collect import CollectConfig, collect


def run(config: CollectConfig) -> int:
    """Records demonstrations."""
    print(collect(config))
    say_next(("finetune", "--out", "runs/new", "--data.path", config.out))
    return 0
