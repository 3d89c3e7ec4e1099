"""`maps-vla collect`; its options are beside what they configure."""

from octo_integration.cli.following import say_next
from octo_integration.collect import CollectConfig, collect
from octo_integration.data.config import DataConfig
from octo_integration.simulators.protocol import find


def run(config: CollectConfig) -> int:
    """Records demonstrations."""
    print(collect(config))
    from octo_integration.data.standardize import known  # tensorflow

    layout = find(config.simulator).layout
    name = (layout and layout.standardize) or config.simulator
    named = name in known() and name != DataConfig.standardize
    standardize = ["--data.standardize", name] if named else []
    say_next(("finetune", "--out", "runs/new", "--data.path", config.out, *standardize))
    return 0
