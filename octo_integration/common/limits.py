"""What the numbers of a config may be: it lists their limits in a table, and refuses others when it is made."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Limit(NamedTuple):
    """Which numbers are good, and how a message says so."""

    holds: Callable[[Any], bool]
    words: str


AT_LEAST_1 = Limit(lambda x: x >= 1, "a number of at least 1")
AT_LEAST_2 = Limit(lambda x: x >= 2, "a number of at least 2")
AT_LEAST_0 = Limit(lambda x: 0 <= x < math.inf, "a finite number of at least 0")
ABOVE_0 = Limit(lambda x: x > 0, "a number above 0")
POSITIVE = Limit(lambda x: 0 < x < math.inf, "a finite number above 0")
BELOW_1 = Limit(lambda x: 0 <= x < 1, "a number of at least 0 and below 1")
SHARE = Limit(lambda x: 0 < x < 1, "a share between 0 and 1")
AXIS = Limit(lambda x: x >= 1 or x == -1, "a number of at least 1, or -1")
SEED = Limit(lambda x: 0 <= x < 2**63, "0 <= seed < 2**63")


def check_limits(config: Any, limits: Mapping[str, Limit]) -> None:
    """Raises ValueError where a number of `config` is beyond its limit.

    Args:
      limits: dotted name of a field -> its limit; a tuple's holds for each of its numbers, and None is always good.
    """
    for name, limit in limits.items():
        value = operator.attrgetter(name)(config)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(number is None or limit.holds(number) for number in numbers):
            raise ValueError(f"{name} is {str(value)[:40]}; give {limit.words}.")
