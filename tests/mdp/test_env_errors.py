"""Bad input to the flow environment: a typed error of one line, and nothing has moved."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Tuple

from flowmdp.env import FlowMDPEnv
from flowmdp.errors import ActionError, ConfigurationError, FlowMDPError, ResetNeededError
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


def test_noise_must_be_finite() -> None:
    env = make_toy()
    env.reset(seed=0)
    with pytest.raises(ActionError, match="not finite"):
        env.set_noise(np.array([np.nan, 0], np.float32))


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
    wide = PointRobot()
    wide.action_space = gym.spaces.Box(-2.0, 2.0, (2,), np.float32)
    with pytest.raises(ConfigurationError, match="RescaleAction"):
        FlowMDPEnv(wide)
    with pytest.raises(ConfigurationError, match="Discrete"):
        FlowMDPEnv(gym.make("CartPole-v1"))
    with pytest.raises(ConfigurationError, match="outer environment"):
        FlowMDPEnv()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Dict(x=BOX, camera=Box(0, 255, (8, 8, 3), np.uint8)), "observation 'camera' is Box"),
        (Dict(x=BOX, arm=Dict(joints=BOX)), "observation 'arm' is Dict"),
        (Dict(x=BOX, mode=Discrete(3)), r"observation 'mode' is Discrete\(3\)"),
        (Tuple((BOX, BOX)), r"observes Tuple\(Box"),
        (Box(0, 1, (4, 4)), r"observes Box\(0.0, 1.0, \(4, 4\)"),
    ],
    ids=["image in Dict", "Dict in Dict", "Discrete in Dict", "Tuple", "image"],
)
def test_other_nested_observations_are_refused_by_name(space: Any, message: str) -> None:
    outer = PointRobot()
    outer.observation_space = space
    with pytest.raises(ConfigurationError, match=message):
        FlowMDPEnv(outer)


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
