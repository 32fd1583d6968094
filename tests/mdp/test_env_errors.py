"""Bad input to the flow environment: a typed error of one line, and nothing has moved."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box

from flowmdp.env import FlowMDPEnv
from flowmdp.errors import (
    ActionError,
    ConfigurationError,
    FlowMDPError,
    ResetNeededError,
    RobotError,
)
from tests.mdp.toys import PointRobot, make_toy, toy_dataset

BOX = Box(-1.0, 1.0, (2,))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(3, np.float32), r"shape \(3,\): it must be \(2,\)"),
        (np.float32(0.0), r"shape \(\)"),
        (np.zeros(2, np.int64), "dtype int64"),
        (["a", "b"], "dtype"),
        ([[0.0], [0.0, 1.0]], "no array"),
        (np.array([np.nan, 0], np.float32), "not finite"),
        (np.array([0, np.inf], np.float32), "not finite"),
    ],
)
def test_bad_actions(action: Any, message: str) -> None:
    env = make_toy()
    before, _ = env.reset(seed=0)
    with pytest.raises(ActionError, match=message):
        env.step(action)
    after, *_ = env.step(np.zeros(2, np.float32))
    assert np.array_equal(before[:4], after[:4])  # the refused action moved nothing


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_noise_must_be_finite(value: float) -> None:
    env = make_toy()
    env.reset(seed=0)
    with pytest.raises(ActionError, match="not finite"):
        env.set_noise(np.array([value, 0]))


class FaultyRobot(PointRobot):
    """Does as `fault` says from its third step on, or at `reset`."""

    fault: Any = None

    def reset(self, **options: Any) -> Any:
        state, info = super().reset(**options)
        return (state * np.nan if self.fault == "reset" else state), info

    def step(self, action: Any) -> Any:
        state, reward, *rest = super().step(action)
        if self.steps >= 3 and self.fault == "raise":
            raise RuntimeError("the motor is off")
        if self.steps >= 3 and self.fault == "state":
            state[1] = np.inf
        return state, np.nan if self.steps >= 3 and self.fault == "reward" else reward, *rest


@pytest.mark.parametrize(
    ("fault", "error", "match"),
    [
        ("raise", RuntimeError, "the motor is off"),
        ("state", RobotError, r"step of the robot .*FaultyRobot.* observation .*not finite"),
        ("reward", RobotError, r"step of the robot .* reward nan"),
    ],
)
def test_after_a_fault_of_the_robot_only_reset_goes_on(
    fault: str, error: type[Exception], match: str
) -> None:
    robot, zero = FaultyRobot(), np.zeros(2, np.float32)
    env = FlowMDPEnv(robot, flow_steps=2)
    env.reset(seed=0)
    robot.fault = fault
    for _ in range(5):
        env.step(zero)
    with pytest.raises(error, match=match):
        env.step(zero)
    with pytest.raises(ResetNeededError):
        env.step(zero)
    robot.fault = None
    env.reset()
    env.step(zero)


def test_a_robot_that_starts_nowhere() -> None:
    robot = FaultyRobot()
    env = FlowMDPEnv(robot)
    env.reset(seed=0)
    robot.fault = "reset"
    with pytest.raises(RobotError, match="reset of the robot"):
        env.reset()
    with pytest.raises(ResetNeededError):
        env.step(np.zeros(2, np.float32))


def test_large_finite_states_are_no_fault() -> None:
    robot = PointRobot()
    env = FlowMDPEnv(robot, flow_steps=1)
    env.reset(seed=0)
    robot.position = np.array([1e30, 0.0])
    assert env.step(np.zeros(2, np.float32))[0][0] == np.float32(1e30)


def test_lists_and_other_floats_are_actions() -> None:
    env = make_toy()
    env.reset(seed=0)
    for action in ([0.1, 0.2], np.array([0.1, 0.2]), np.array([1e9, 0.2], np.float32)):
        observation, *_ = env.step(action)  # type: ignore[arg-type]
        assert observation.dtype == np.float32 and np.isfinite(observation).all()


def test_step_out_of_turn() -> None:
    env = make_toy(states="dataset", reward="direction", flow_steps=1)
    zero = np.zeros(2, np.float32)
    with pytest.raises(ResetNeededError, match=r"call reset\(\)"):
        env.step(zero)
    env.reset(seed=0)
    env.step(zero)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(zero)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flow_steps": 0}, "flow_steps is 0"),
        ({"flow_steps": 2.5}, "must be an integer"),
        ({"reward": "value"}, "reward is 'value': choose one of"),
        ({"states": "live"}, "states is 'live': choose one of"),
        ({"divergence": "kl"}, "divergence is 'kl': choose one of"),
        ({"velocity_scale": 0.0}, "velocity_scale is 0.0"),
        ({"rho": -1.0}, "rho is -1.0"),
        ({"noise_std": float("nan")}, "noise_std is nan"),
        ({"noise_scale": -0.1}, "noise_scale is -0.1"),
        ({"noise_scale": "abc"}, "noise_scale is 'abc'"),
        ({"velocity_scale": "abc"}, "velocity_scale is 'abc'"),
        ({"velocity_scale": 10**400}, "velocity_scale is 1000"),
        ({"velocity_scale": 1e39}, r"velocity_scale is 1e\+39"),  # infinite in float32
        ({"noise_scale": 1e39}, r"noise_scale is 1e\+39"),
        ({"noise_std": 1e39}, r"noise_std is 1e\+39"),
        ({"rho": 1e39}, r"rho is 1e\+39"),
        ({"include_time": "false"}, "include_time is 'false'"),
        ({"action_mode": "delta"}, "action_mode is 'delta': choose one of"),
        ({"action_mode": "residual", "behavior": None}, "needs a behavior"),
        ({"flow_step": 3}, "unexpected keyword argument 'flow_step'"),
        ({"reward": "return", "states": "dataset"}, "needs states='env'"),
        ({"reward": "data"}, "needs states='dataset'"),
        ({"reward": "direction", "critic": None}, "needs a critic"),
        ({"reward": "divergence", "behavior": None}, "needs a behavior"),
        ({"reward": "direction", "critic": lambda s, a: a}, r"answers shape \(1, 2\)"),
        ({"reward": "direction", "critic": lambda s, a: s @ np.ones(3)}, "the critic fails on"),
        ({"behavior": lambda s, x, t: x[:, :1]}, "the behavior answers"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_toy(**arguments)


def test_an_unknown_argument_is_a_type_error_too() -> None:
    """TorchRL asks for `frameskip`, and takes it back on these words of a TypeError."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'frameskip'"):
        gym.make("FlowMDP-hopper-medium-v0", frameskip=1)


