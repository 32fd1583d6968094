"""Robots that cannot be made: one line with what is known of the cause."""

from __future__ import annotations

import gymnasium as gym
import pytest

from flowmdp.envs.robots.faults import explain
from flowmdp.envs.robots.outer import make_robot
from flowmdp.errors import RobotError


def raised(code: str, file: str) -> Exception:
    """What `code` raises in a file of that name."""
    try:
        exec(compile(code, file, "exec"), {})
    except Exception as error:
        return error
    raise RuntimeError("it raised nothing")


def test_a_fetch_robot_under_a_mujoco_that_is_too_new() -> None:
    file = "/lib/site-packages/gymnasium_robotics/utils/mujoco_utils.py"
    told = explain(raised("assert 3 in ()", file))
    assert 'pip install "mujoco<3.12"' in told and "gymnasium-robotics" in told
    assert "mujoco<" not in explain(raised("assert 3 in ()", "/home/me/robot.py"))
    assert "mujoco<" not in explain(raised("1 / 0", file))


def test_any_other_fault_names_its_place() -> None:
    assert (
        explain(raised("\nassert 0", "/me/robot.py")) == "AssertionError (line 2 of /me/robot.py)"
    )
    assert explain(ValueError("two\nlines")) == "ValueError two lines"


def test_a_robot_whose_constructor_raises_is_one_line() -> None:
    gym.register("Broken-v1", lambda: 1 / 0)  # type: ignore[arg-type]
    try:
        with pytest.raises(
            RobotError, match="cannot make Broken-v1: ZeroDivisionError division by zero"
        ) as caught:
            make_robot("Broken-v1")
        assert "\n" not in str(caught.value)
    finally:
        del gym.registry["Broken-v1"]
