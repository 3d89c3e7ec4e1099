"""`maps-vla collect`; its options are beside what they configure."""

from octo_integration.cli.following import say_next
from octo_integration.collect import CollectConfig, collect
from octo_integration.data.config import DataConfig


def run(config: CollectConfig) -> int:
    """Records demonstrations."""
    print(collect(config))
    from octo_integration.data.standardize import known  # tensorflow

    named = config.simulator in known() and config.simulator != DataConfig.standardize
    standardize = ["--data.standardize", config.simulator] if named else []
    say_next(("finetune", "--out", "runs/new", "--data.path", config.out, *standardize))
    return 0
