"""`maps-vla convert`."""

from octo_integration.cli.following import say_next
from octo_integration.convert.write import ConvertConfig, convert, describe, plan_of


def run(config: ConvertConfig) -> int:
    """Converts, or prints what would be."""
    if config.dry_run:
        print(describe(config, plan_of(config)))
        return 0
    out = convert(config)
    print(out)
    say_next(["inspect-data", str(out)])
    return 0
