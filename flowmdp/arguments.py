"""Checks of arguments a user types: the right type and in range, or one line that names them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from flowmdp.errors import ConfigurationError

INTEGER = int | np.integer
NUMBER = INTEGER | float | np.floating
Interval = Literal["(0, inf)", "[0, inf)", "[0, 1)", "[0, 1]", "[0.5, 1)", "(-inf, inf)"]

INTERVALS: dict[Interval, Callable[[Any], bool]] = {
    "(0, inf)": lambda x: x > 0,
    "[0, inf)": lambda x: x >= 0,
    "[0, 1)": lambda x: 0 <= x < 1,
    "[0, 1]": lambda x: 0 <= x <= 1,
    "[0.5, 1)": lambda x: 0.5 <= x < 1,
    "(-inf, inf)": lambda x: True,
}


def check_numbers(interval: Interval, **values: Any) -> None:
    """Raise ConfigurationError unless every value is a finite number in the interval."""
    for name, value in values.items():
        number = isinstance(value, NUMBER) and not isinstance(value, bool)
        if not (number and abs(value) <= sys.float_info.max and INTERVALS[interval](value)):
            raise ConfigurationError(f"{name} is {value!r}: it must be a number in {interval}")


def check_integers(least: int, **values: Any) -> None:
    """Raise ConfigurationError unless every value is an integer of at least `least`."""
    for name, value in values.items():
        integer = isinstance(value, INTEGER) and not isinstance(value, bool)
        if not (integer and value >= least):
            raise ConfigurationError(
                f"{name} is {value!r}: it must be an integer of at least {least}"
            )


def check_flags(**values: Any) -> None:
    """Raise ConfigurationError unless every value is True or False."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise ConfigurationError(f"{name} is {value!r}: it must be True or False")
