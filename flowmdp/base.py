"""What the single and the vectorised flow environment share: arguments, data, models, the step."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache, cached_property
from math import sqrt
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from flowmdp.backends import NumpyBackend
from flowmdp.behavior import BehaviorFlow, as_behavior
from flowmdp.chunks import Chunks, check_fits
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.divergences import DIVERGENCES, squared
from flowmdp.mdp.spec import FlowSettings, FlowSpec
from flowmdp.mdp.transition import flow_step, step_log_density
from flowmdp.robot import RobotInterface, unit_robot
from flowmdp.transitions import TransitionDataset

Float = NDArray[np.float32]

Critic = Callable[[Float, Float], Float]
"""critic(observations (n, obs_dim), actions (n, action_dim)) -> values (n,), in advantage units.

action_dim is that of the flow: with chunks, `chunk` times the robot's. With `backend="torch"`, of
tensors.
"""

Behavior = Callable[[Float, Float, Float], Float]
"""behavior(observations (n, obs_dim), x_t (n, action_dim), t (n, 1)) -> (n, action_dim)."""

Recording = TransitionDataset | Callable[[], TransitionDataset] | None
"""A dataset, or a function that loads one when it is first needed."""


class FlowBase:
    """Settings, specification, dataset, models and flow step of a flow environment.

    Attributes:
        settings: The arguments, checked.
        flow_spec: What an agent must know: dimensions, flow steps, parts of the observation.
        robot: The robot's own spaces, and the way to them from flat observations and [-1, 1].
        outer: The robot with flat observations and actions in [-1, 1], or None.
        outer_observation_space: Its observation space, or that of the dataset's states.
        outer_action_space: The box [-1, 1].
    """

    def __init__(
        self,
        settings: FlowSettings,
        outer: gym.Env[Any, Any] | None,
        dataset: Recording,
        critic: Critic | None,
        behavior: BehaviorFlow | None,
        task: str | None,
        source: str | None,
        backend: NumpyBackend | None = None,
    ) -> None:
        self.settings, self._dataset = settings, dataset
        self._on = NumpyBackend() if backend is None else backend
        self.outer: gym.Env[Any, Any] | None = None
        self.outer_observation_space: Box[Any]
        self.outer_action_space: Box[Any]
        if outer is not None:
            if not isinstance(outer, gym.Env):
                raise ConfigurationError(
                    f"the outer environment is a {type(outer).__name__}: pass a gymnasium.Env"
                )
            self.robot = RobotInterface(outer.observation_space, outer.action_space)
            self.outer = unit = unit_robot(outer)
            assert isinstance(unit.observation_space, Box) and isinstance(unit.action_space, Box)
            self.outer_observation_space = unit.observation_space
            self.outer_action_space = unit.action_space
        elif settings.states == "env":
            raise ConfigurationError(
                "states='env' needs an outer environment: pass one, or states='dataset'"
            )
        else:
            data = self._load()
            self.outer_observation_space = Box(-np.inf, np.inf, data.observations.shape[1:])
            self.outer_action_space = Box(-1.0, 1.0, data.actions.shape[1:])
            widths = data.observations.shape[1], data.actions.shape[1]
            self.robot = data.robot or RobotInterface.plain(*widths)
        registered = None if self.outer is None else self.outer.spec
        check_fits(settings.chunk, registered.max_episode_steps if registered else None)
        self.flow_spec = spec = FlowSpec(
            observation_dim=self.outer_observation_space.shape[0],
            action_dim=self.outer_action_space.shape[0] * settings.chunk,
            flow_steps=settings.flow_steps,
            velocity_scale=settings.scale,
            include_time=settings.include_time,
            include_previous_action=settings.include_previous_action,
            noise_scale=settings.noise_scale,
            task=task,
            source=source,
            chunk=settings.chunk,
        )
        self._divisor = self._on.place(np.full(spec.action_dim, spec.flow_steps, np.float32))
        self._value: Critic | None = self._model("critic", critic)
        self._reference: Behavior | None = self._model("behavior", behavior)

    @property
    def flow_steps(self) -> int:
        """Flow steps per action."""
        return self.flow_spec.flow_steps

    @cached_property
    def _chunks(self) -> Chunks:
        """Where in the dataset a chunk may begin, and its actions."""
        return Chunks(self.dataset, self.settings.chunk)

    @property
    def dataset(self) -> TransitionDataset:
        """The recorded behaviour; loaded when it is first asked for.

        Raises:
            ConfigurationError: When there is none, or it was recorded in other spaces.
        """
        data = self._load()
        shapes = (data.observations.shape[1:], data.actions.shape[1:])
        expected = (self.outer_observation_space.shape, self.outer_action_space.shape)
        if shapes != expected:
            raise ConfigurationError(
                f"dataset {data.id} holds observations and actions of shapes {shapes}; "
                f"the outer environment has {expected}"
            )
        difference = data.robot and self.robot.difference(data.robot)
        if difference:
            raise ConfigurationError(
                f"dataset {data.id} was recorded in {difference} as the robot has: wrap the robot "
                "as it was wrapped for the recording"
            )
        return data

    def values(self, states: Float, actions: Float) -> Float:
        """Q(s, a) of the critic that pays for actions, shape (n,).

        Args:
            states: Shape (n, obs_dim).
            actions: In [-1, 1], shape (n, action_dim).

        Raises:
            ConfigurationError: If no critic pays for them.
        """
        if self._value is None:
            raise ConfigurationError(
                f"reward={self.settings.reward!r} has no critic to value actions by: take "
                "reward='direction'"
            )
        return self._value(states, actions)

    def _load(self) -> TransitionDataset:
        if self._dataset is None:
            raise ConfigurationError(
                "this environment has no dataset: pass dataset=, or make it by a task's id"
            )
        if not isinstance(self._dataset, TransitionDataset):
            if not callable(self._dataset):
                raise ConfigurationError(
                    f"dataset is a {type(self._dataset).__name__}: pass a TransitionDataset, or a "
                    "function that loads one"
                )
            self._dataset = self._dataset()
        return self._dataset

    def _model(self, name: str, model: Any) -> Any:
        """The model if it is needed; asked once, so that one that does not fit shows at once."""
        needed = name in self.settings.models
        if model is None and needed:
            raise ConfigurationError(
                f"this reward or action mode needs a {name}: pass {name}=, or a checkpoint that "
                "holds one"
            )
        if model is None:
            return None
        _spare_children()
        widths = self.flow_spec.observation_dim, self.flow_spec.action_dim
        if isinstance(model, BehaviorFlow):
            model.check(*widths, self._on.device)
            model.check_steps(self.settings.flow_steps)
        else:
            sizes = f"observations of {widths[0]} and actions of {widths[1]} dimensions"
            try:
                answer = np.shape(model(*(self._on.zeros(1, width) for width in widths)))
            except Exception as error:  # whatever a user's model raises on other dimensions
                raise ConfigurationError(f"the {name} fails on {sizes}: {error}") from error
            if answer != (1,):
                raise ConfigurationError(
                    f"the {name} answers shape {answer}, not (1,), for {sizes}"
                )
        return self._on.model(model) if needed else None

    def _take_options(
        self, options: dict[str, Any], *chains: int
    ) -> tuple[Float | None, Float | None]:
        """Noise and state of a reset's options; of several chains, one for all or one row each."""
        spec, taken = self.flow_spec, {}
        for name, dim in (("noise", spec.action_dim), ("state", spec.observation_dim)):
            if name in options:
                try:
                    taken[name] = value = self._on.array(options.pop(name))
                except (TypeError, ValueError, RuntimeError) as error:
                    raise ConfigurationError(f"options[{name!r}] is no array: {error}") from error
                shape, shapes = tuple(value.shape), dict.fromkeys(((dim,), (*chains, dim)))
                if shape not in shapes or not self._on.xp.isfinite(value).all():
                    raise ConfigurationError(
                        f"options[{name!r}] has shape {shape}: it must be finite and of shape "
                        f"{' or '.join(map(str, shapes))}"
                    )
        live = self.settings.states == "env"
        if "state" in taken and live:
            raise ConfigurationError("options['state'] needs states='dataset': the robot is live")
        if "state" in taken and self.settings.reward == "data":
            raise ConfigurationError(
                "options['state'] has no dataset action: reward 'data' cannot use it"
            )
        if options and not live:
            raise ConfigurationError(f"unknown reset options for states='dataset': {list(options)}")
        return taken.get("noise"), taken.get("state")

    def _flow_step(
        self, states: Float, x_t: Float, velocity: Float, t: Float, x_1: Float, noise: Float | None
    ) -> tuple[Float, dict[str, Float]]:
        """Move n chains by one flow step.

        t is (n, 1); x_1 are dataset actions, which only reward "data" reads, NaN where there are
        none; noise is N(0, I).
        Returns the next points, and by name what `info` tells, each (n,): what the step is paid is
        "reward_divergence" or "reward_data", where it is paid at all.
        """
        settings, flow_steps, xp = self.settings, self.flow_spec.flow_steps, self._on.xp
        terms: dict[str, Float] = {}
        if self._reference is not None:
            reference = self._reference(states, x_t, t)
            if not self._on.finite(reference):
                raise ConfigurationError(
                    f"the behavior answers {reference} at flow time {t.ravel()}, which is not "
                    "finite: mend it"
                )
            velocity = reference + velocity if settings.action_mode == "residual" else velocity
        if settings.reward == "divergence":
            divergence = DIVERGENCES[settings.divergence](velocity, reference)
            terms["reward_divergence"] = -np.float32(settings.rho / flow_steps) * divergence
        elif settings.reward == "data":  # on the path the target is x_1 - x_0
            target = (x_1 - x_t) / (1 - t)
            if settings.chunk > 1:  # nothing was done, any velocity is right
                target = xp.where(xp.isnan(target), velocity, target)
            terms["reward_data"] = -squared(velocity, target) / np.float32(flow_steps)
        x_next = flow_step(x_t, velocity, self._divisor)
        if noise is not None:
            x_next = x_next + noise * (settings.noise_std * sqrt(1 / flow_steps))
            terms["log_density"] = step_log_density(
                x_next, x_t, velocity, flow_steps, settings.noise_std
            )
        return x_next, terms


@cache
def _spare_children() -> None:
    """Have forked processes run torch on one thread.

    They cannot use the threads that torch started before the fork: OpenMP waits for them forever.
    """

    def one_thread() -> None:
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(1)

    os.register_at_fork(after_in_child=one_thread)


def own_steps(
    behavior: Behavior | None, settings: dict[str, Any]
) -> tuple[BehaviorFlow | None, dict[str, Any]]:
    """The behaviour, wrapped, and the settings with its own flow steps where none are given."""
    if behavior is None:
        return None, settings
    own = as_behavior(behavior)
    return own, settings if own.flow_steps is None else {"flow_steps": own.flow_steps, **settings}
