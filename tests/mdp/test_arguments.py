"""Ranges that dataclass fields declare: what is in them passes, the rest gets one line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest

from flowmdp.arguments import (
    AtLeast,
    Range,
    check_choice,
    check_fields,
    check_integers,
    check_numbers,
)
from flowmdp.errors import ConfigurationError

Objective = Literal["advantage", "direction", "endpoint"]


@dataclass(frozen=True)
class Base:
    steps: ClassVar[int] = -7
    rho: Annotated[float, Range("(0, inf)")] = 1.0
    batch_size: Annotated[int, AtLeast(1)] = 256

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    batch_size: Annotated[int, "of a group", AtLeast(2)] = 256
    rate: Annotated[float, Range("[0, 1)")] = 0.0
    share: Annotated[float, Range("[0, 1]")] = 1.0
    expectile: Annotated[float, Range("[0.5, 1)")] = 0.7
    budget: Annotated[float, Range("(0, inf)")] | None = None
    weight: Annotated[float | None, Range("[0, inf)")] = None
    shift: float = 0.0
    offset: int = 0
    objective: Objective = "endpoint"
    critic: Literal["td", "iql"] | None = None
    graphs: bool = False
    task: str | None = None
    net_arch: tuple[Annotated[int, AtLeast(1)], ...] = field(default=(256, 256))


GOOD: dict[str, list[Any]] = {
    "rho": [1, 1e-9, 1e300, np.float32(0.5), np.int64(2)],
    "batch_size": [2, 10**30, np.int32(5)],
    "rate": [0, 0.999],
    "share": [0.0, 1],
    "expectile": [0.5, 0.99],
    "budget": [None, 0.1],
    "weight": [None, 0],
    "shift": [-5, 1e300],
    "offset": [-5],
    "objective": ["advantage"],
    "critic": [None, "td"],
    "graphs": [True, np.bool_(False)],
    "task": [None, "hopper-medium"],
    "net_arch": [(), (3,), [np.int64(3), 4]],
}

POSITIVE = r"it must be a number in \(0, inf\)"
WIDTH = "it must be an integer of at least 1"
CHOICES = "choose one of advantage, direction, endpoint"
BAD: list[tuple[str, Any, str]] = [
    *(("rho", value, POSITIVE) for value in (-1.0, 0, True, "abc", None, [1.0], 1j)),
    *(("rho", value, POSITIVE) for value in (float("nan"), float("inf"), 10**400)),
    ("rho", np.float32("nan"), POSITIVE),
    ("batch_size", 1, "it must be an integer of at least 2"),
    ("batch_size", 2.0, "it must be an integer of at least 2"),
    ("batch_size", True, "it must be an integer of at least 2"),
    ("rate", 1, r"it must be a number in \[0, 1\)"),
    ("share", 1.001, r"it must be a number in \[0, 1\]"),
    ("expectile", 0.49, r"it must be a number in \[0.5, 1\)"),
    ("budget", 0, POSITIVE),
    ("weight", -1, r"it must be a number in \[0, inf\)"),
    ("shift", float("-inf"), r"it must be a number in \(-inf, inf\)"),
    ("offset", 0.5, "it must be an integer$"),
    ("objective", "best", CHOICES),
    ("objective", None, CHOICES),
    ("objective", ["endpoint"], CHOICES),
    ("critic", "sac", "choose one of td, iql"),
    ("graphs", "false", "it must be True or False"),
    ("graphs", 1, "it must be True or False"),
    ("task", 3, "it must be a name"),
    ("net_arch", 64, "it must be a list"),
    ("net_arch", "wide", "it must be a list"),
]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in GOOD.items() for value in values]
)
def test_values_in_range_pass(name: str, value: Any) -> None:
    kept = getattr(Config(**{name: value}), name)
    assert kept == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(("name", "value", "cure"), BAD)
def test_other_values_get_one_line(name: str, value: Any, cure: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} is .*: {cure}") as caught:
        Config(**{name: value})
    assert repr(value) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("width", [-5, 0, 16.0, False])
def test_entries_of_tuples_are_checked(width: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^an entry of net_arch is {width!r}: {WIDTH}"):
        Config(net_arch=(8, width))


def test_a_list_becomes_a_tuple_and_configs_compare_equal() -> None:
    listed: Any = [8, 8]
    assert Config(net_arch=listed) == Config(net_arch=(8, 8))
    assert hash(Config(net_arch=listed)) == hash(Config(net_arch=(8, 8)))


def test_numpy_scalars_become_numbers_that_json_knows() -> None:
    scalars: Any = {"rho": np.float32(0.5), "batch_size": np.int64(3), "graphs": np.bool_(True)}
    config = Config(**scalars, net_arch=(np.int64(8),))  # type: ignore[arg-type]
    told = json.loads(json.dumps(asdict(config)))
    assert told["batch_size"] == 3 and told["net_arch"] == [8]
    assert [type(x) for x in (config.rho, config.batch_size, config.graphs)] == [float, int, bool]


def test_a_subclass_may_narrow_a_range_and_its_base_keeps_its_own() -> None:
    assert Base(batch_size=1).batch_size == 1
    with pytest.raises(ConfigurationError, match="of at least 2"):
        Config(batch_size=1)


def test_a_declaration_that_cannot_be_checked_is_a_fault_of_the_program() -> None:
    @dataclass(frozen=True)
    class Odd:
        table: dict[str, int] = field(default_factory=dict)

        def __post_init__(self) -> None:
            check_fields(self)

    with pytest.raises(TypeError, match="table is declared as dict"):
        Odd()


def test_checks_of_function_arguments_say_the_same() -> None:
    check_numbers("[0, 1]", a=0, b=1.0)
    check_integers(0, a=0)
    check_choice({"x": 1, "y": 2}, a="y", b="x")
    for check, message in (
        (lambda: check_numbers("[0, 1]", a=0, b=2), r"b is 2: it must be a number in \[0, 1\]"),
        (lambda: check_integers(1, **{"--steps": 0}), "--steps is 0: it must be an integer of at"),
        (lambda: check_choice(("x", "y"), a="x", b="z"), "b is 'z': choose one of x, y"),
    ):
        with pytest.raises(ConfigurationError, match=f"^{message}"):
            check()


def test_torch_is_not_imported() -> None:
    code = "import sys, flowmdp.arguments; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
