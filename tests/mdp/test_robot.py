"""A robot's own spaces: flattened as Gymnasium does, scaled by one map, refused by name."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector.utils import concatenate, create_empty_array

from flowmdp.env import FlowMDPEnv
from flowmdp.errors import ConfigurationError, DatasetError
from flowmdp.robot import RobotInterface, unit_robot
from flowmdp.transitions import TransitionDataset
from tests.mdp.toys import GoalRobot, PointRobot, toy_dataset

UNIT = Box(-1.0, 1.0, (2,), np.float32)
OBSERVED: dict[str, Any] = {
    "flat": Box(-1, 1, (3,)),
    "float64": Box(-1, 1, (3,), np.float64),
    "integers": Box(-5, 5, (3,), np.int64),
    "matrix": Box(-1, 1, (2, 3)),
    "Discrete": Discrete(4, start=-1),
    "MultiDiscrete": MultiDiscrete([2, 3]),
    "MultiBinary": MultiBinary(3),
    "Tuple": Tuple((Box(-1, 1, (2,)), Discrete(3))),
    "Dict": Dict(b=Box(-1, 1, (2,)), a=Dict(x=Box(-1, 1, (1,)), mode=Discrete(3))),
    "ordered Dict": Dict(OrderedDict(b=Box(-1, 1, (2,)), a=Box(-1, 1, (1,)))),
}


@pytest.mark.parametrize("name", OBSERVED)
def test_observations_are_flattened_as_gymnasium_does(name: str) -> None:
    space: spaces.Space[Any] = OBSERVED[name]
    space.seed(0)
    robot = RobotInterface(space, UNIT)
    ones: list[Any] = [space.sample() for _ in range(3)]
    flattened: list[Any] = [spaces.flatten(space, one) for one in ones]
    expected = np.stack(flattened).astype(np.float32)
    flat = np.stack([robot.flatten(one) for one in ones])
    empty: Any = create_empty_array(space, 3)
    batch = concatenate(space, ones, empty)
    assert flat.dtype == np.float32 and flat.shape == (3, spaces.flatdim(space))
    np.testing.assert_array_equal(flat, expected)
    np.testing.assert_array_equal(robot.flatten(batch), expected)
    np.testing.assert_array_equal(robot.flatten(expected), expected)  # flat already
    again = RobotInterface.from_json(json.loads(json.dumps(robot.to_json())))
    np.testing.assert_array_equal(again.flatten(batch), expected)
    assert again.observation_space == space


@pytest.mark.parametrize(
    ("low", "high"), [([-2.0, 0.0], [2.0, 5.0]), ([-1.0, -1.0], [1.0, 1.0]), ([3, -7], [4, -6])]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_take_one_affine_map_and_its_inverse(low: Any, high: Any, dtype: Any) -> None:
    box = Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)
    robot = RobotInterface(Box(-1, 1, (1,)), box)
    units = np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32)
    actions = robot.to_robot(units)
    assert actions.dtype == dtype and all(box.contains(action) for action in actions)
    expected = box.low + (units.astype(np.float64) + 1) * (box.high - box.low) / 2
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(robot.to_unit(actions), units, atol=1e-5)
    corners = np.array([[-1, -1], [1, 1]], np.float32)
    np.testing.assert_array_equal(robot.to_robot(corners), [box.low, box.high])
    np.testing.assert_array_equal(robot.to_unit(np.stack([box.low, box.high])), corners)


@pytest.mark.parametrize(
    ("observed", "acted", "message"),
    [
        (Box(0, 255, (8, 8, 3), np.uint8), UNIT, "observation is an image"),
        (Dict(x=UNIT, eye=Box(0, 255, (8, 8), np.uint8)), UNIT, "\\['eye'\\] is an image"),
        (spaces.Text(3), UNIT, "no fixed width"),
        (Tuple((UNIT, spaces.Sequence(UNIT))), UNIT, "observation\\[1\\] is Sequence"),
        (UNIT, Discrete(3), "acts in Discrete"),
        (UNIT, Box(-1, 1, (2,), np.int64), "floating point"),
        (UNIT, Box(-np.inf, 1, (2,)), "no finite bounds"),
        (UNIT, Box(0, 0, (1,)), "a coordinate is fixed"),
    ],
)
def test_other_spaces_are_refused_by_name(observed: Any, acted: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RobotInterface(observed, acted)


@pytest.mark.parametrize("wrong", [{"a": 1}, np.zeros(4), np.zeros((2, 2, 3)), (1, 2), "abc", None])
def test_other_observations_are_refused(wrong: Any) -> None:
    for space in (Box(-1, 1, (3,)), OBSERVED["Dict"]):
        with pytest.raises(ConfigurationError, match="nor flat of width"):
            RobotInterface(space, UNIT).flatten(wrong)


class WideRobot(GoalRobot):
    """Observes a Dict, acts in [0, 4] x [-3, -1]; remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = Box(np.array([0, -3], np.float32), np.array([4, -1], np.float32))
        self.told: list[Any] = []

    def step(self, action: Any) -> Any:
        self.told.append(action)
        return super().step(np.zeros(2, np.float32))


