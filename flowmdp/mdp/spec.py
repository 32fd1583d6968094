"""What defines a flow MDP, apart from the robot, the data and the reward models.

The single and the vectorised environment are both built from one `FlowSettings`, so that they
cannot disagree about an argument's default, its range or the layout of an observation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from flowmdp.arguments import check_flags, check_integers, check_numbers
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.rewards import DIVERGENCES, REWARDS

STATES = ("env", "dataset")
ACTION_MODES = ("velocity", "residual")

VELOCITY_SCALE = 6.5
"""Velocity of a flow action of 1, in action units per unit of flow time.

On the straight path a velocity is x_1 - x_0 with x_0 ~ N(0, I) and |x_1| <= 1. A component leaves
[-c, c] with probability at most P(N(0, 1) > c - 1), which at c = 6.5 is 2e-8: less than one step in
a million for up to 50 action dimensions, even if all data actions lie on the bounds. Measured: of
1.6 million steps of a flow cloned from hopper-medium none left the box, the largest was 5.2. [ours]
"""

RESIDUAL_SCALE = 1.0
"""The same for `action_mode="residual"`: a constant residual of 1 moves the executed action by at
most half the width of its box. [ours, untuned]
"""


@dataclass(frozen=True, kw_only=True)
class FlowSettings:
    """The arguments that `FlowMDPEnv` documents, checked.

    Raises:
        ConfigurationError: For a value out of its range or an unknown name.
    """

    flow_steps: int = 10
    reward: str = "return"
    states: str = "env"
    rho: float = 1.0
    divergence: str = "squared"
    velocity_scale: float | None = None
    action_mode: str = "velocity"
    noise_std: float = 0.0
    noise_scale: float = 1.0
    include_time: bool = True
    include_previous_action: bool = False

    def __post_init__(self) -> None:
        check_integers(1, flow_steps=self.flow_steps)
        _choose("reward", self.reward, tuple(REWARDS))
        _choose("states", self.states, STATES)
        _choose("divergence", self.divergence, tuple(DIVERGENCES))
        _choose("action_mode", self.action_mode, ACTION_MODES)
        if self.velocity_scale is not None:
            check_numbers("(0, inf)", velocity_scale=self.velocity_scale)
        check_numbers(
            "[0, inf)", rho=self.rho, noise_std=self.noise_std, noise_scale=self.noise_scale
        )
        check_flags(
            include_time=self.include_time, include_previous_action=self.include_previous_action
        )
        needed = REWARDS[self.reward].states
        if needed is not None and self.states != needed:
            raise ConfigurationError(
                f"reward {self.reward!r} needs states={needed!r}, not {self.states!r}"
            )

    @property
    def scale(self) -> float:
        """Velocity of a flow action of 1: `velocity_scale`, or the default of the action mode."""
        if self.velocity_scale is not None:
            return float(self.velocity_scale)
        return VELOCITY_SCALE if self.action_mode == "velocity" else RESIDUAL_SCALE

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models the environment needs, "critic" and "behavior"."""
        residual = ("behavior",) if self.action_mode == "residual" else ()
        return tuple(dict.fromkeys(REWARDS[self.reward].models + residual))

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> FlowSettings:
        """Settings from keyword arguments; a misspelt name is a ConfigurationError."""
        known = [field.name for field in fields(cls)]
        for name in arguments:
            if name not in known:
                raise ConfigurationError(
                    f"unknown argument {name!r}: choose among {', '.join(known)}"
                )
        return cls(**arguments)


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigurationError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")


