"""A robot's own spaces, and the map between them and the flow MDP's.

The flow MDP, the agents and their data see flat observations and actions in [-1, 1]. A robot may
observe and act in other spaces:

- Observations (a Box of any shape, Discrete and Multi ones, Dict and Tuple of these) are strung
  together in the order of `gymnasium.spaces.flatten_space`.
- An action u in [-1, 1] is low + (u + 1) (high - low) / 2 at the robot, per coordinate; recorded
  actions take the inverse way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from flowmdp.errors import ConfigurationError

Array = NDArray[Any]


class RobotInterface:
    """The spaces of a robot, flattened and scaled.

    Args:
        observation_space: What the robot observes.
        action_space: A bounded Box of floating point numbers.

    Attributes:
        observation_dim: Width of a flat observation.
        action_dim: Width of a flat action.
        scales_actions: Whether the robot's box is another than [-1, 1].

    Raises:
        ConfigurationError: For images, sequences, and other spaces that a flow policy cannot use.
    """

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        _check_observations(observation_space, "")
        _check_actions(action_space)
        assert isinstance(action_space, spaces.Box)
        self.observation_space, self.action_space = observation_space, action_space
        self.observation_dim = spaces.flatdim(observation_space)
        self.action_dim = spaces.flatdim(action_space)
        if not (self.observation_dim and self.action_dim):
            raise ConfigurationError(
                f"the robot observes {observation_space} and acts in {action_space}: both need at "
                "least one number"
            )
        low, high = (b.astype(np.float64).ravel() for b in (action_space.low, action_space.high))
        self._middle, self._half = low + (high - low) / 2, (high - low) / 2
        self.scales_actions = bool((low != -1).any() or (high != 1).any())

    @classmethod
    def plain(cls, observation_dim: int, action_dim: int) -> RobotInterface:
        """Flat, unbounded observations and actions in [-1, 1]."""
        observed = spaces.Box(-np.inf, np.inf, (observation_dim,), np.float32)
        return cls(observed, spaces.Box(-1.0, 1.0, (action_dim,), np.float32))

    def flatten(self, observations: Any) -> NDArray[np.float32]:
        """One observation, shape (observation_dim,), or a batch, (n, observation_dim), float32.

        Args:
            observations: In the robot's space, one or a batch along the first axis of every part;
                or flat already. What may be either is taken to be in the robot's space; integers
                are one-hot encoded where it is Discrete, floating point numbers already are.

        Raises:
            ConfigurationError: For another structure or shape.
        """
        nested = isinstance(observations, Mapping | tuple)
        try:
            if not nested and self._is_flat(array := np.asarray(observations)):
                return array.astype(np.float32, copy=False)
            parts = _flat_parts(self.observation_space, observations)
            return np.concatenate(parts, axis=-1, dtype=np.float32)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"the observation is none of {self.observation_space}, nor flat of width "
                f"{self.observation_dim}, nor a batch of these ({error})"
            ) from error

    def _is_flat(self, array: Array) -> bool:
        """Whether an array is flat, and not one or a batch of the robot's space."""
        if array.shape[-1:] != (self.observation_dim,) or array.ndim > 2:
            return False
        space = self.observation_space
        if isinstance(space, spaces.Dict | spaces.Tuple):
            return True
        shape = space.shape or ()
        own = array.ndim - len(shape) in (0, 1) and array.shape[array.ndim - len(shape) :] == shape
        numbers = isinstance(space, spaces.Box | spaces.MultiBinary) or array.dtype.kind in "iub"
        return not (own and numbers)

    def to_robot(self, actions: Array) -> Array:
        """Actions in [-1, 1], (action_dim,) or (n, action_dim), in the robot's own units."""
        if self.scales_actions:
            actions = self._middle + self._half * actions
        box = self.action_space
        actions = actions.astype(box.dtype, copy=False)
        if not self.scales_actions and box.shape == actions.shape[-1:]:
            return actions
        shaped = actions.reshape((*actions.shape[:-1], *box.shape))
        return np.asarray(np.clip(shaped, box.low, box.high))  # of no dimension it is a scalar

    def to_unit(self, actions: Array) -> Array:
        """The robot's actions, one or a batch, in [-1, 1] and float32, shape (..., action_dim).

        What lies outside the robot's box lies outside [-1, 1].
        """
        array = np.asarray(actions)
        batch = array.shape[: array.ndim - len(self.action_space.shape)]
        flat = array.reshape((*batch, self.action_dim))
        if self.scales_actions:
            flat = (flat - self._middle) / self._half
        return flat.astype(np.float32)

    def difference(self, other: RobotInterface) -> str:
        """How the other makes other numbers of the same observation or action; "" if it does not.

        Of observations only the width and, where both are Dicts, the names are compared.
        """
        ours, theirs = _names(self.observation_space), _names(other.observation_space)
        ordered = ours == theirs or not (ours and theirs)
        if self.observation_dim != other.observation_dim or not ordered:
            return f"the observation space {other.observation_space}, not {self.observation_space}"
        same = self.action_dim == other.action_dim and (
            np.allclose(self._middle, other._middle) and np.allclose(self._half, other._half)
        )
        return "" if same else f"the action space {other.action_space}, not {self.action_space}"

    def to_json(self) -> dict[str, Any]:
        """The two spaces as `from_json` takes them."""
        return {
            "observation_space": _to_json(self.observation_space),
            "action_space": _to_json(self.action_space),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RobotInterface:
        """The interface that `to_json` described; whatever else raises an error of some kind."""
        return cls(_from_json(value["observation_space"]), _from_json(value["action_space"]))


def unit_robot(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Wrap a robot so that it has flat observations and actions in [-1, 1].

    Only what it lacks is wrapped: Gymnasium's `FlattenObservation`, and `UnitAction`.

    Raises:
        ConfigurationError: For a space that a flow policy cannot use.
    """
    robot = RobotInterface(env.observation_space, env.action_space)
    if not (
        isinstance(env.observation_space, spaces.Box) and len(env.observation_space.shape) == 1
    ):
        env = gym.wrappers.FlattenObservation(env)
    exact = np.can_cast(np.float32, robot.action_space.dtype)  # a Box refuses wider numbers
    if robot.scales_actions or len(robot.action_space.shape) != 1 or not exact:
        env = UnitAction(env)
    return env


class UnitAction(gym.ActionWrapper[Any, Array, Array], gym.utils.RecordConstructorArgs):
    """Action wrapper: flat actions in [-1, 1], scaled to the robot's box by `RobotInterface`.

    Args:
        env: The robot.

    Raises:
        ConfigurationError: For a space that a flow policy cannot use.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.robot = RobotInterface(env.observation_space, env.action_space)
        self.action_space = spaces.Box(-1.0, 1.0, (self.robot.action_dim,), np.float32)

    def action(self, action: Array) -> Array:
        """The robot's own action."""
        return self.robot.to_robot(action)


def _check_observations(space: spaces.Space[Any], name: str) -> None:
    if isinstance(space, spaces.Dict):
        for key, part in space.items():
            _check_observations(part, f"{name}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space):
            _check_observations(part, f"{name}[{index}]")
    elif isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) > 1:
        raise ConfigurationError(
            f"the robot's observation{name} is an image, {space}: leave it out, or encode it to a "
            "flat Box, with gymnasium.wrappers.TransformObservation"
        )
    elif not isinstance(
        space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    ):
        raise ConfigurationError(
            f"the robot's observation{name} is {space}, which has no fixed width: leave it out or "
            "encode it with gymnasium.wrappers.TransformObservation"
        )


def _check_actions(space: spaces.Space[Any]) -> None:
    if not isinstance(space, spaces.Box) or space.dtype.kind != "f":
        raise ConfigurationError(
            f"the robot acts in {space}: a flow policy needs a Box of floating point numbers; take "
            "a continuous variant of the robot"
        )
    if not space.is_bounded() or not np.isfinite(space.high.astype(np.float64) - space.low).all():
        raise ConfigurationError(
            f"the robot acts in {space}, which has no finite bounds: give it some with "
            "gymnasium.wrappers.TransformAction"
        )
    if not (space.low < space.high).all():
        raise ConfigurationError(
            f"the robot acts in {space}, where a coordinate is fixed: leave that coordinate out "
            "with gymnasium.wrappers.TransformAction"
        )


def _flat_parts(space: spaces.Space[Any], value: Any) -> list[Array]:
    """The parts of one observation, or of a batch, each (..., width)."""
    if isinstance(space, spaces.Dict):
        return [flat for name, part in space.items() for flat in _flat_parts(part, value[name])]
    if isinstance(space, spaces.Tuple):
        pairs = zip(space, value, strict=True)
        return [flat for part, entry in pairs for flat in _flat_parts(part, entry)]
    array, shape = np.asarray(value), space.shape or ()
    batch = array.shape[: array.ndim - len(shape)]
    if array.shape != (*batch, *shape) or len(batch) > 1:
        raise ValueError(f"shape {array.shape} where {shape} is expected")
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return [array.reshape((*batch, spaces.flatdim(space)))]
    ones: list[Any] = [spaces.flatten(space, one) for one in (array if batch else [array])]
    return [np.stack(ones) if batch else ones[0]]


def _names(space: spaces.Space[Any]) -> list[str]:
    """Names of the parts of a Dict observation, in their order; empty for other spaces."""
    if not isinstance(space, spaces.Dict):
        return []
    return [f"{key}/{name}" for key, part in space.items() for name in _names(part) or [""]]


def _to_json(space: spaces.Space[Any]) -> Any:
    """As Minari describes a space, but with Dict and Tuple in their own order."""
    from minari.serialization import serialize_space

    if isinstance(space, spaces.Dict):
        return {"Dict": [[name, _to_json(part)] for name, part in space.items()]}
    if isinstance(space, spaces.Tuple):
        return {"Tuple": [_to_json(part) for part in space]}
    return serialize_space(space, to_string=False)


def _from_json(value: Any) -> spaces.Space[Any]:
    from minari.serialization import deserialize_space

    if "Dict" in value:
        pairs = [(name, _from_json(part)) for name, part in value["Dict"]]
        return spaces.Dict(pairs)
    if "Tuple" in value:
        return spaces.Tuple([_from_json(part) for part in value["Tuple"]])
    space: spaces.Space[Any] = deserialize_space(value)
    return space