def test_the_flow_environment_acts_in_the_robots_units() -> None:
    outer = WideRobot()
    env = FlowMDPEnv(outer, flow_steps=1, velocity_scale=1.0)
    observation, _ = env.reset(seed=0, options={"noise": np.zeros(2, np.float32)})
    assert observation.shape == (6 + 2 + 1,)
    *_, info = env.step(np.array([0.5, -1.0], np.float32))
    np.testing.assert_allclose(outer.told, [[3.0, -3.0]])
    np.testing.assert_allclose(info["executed_action"], [0.5, -1.0])
    np.testing.assert_allclose(env.robot.to_robot(info["executed_action"]), outer.told[0])
    assert unit_robot(plain := PointRobot()) is plain  # nothing to do, nothing around it


def recorded(outer: gym.Env[Any, Any], steps: int = 5) -> TransitionDataset:
    outer.action_space.seed(0)
    seen, actions = [outer.reset(seed=0)[0]], []
    for _ in range(steps):
        actions.append(outer.action_space.sample())
        seen.append(outer.step(actions[-1])[0])
    empty: Any = create_empty_array(outer.observation_space, len(seen))
    batch = concatenate(outer.observation_space, seen, empty)
    episode = {"observations": batch, "actions": np.stack(actions), "rewards": np.ones(steps)}
    return TransitionDataset.from_episodes(
        [{**episode, "terminations": True}, {**episode, "terminations": np.zeros(steps, bool)}],
        outer.observation_space,
        outer.action_space,
    )


def test_data_of_own_spaces_take_the_same_map() -> None:
    outer = WideRobot()
    data = recorded(outer)
    env = FlowMDPEnv(outer, dataset=data)
    assert env.dataset is data and len(data) == 10
    assert data.terminations.nonzero()[0].tolist() == [4]
    assert data.truncations.nonzero()[0].tolist() == [9]
    assert data.starts.nonzero()[0].tolist() == [0, 5]
    np.testing.assert_allclose(data.robot.to_robot(data.actions[:5]), outer.told, atol=1e-5)  # type: ignore[union-attr]
    np.testing.assert_array_equal(data.previous_actions[1:5], data.actions[:4])
    np.testing.assert_array_equal(data.next_observations[:4], data.observations[1:5])
    assert not data.previous_actions[data.starts].any()
    with pytest.raises(ConfigurationError, match=r"the action space Box\(.*wrap the robot"):
        _ = FlowMDPEnv(GoalRobot(), dataset=data).dataset
    assert FlowMDPEnv(states="dataset", reward="data", dataset=data).robot is data.robot


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"rewards": np.full(40, np.nan)}, "NaN or infinite rewards in 40"),
    ({"observations": np.full((40, 2), np.inf)}, "infinite observations"),
    ({"actions": np.full((40, 2), 2.0)}, r"actions outside \[-1, 1\]"),
    ({"actions": np.zeros((39, 2))}, "actions of shape"),
    ({"actions": np.zeros(40)}, "actions of shape"),
    ({"next_observations": np.zeros((40, 3))}, "next_observations of shape"),
    ({"rewards": np.zeros((40, 1))}, "rewards of shape"),
    ({"rewards": np.array(["a"] * 40)}, "rewards of dtype"),
    ({"starts": np.zeros(40)}, "starts of dtype"),
    ({"starts": np.arange(40) == 0}, "no start at transition 10"),
    ({"starts": np.arange(40) % 5 == 0}, "no episode ends before it, at transition 5"),
    ({"truncations": np.zeros(40, bool)}, "starts must follow"),
    ({"rewards": np.ma.masked_array(np.zeros(40), np.eye(40)[3])}, "rewards .* masked"),
    ({"rewards": [[1], [1, 2]]}, "rewards that are no array"),
    ({"robot": RobotInterface.plain(3, 2)}, r"width \(2, 2\), which are not its robot's"),
    ({"robot": "arm"}, "pass the RobotInterface"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[m for _, m in CHANGES])
