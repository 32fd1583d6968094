"""What an environment accepts: robots, datasets, actions and the options of a reset."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.wrappers import FlattenObservation
from numpy.typing import NDArray

from flowmdp.errors import ActionError, ConfigurationError
from flowmdp.transitions import TransitionDataset

Float = NDArray[np.float32]


def flat_outer(outer: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """The robot, with a Dict of flat Boxes (as PointMaze observes) strung together to one Box.

    The parts follow one another in the order of the Dict, which Gymnasium sorts by name.

    Raises:
        ConfigurationError: For a Dict that holds anything but flat Boxes; the message names it.
    """
    space = outer.observation_space
    if not isinstance(space, Dict):
        return outer
    for name, part in space.items():
        if not isinstance(part, Box) or len(part.shape) != 1:
            raise ConfigurationError(
                f"the outer environment's observation {name!r} is {part}, not a flat Box: flatten "
                "it or leave it out with gymnasium.wrappers.TransformObservation"
            )
    return FlattenObservation(outer)


def outer_spaces(
    outer: gym.Env[Any, Any] | None, dataset: TransitionDataset | None
) -> tuple[Box[Any], Box[Any]]:
    """Observation and action space of the robot, or those that the dataset's arrays tell.

    Raises:
        ConfigurationError: When the robot's are not a flat Box and the box [-1, 1].
    """
    if outer is None:
        assert dataset is not None
        obs_dim, action_dim = dataset.observations.shape[1], dataset.actions.shape[1]
        return Box(-np.inf, np.inf, (obs_dim,)), Box(-1.0, 1.0, (action_dim,))
    observation, action = outer.observation_space, outer.action_space
    if not isinstance(observation, Box) or len(observation.shape) != 1:
        raise ConfigurationError(
            f"the outer environment observes {observation}, not a flat Box: wrap it in "
            "gymnasium.wrappers.FlattenObservation"
        )
    if not isinstance(action, Box) or len(action.shape) != 1:
        raise ConfigurationError(
            f"the outer environment acts in {action}, not a flat Box: flow policies need one"
        )
    if not (np.all(action.low == -1) and np.all(action.high == 1)):
        raise ConfigurationError(
            f"the outer environment acts in {action}, not in [-1, 1]: wrap it in "
            "gymnasium.wrappers.RescaleAction(env, -1, 1)"
        )
    return observation, action


def check_dataset(dataset: TransitionDataset, obs_dim: int, action_dim: int) -> TransitionDataset:
    """The dataset, if its dimensions are the robot's.

    Raises:
        ConfigurationError: When they are not.
    """
    shapes = (dataset.observations.shape[1:], dataset.actions.shape[1:])
    expected = ((obs_dim,), (action_dim,))
    if shapes != expected:
        raise ConfigurationError(
            f"dataset {dataset.id} holds observations and actions of shapes {shapes}; "
            f"the outer environment has {expected}"
        )
    return dataset


def as_flow_action(action: Any, shape: tuple[int, ...]) -> Float:
    """A float32 copy of an action that is floating point, finite and of the right shape.

    Raises:
        ActionError: When it is not.
    """
    try:
        array = np.asarray(action)
    except ValueError as error:
        raise ActionError(f"the action is no array: {error}") from error
    if array.dtype.kind != "f":
        raise ActionError(f"the action has dtype {array.dtype}: it must be floating point")
    if array.shape != shape:
        raise ActionError(f"the action has shape {array.shape}: it must be {shape}")
    if not np.isfinite(array).all():
        raise ActionError(f"the action is not finite: {action}")
    return array.astype(np.float32)


def take_option(options: dict[str, Any], name: str, dim: int, *chains: int) -> Float | None:
    """Take one array of shape (dim,) or (*chains, dim) out of reset options; None without it.

    Raises:
        ConfigurationError: When it has none of the shapes, or is not finite.
    """
    if name not in options:
        return None
    value = np.array(options.pop(name), np.float32)
    shapes = dict.fromkeys(((dim,), (*chains, dim)))
    if value.shape not in shapes or not np.isfinite(value).all():
        raise ConfigurationError(
            f"options[{name!r}] has shape {value.shape}: it must be finite and of shape "
            f"{' or '.join(map(str, shapes))}"
        )
    return value
