"""The shipped contract testers, on every agent, and on things that break the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmdp.agents import ALGORITHMS, FlowBC
from flowmdp.checks import check_agent, check_flow_env
from flowmdp.env import FlowMDPEnv
from flowmdp.runs.config import get_algorithm
from tests.mdp.toys import PointRobot, make_toy, toy_dataset

SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [16]}, "device": "cpu", "seed": 0}


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize("previous", [False, True])
def test_every_agent_keeps_the_contract(name: str, previous: bool) -> None:
    algorithm = get_algorithm(name)
    flow_steps = algorithm.only_flow_steps or 4
    env = make_toy(flow_steps=flow_steps, include_previous_action=previous)
    check_agent(algorithm("MlpPolicy", env, **SMALL), env)


def test_agent_checker_finds_an_agent_that_acts_otherwise_than_it_predicts() -> None:
    class Crooked(FlowBC):
        def predict(self, *args: Any, **kwargs: Any) -> Any:
            action, state = super().predict(*args, **kwargs)
            return np.clip(action + np.float32(0.1), -1, 1), state

    env = make_toy(flow_steps=4)
    with pytest.raises(AssertionError, match="act says"):
        check_agent(Crooked("MlpPolicy", env, **SMALL), env)


def test_agent_checker_wants_an_sb3_algorithm() -> None:
    with pytest.raises(AssertionError, match="BaseAlgorithm"):
        check_agent(object(), make_toy())


class Broken(FlowMDPEnv):
    """A flow environment with one fault, chosen by name."""

    fault = ""

    def step(self, action: Any) -> Any:
        if self.fault == "accepts NaN":
            action = np.nan_to_num(action)
        observation, reward, terminated, truncated, info = super().step(action)
        if self.fault == "reward":
            reward += 1.0
        if self.fault == "executed" and "executed_action" in info:
            info["executed_action"] = info["executed_action"] * np.float32(0.5)
        if self.fault == "time":
            observation[self.flow_spec.t] = 0.5
        return observation, reward, terminated, truncated, info


@given(
    obs_dim=st.integers(1, 40),
    action_dim=st.integers(1, 30),
    flow_steps=st.integers(1, 12),
    velocity_scale=st.floats(0.1, 20),
    include_time=st.booleans(),
    include_previous_action=st.booleans(),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_contract_for_any_dimensions(obs_dim: int, action_dim: int, **arguments: Any) -> None:
    data = toy_dataset(obs_dim=obs_dim, action_dim=action_dim)
    check_flow_env(FlowMDPEnv(states="dataset", reward="data", dataset=data, **arguments))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("accepts NaN", "step accepted the action"),
        ("reward", "not the sum of"),
        ("executed", "not x_1, clipped"),
        ("time", "t is not k / T"),
    ],
)
def test_env_checker_finds_faults(
    fault: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_flow_env(Broken(PointRobot()))
    monkeypatch.setattr(Broken, "fault", fault)
    with pytest.raises(AssertionError, match=message):
        check_flow_env(Broken(PointRobot()))