@pytest.mark.parametrize(
    "options", [{"noise": np.zeros(3)}, {"state": [np.nan, 0]}, {"states": np.zeros(2)}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    env = make_toy(states="dataset", reward="direction")
    with pytest.raises(ConfigurationError, match="options"):
        env.reset(options=options)


def test_state_option_needs_dataset_states_and_a_dataset_action() -> None:
    for env in (make_toy(), make_toy(states="dataset", reward="data")):
        with pytest.raises(ConfigurationError, match=r"options\['state'\]"):
            env.reset(options={"state": np.zeros(2)})


def test_unusable_outer_environments() -> None:
    with pytest.raises(ConfigurationError, match="Discrete"):
        FlowMDPEnv(gym.make("CartPole-v1"))
    with pytest.raises(ConfigurationError, match="outer environment"):
        FlowMDPEnv()


def test_dataset_of_other_dimensions_or_none() -> None:
    with pytest.raises(ConfigurationError, match="the outer environment has"):
        _ = make_toy(dataset=toy_dataset(obs_dim=3)).dataset
    with pytest.raises(ConfigurationError, match="no dataset"):
        _ = make_toy(dataset=None).dataset


def test_errors_of_make() -> None:
    with pytest.raises(FlowMDPError, match="did you mean hopper-medium"):
        gym.make("FlowMDP-hopper-medium-v0", task="hoper-medium")
    with pytest.raises(ConfigurationError, match="no robot to render"):
        gym.make("FlowMDP-hopper-medium-v0", states="dataset", render_mode="rgb_array")