@dataclass(frozen=True)
class Layout:
    """Where the parts of a flow observation lie: [s, x_t, (t), (a_{n-1}, its flag)].

    Attributes:
        obs_dim: Length of the outer observation s.
        action_dim: Length of x_t and of every action.
        time: Whether t is part of the observation.
        previous: Whether a_{n-1} is, with a flag that is 0 at an episode's first action.
    """

    obs_dim: int
    action_dim: int
    time: bool
    previous: bool

    @property
    def state(self) -> slice:
        """s, the outer observation."""
        return slice(0, self.obs_dim)

    @property
    def point(self) -> slice:
        """x_t, the point on the path from noise to action."""
        return slice(self.obs_dim, self.obs_dim + self.action_dim)

    @property
    def t(self) -> int:
        """Index of the flow time, where `time` is True."""
        return self.obs_dim + self.action_dim

    @property
    def previous_action(self) -> slice:
        """a_{n-1}, where `previous` is True; the flag follows it."""
        start = self.t + self.time
        return slice(start, start + self.action_dim)

    @property
    def size(self) -> int:
        """Length of a flow observation."""
        return self.t + self.time + (self.action_dim + 1) * self.previous

    def space(self) -> Box[np.float32]:
        """The observation space: t and flag in [0, 1], a_{n-1} in [-1, 1], the rest unbounded."""
        low = np.full(self.size, -np.inf, np.float32)
        high = np.full(self.size, np.inf, np.float32)
        if self.time:
            low[self.t], high[self.t] = 0.0, 1.0
        if self.previous:
            low[self.previous_action], high[self.previous_action] = -1.0, 1.0
            low[-1], high[-1] = 0.0, 1.0
        return Box(low, high, dtype=np.float32)


@dataclass(frozen=True)
class FlowSpec:
    """What an agent must know of a flow environment; stored in every checkpoint.

    Attributes:
        observation_dim: Width of the outer observation s.
        action_dim: Width of an action.
        flow_steps: Flow steps per action.
        velocity_scale: Velocity of flow action 1.
        noise_scale: Standard deviation of the noise x_0 from which chains start.
        include_time: Whether the flow observation holds t.
        include_previous_action: Whether it holds the previous action and its flag.
        task: Name of the task, None for an environment of the user's own.
        source: Data source of the task.

    Raises:
        ConfigurationError: If one of them is of another type or out of range.
    """

    observation_dim: int
    action_dim: int
    flow_steps: int
    velocity_scale: float
    include_time: bool = True
    include_previous_action: bool = False
    noise_scale: float = 1.0
    task: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        """Check what a checkpoint may have brought."""
        check_integers(
            1,
            observation_dim=self.observation_dim,
            action_dim=self.action_dim,
            flow_steps=self.flow_steps,
        )
        check_numbers("(0, inf)", velocity_scale=self.velocity_scale)
        check_numbers("[0, inf)", noise_scale=self.noise_scale)
        check_flags(
            include_time=self.include_time, include_previous_action=self.include_previous_action
        )
        for name in ("task", "source"):
            if not isinstance(getattr(self, name), str | None):
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}: it must be a name")

    @property
    def context_dim(self) -> int:
        """Width of what the velocity is conditioned on: s, and [a_prev, flag] where included."""
        extra = self.action_dim + 1 if self.include_previous_action else 0
        return self.observation_dim + extra

    @property
    def flow_observation_dim(self) -> int:
        """Width of the flow environment's observation: context, x_t, and t where included."""
        return self.context_dim + self.action_dim + int(self.include_time)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `gym.make`, beside the task's id, that make the flow environment again."""
        told_by_the_task = ("observation_dim", "action_dim", "task")
        return {name: v for name, v in asdict(self).items() if name not in told_by_the_task}

    @classmethod
    def of(cls, env: Any) -> FlowSpec:
        """Read the specification off a flow environment.

        Raises:
            ConfigurationError: If `env` is no flow environment.
        """

        def attribute(name: str) -> Any:
            return env.get_attr(name)[0]

        try:
            return cls(
                observation_dim=int(np.prod(attribute("outer_observation_space").shape)),
                action_dim=int(np.prod(attribute("outer_action_space").shape)),
                flow_steps=int(attribute("flow_steps")),
                velocity_scale=float(attribute("velocity_scale")),
                include_time=bool(attribute("include_time")),
                noise_scale=float(attribute("noise_scale")),
                include_previous_action=bool(attribute("include_previous_action")),
                task=attribute("task"),
                source=attribute("source"),
            )
        except AttributeError as error:
            raise ConfigurationError(
                "the agent needs a flow environment: pass gym.make('FlowMDP-<task>-v0') "
                f"or FlowMDPEnv(your_env) ({error})"
            ) from None
