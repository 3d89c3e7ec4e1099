"""`maps-vla convert`."""

from octo_integration.cli.following import say_next
from octo_integration.convert.write import ConvertConfig, convert, describe, examine, plan_of


def run(config: ConvertConfig) -> int:
    """Converts, or prints what would be."""
    if config.dry_run:
        plan = plan_of(config)
        examine(config, plan)
        print(describe(config, plan))
        return 0
    out = convert(config)
    print(out)
    say_next(["inspect-data", str(out)])
    return 0
