"""What the single and the vectorised flow environment have in common."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import gymnasium as gym

from flowmdp.errors import ConfigurationError
from flowmdp.mdp.dynamics import Dynamics
from flowmdp.mdp.rewards import Behavior, Critic, Float
from flowmdp.mdp.spec import FlowSettings, FlowSpec
from flowmdp.spaces import check_dataset, flat_outer, outer_spaces, take_option
from flowmdp.transitions import TransitionDataset

Recording = TransitionDataset | Callable[[], TransitionDataset] | None
"""A dataset, or a function that loads one when it is first needed."""


class FlowBase:
    """Settings, specification, dataset and dynamics of a flow environment.

    Attributes:
        settings: The arguments, checked.
        flow_spec: What an agent must know: dimensions, flow steps, parts of the observation.
        dynamics: How chains move and what they are paid.
        outer: The robot, or None.
        outer_observation_space: The robot's, or that of the dataset's states.
        outer_action_space: The box [-1, 1].
    """

    flow_spec: FlowSpec

    flow_steps = property(attrgetter("flow_spec.flow_steps"))
    velocity_scale = property(attrgetter("flow_spec.velocity_scale"))
    noise_scale = property(attrgetter("flow_spec.noise_scale"))
    include_time = property(attrgetter("flow_spec.include_time"))
    include_previous_action = property(attrgetter("flow_spec.include_previous_action"))
    task = property(attrgetter("flow_spec.task"))
    source = property(attrgetter("flow_spec.source"))

    def __init__(
        self,
        settings: FlowSettings,
        outer: gym.Env[Any, Any] | None,
        dataset: Recording,
        critic: Critic | None,
        behavior: Behavior | None,
        task: str | None,
        source: str | None,
    ) -> None:
        self.settings, self._dataset = settings, dataset
        self.outer = outer = flat_outer(outer) if outer is not None else None
        if outer is None and settings.states == "env":
            raise ConfigurationError(
                "states='env' needs an outer environment: pass one, or states='dataset'"
            )
        self.outer_observation_space, self.outer_action_space = outer_spaces(
            outer, self._load() if outer is None else None
        )
        self.flow_spec = FlowSpec(
            observation_dim=self.outer_observation_space.shape[0],
            action_dim=self.outer_action_space.shape[0],
            flow_steps=settings.flow_steps,
            velocity_scale=settings.scale,
            include_time=settings.include_time,
            include_previous_action=settings.include_previous_action,
            noise_scale=settings.noise_scale,
            task=task,
            source=source,
        )
        self.dynamics = Dynamics(settings, self.flow_spec, critic, behavior)

    @property
    def dataset(self) -> TransitionDataset:
        """The recorded behaviour; loaded when it is first asked for.

        Raises:
            ConfigurationError: When there is none, or its dimensions are not the outer ones.
        """
        spec = self.flow_spec
        return check_dataset(self._load(), spec.observation_dim, spec.action_dim)

    def _load(self) -> TransitionDataset:
        if self._dataset is None:
            raise ConfigurationError(
                "this environment has no dataset: pass dataset=, or make it by a task's id"
            )
        if not isinstance(self._dataset, TransitionDataset):
            self._dataset = self._dataset()
        return self._dataset

    def _take_options(
        self, options: dict[str, Any], *chains: int
    ) -> tuple[Float | None, Float | None]:
        """Noise and state of a reset's options; of several chains, one for all or one row each."""
        spec = self.flow_spec
        noise = take_option(options, "noise", spec.action_dim, *chains)
        if self.settings.states == "env":
            if "state" in options:
                raise ConfigurationError(
                    "options['state'] needs states='dataset': the robot is live"
                )
            return noise, None
        state = take_option(options, "state", spec.observation_dim, *chains)
        if options:
            raise ConfigurationError(f"unknown reset options for states='dataset': {list(options)}")
        if state is not None and self.settings.reward == "data":
            raise ConfigurationError(
                "options['state'] has no dataset action: reward 'data' cannot use it"
            )
        return noise, state