def test_data_from_python_is_checked(change: dict[str, Any], message: str) -> None:
    import dataclasses

    with pytest.raises(DatasetError, match=message):
        dataclasses.replace(toy_dataset(), **change)


def test_lists_and_tensors_are_taken() -> None:
    import torch

    data = toy_dataset()
    arrays = {name: value for name, value in vars(data).items() if isinstance(value, np.ndarray)}
    for kind in (np.ndarray.tolist, torch.as_tensor):
        given: dict[str, Any] = {name: kind(array) for name, array in arrays.items()}
        same = TransitionDataset("toy", **given)
        np.testing.assert_array_equal(same.masks, data.masks)
        np.testing.assert_array_equal(same.returns, data.returns)
        assert same.observations.dtype == np.float32 and same.starts.dtype == np.bool_


def test_episodes_as_long_as_an_observation_is_wide() -> None:
    episodes = [
        {
            "observations": np.arange(n + 1),
            "actions": np.zeros((n, 2)),
            "rewards": np.zeros(n),
            "terminations": False,
        }
        for n in (3, 4)
    ]
    data = TransitionDataset.from_episodes(episodes, Discrete(5), UNIT)
    np.testing.assert_array_equal(data.observations.argmax(1), [0, 1, 2, 0, 1, 2, 3])


def test_episodes_that_cannot_be_used_are_named() -> None:
    good = {"observations": np.zeros((3, 1)), "actions": np.zeros((2, 2)), "rewards": np.zeros(2)}
    for change, message in (
        ({"actions": np.zeros((3, 2))}, "n steps need n \\+ 1 observations"),
        ({"terminations": [True, False]}, "goes on after it terminated"),
        ({"observations": np.zeros((3, 4))}, "episode 1 of mine"),
        ({"rewards": None}, "episode 1 of mine"),
        ({"terminations": "no"}, "terminations are no booleans"),
        ({"terminations": np.nan}, "terminations are no booleans"),
    ):
        bad = {**good, "terminations": True, **change}
        with pytest.raises(DatasetError, match=message):
            TransitionDataset.from_episodes(
                [{**good, "terminations": True}, bad], Box(-1, 1, (1,)), UNIT, id="mine"
            )
    for wrong, message in (
        ([], "no episodes"),
        ([good], "episode 0 of custom has no 'terminations'"),
        ({**good, "terminations": True}, "pass a list of episodes"),
        (None, "pass a list of episodes"),
    ):
        with pytest.raises(DatasetError, match=message):
            TransitionDataset.from_episodes(wrong, Box(-1, 1, (1,)), UNIT)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("space", "observation", "shape"),
    [
        (Discrete(3), np.array([2, 0, 1]), (3, 3)),  # a batch as long as one is wide
        (Discrete(3), np.array([0.0, 0.0, 1.0]), (3,)),  # flat already
        (Box(-1, 1, (1, 4)), np.zeros((1, 4)), (4,)),
        (Box(-1, 1, ()), 0.5, (1,)),
        (Box(-1, 1, ()), np.zeros(5), (5, 1)),
        (Box(-1, 1, (2,)), np.zeros((0, 2)), (0, 2)),
        (Box(-1, 1, (2, 3)), np.zeros((0, 2, 3)), (0, 6)),
    ],
)
def test_one_batch_and_flat_are_told_apart(space: Any, observation: Any, shape: Any) -> None:
    assert RobotInterface(space, UNIT).flatten(observation).shape == shape


@pytest.mark.parametrize("box", [Box(-1, 1, (), np.float32), Box(-1, 1, (2,), np.float16)])
def test_robots_get_actions_of_their_own_box(box: Any) -> None:
    robot = unit_robot(gym.wrappers.TransformAction(PointRobot(), lambda a: UNIT.sample(), box))
    inner: Any = robot
    sent: list[Any] = []

    def send(action: Any) -> Any:
        sent.append(action)
        return UNIT.sample()

    inner.env.func = send
    robot.reset(seed=0)
    robot.step(robot.action_space.sample())
    assert box.contains(sent[0])


@pytest.mark.parametrize(
    "spaces_", [(Dict({}), UNIT), (Tuple([]), UNIT), (UNIT, Box(-1, 1, (0,)))], ids=str
)
def test_spaces_of_no_width_are_refused(spaces_: Any) -> None:
    with pytest.raises(ConfigurationError, match="at least one number"):
        RobotInterface(*spaces_)
