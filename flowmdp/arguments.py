"""Checks of arguments a user types: the right type and in range, or one line that names them.

A dataclass declares the range of a field where it declares the field, and checks all at once:

    @dataclass(frozen=True)
    class Config:
        budget: Annotated[float, Range("(0, inf)")] | None = None
        net_arch: tuple[Annotated[int, AtLeast(1)], ...] = (256, 256)

        def __post_init__(self) -> None:
            check_fields(self)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from flowmdp.errors import ConfigurationError

INTEGER = int | np.integer
NUMBER = INTEGER | float | np.floating


@dataclass(frozen=True)
class Range:
    """Finite numbers in an interval, which is written as in mathematics: "(0, inf)", "[0, 1)"."""

    interval: str

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigurationError unless the value is such a number."""
        low, high = (float(bound) for bound in self.interval[1:-1].split(","))
        plain = _plain(value)
        holds = (
            isinstance(value, NUMBER)
            and not isinstance(value, bool)
            and abs(plain) <= sys.float_info.max
            and (low < plain or (low == plain and self.interval[0] == "["))
            and (plain < high or (plain == high and self.interval[-1] == "]"))
        )
        _require(holds, name, value, f"it must be a number in {self.interval}")


@dataclass(frozen=True)
class AtLeast:
    """Integers of at least `least` and at most `most`; None is no bound."""

    least: int | None = None
    most: int | None = None

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigurationError unless the value is such an integer."""
        integer = isinstance(value, INTEGER) and not isinstance(value, bool)
        holds = integer and (self.least is None or value >= self.least)
        holds = holds and (self.most is None or value <= self.most)
        bound = "" if self.least is None else f" of at least {self.least}"
        bound += "" if self.most is None else f" and at most {self.most:,}"
        _require(holds, name, value, f"it must be an integer{bound}")


def check_numbers(interval: str, **values: Any) -> None:
    """Raise ConfigurationError unless every value is a finite number in the interval."""
    for name, value in values.items():
        Range(interval).check(name, value)


def check_integers(least: int, most: int | None = None, /, **values: Any) -> None:
    """Raise ConfigurationError unless every value is an integer of at least `least`, as AtLeast."""
    for name, value in values.items():
        AtLeast(least, most).check(name, value)


def check_choice(choices: Iterable[Any], **values: Any) -> None:
    """Raise ConfigurationError unless every value is one of the choices."""
    choices = list(choices)
    for name, value in values.items():
        holds = any(isinstance(value, type(choice)) and value == choice for choice in choices)
        _require(holds, name, value, f"choose one of {', '.join(map(str, choices))}")


def check_fields(instance: object) -> None:
    """Check every field of a dataclass against its declaration; call it in `__post_init__`.

    A field is a bool, a str, a Literal, an int or a float (where `Annotated` adds `AtLeast` or
    `Range`), a `tuple[X, ...]` of these, or one of these and None. What a caller or JSON had to
    write otherwise becomes what was meant: a list a tuple, a NumPy scalar Python's.

    Raises:
        ConfigurationError: For a value of another type or out of range.
        TypeError: For a declaration that is none of these.
    """
    cls: Any = type(instance)
    for name, declared in _declarations(cls).items():
        value = getattr(instance, name)
        _check(name, value, declared)
        if isinstance(value, list | tuple):
            value = tuple(_plain(entry) for entry in value)
        object.__setattr__(instance, name, _plain(value))


@cache
def _declarations(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def _check(name: str, value: Any, declared: Any, rule: Range | AtLeast | None = None) -> None:
    kind, parts = get_origin(declared), get_args(declared)
    if kind is Annotated:
        rules = [part for part in parts[1:] if isinstance(part, Range | AtLeast)]
        _check(name, value, parts[0], rules[0] if rules else rule)
    elif kind in (Union, UnionType) and len(parts) == 2 and NoneType in parts:
        if value is not None:
            _check(name, value, next(part for part in parts if part is not NoneType), rule)
    elif kind is tuple and parts[1:] == (...,):
        _require(isinstance(value, list | tuple), name, value, "it must be a list")
        for entry in value:
            _check(f"an entry of {name}", entry, parts[0], rule)
    elif kind is Literal:
        check_choice(parts, **{name: value})
    elif declared in (int, float):
        (rule or (AtLeast() if declared is int else Range("(-inf, inf)"))).check(name, value)
    elif declared is bool:
        _require(isinstance(value, bool | np.bool_), name, value, "it must be True or False")
    elif declared is str:
        _require(isinstance(value, str), name, value, "it must be a name")
    else:
        raise TypeError(f"{name} is declared as {declared}, which check_fields does not know")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _require(holds: bool, name: str, value: Any, cure: str) -> None:
    if not holds:
        raise ConfigurationError(f"{name} is {value!r}: {cure}")
