"""What defines a flow MDP, apart from the robot, the data and the reward models.

The single and the vectorised environment are both built from one `FlowSettings`, so that they
cannot disagree about an argument's default, its range or the layout of an observation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from gymnasium.spaces import Box

from flowmdp.arguments import AtLeast, Range, check_fields
from flowmdp.errors import ConfigurationError, UnknownArgumentError

Steps = Annotated[int, AtLeast(1, 10_000)]
Width = Annotated[int, AtLeast(1, 1_000_000)]
Chunk = Annotated[int, AtLeast(1, 1_000)]
Positive = Annotated[float, Range("(0, 1e6]")]
NotNegative = Annotated[float, Range("[0, 1e6]")]

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

    flow_steps: Steps = 10
    reward: Literal["return", "direction", "divergence", "data"] = "return"
    states: Literal["env", "dataset"] = "env"
    rho: NotNegative = 1.0
    divergence: Literal["squared", "smooth_norm", "cosine", "gaussian_kl"] = "squared"
    velocity_scale: Positive | None = None
    action_mode: Literal["velocity", "residual"] = "velocity"
    noise_std: NotNegative = 0.0
    noise_scale: NotNegative = 1.0
    include_time: bool = True
    include_previous_action: bool = False
    chunk: Chunk = 1

    def __post_init__(self) -> None:
        check_fields(self)
        needed = {"return": "env", "data": "dataset"}.get(self.reward, self.states)
        if self.states != needed:
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
        critic = self.reward in ("direction", "divergence")
        behavior = self.reward == "divergence" or self.action_mode == "residual"
        return ("critic",) * critic + ("behavior",) * behavior

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> FlowSettings:
        """Settings from keyword arguments; a misspelt name is an UnknownArgumentError."""
        known = [field.name for field in fields(cls)]
        for name in arguments:
            if name not in known:
                raise UnknownArgumentError(
                    f"unexpected keyword argument {name!r}: choose among {', '.join(known)}"
                )
        return cls(**arguments)


@dataclass(frozen=True)
class FlowSpec:
    """The flow state, [s, x_t, (t), (a_{n-1}, its flag)], and how it moves.

    Both environments build one and show it as `flow_spec`; agents read it there and keep it in
    every checkpoint.

    Attributes:
        observation_dim: Width of the outer observation s.
        action_dim: Width of x_t and of every flow action: `chunk` times the robot's.
        flow_steps: Flow steps per chain.
        velocity_scale: Velocity of flow action 1.
        include_time: Whether the flow observation holds t.
        include_previous_action: Whether it holds a_{n-1}, the robot's last action, with a flag that
            is 0 at an episode's first action.
        noise_scale: Standard deviation of the noise x_0 from which chains start.
        task: Name of the task, None for an environment of the user's own.
        source: Data source of the task.
        chunk: The robot's actions that one chain decides, one after another in x_t.

    Raises:
        ConfigurationError: If one of them is of another type or out of range.
    """

    observation_dim: Width
    action_dim: Width
    flow_steps: Steps
    velocity_scale: Positive
    include_time: bool = True
    include_previous_action: bool = False
    noise_scale: NotNegative = 1.0
    task: str | None = None
    source: str | None = None
    chunk: Chunk = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.action_dim % self.chunk:
            raise ConfigurationError(
                f"action_dim={self.action_dim} is no multiple of chunk={self.chunk}: it must be "
                "chunk times the robot's"
            )

    @property
    def robot_action_dim(self) -> int:
        """Width of one action of the robot."""
        return self.action_dim // self.chunk

    @cached_property
    def state(self) -> slice:
        """Where s lies in a flow observation."""
        return slice(0, self.observation_dim)

    @cached_property
    def point(self) -> slice:
        """Where x_t lies."""
        return slice(self.observation_dim, self.observation_dim + self.action_dim)

    @cached_property
    def t(self) -> slice:
        """Where the flow time lies; empty without `include_time`."""
        return slice(self.point.stop, self.point.stop + self.include_time)

    @cached_property
    def previous_action(self) -> slice:
        """Where a_{n-1} lies, with the flag behind it; empty without `include_previous_action`."""
        start = self.t.stop
        return slice(start, start + self.robot_action_dim * self.include_previous_action)

    @property
    def context_dim(self) -> int:
        """Width of what the velocity is conditioned on: s, and [a_prev, flag] where included."""
        return self.observation_dim + (self.robot_action_dim + 1) * self.include_previous_action

    @property
    def flow_observation_dim(self) -> int:
        """Width of the flow environment's observation: context, x_t, and t where included."""
        return self.context_dim + self.action_dim + self.include_time

    def space(self) -> Box[np.float32]:
        """The observation space: t and flag in [0, 1], a_{n-1} in [-1, 1], the rest unbounded."""
        high = np.full(self.flow_observation_dim, np.inf, np.float32)
        low = -high
        flag = slice(self.previous_action.stop, None)
        for part, bounds in ((self.t, (0, 1)), (self.previous_action, (-1, 1)), (flag, (0, 1))):
            low[part], high[part] = bounds
        return Box(low, high, dtype=np.float32)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `gym.make`, beside the task's id, that make the flow environment again."""
        told_by_the_task = ("observation_dim", "action_dim", "task")
        return {name: v for name, v in asdict(self).items() if name not in told_by_the_task}

    @classmethod
    def of(cls, env: Any) -> FlowSpec:
        """The specification of a Stable-Baselines3 VecEnv of flow environments.

        Raises:
            ConfigurationError: If `env` is no flow environment.
        """
        try:
            spec: FlowSpec = env.get_attr("flow_spec", indices=[0])[0]
        except (AttributeError, EOFError, ConnectionError) as error:  # a worker dies of the first
            raise ConfigurationError(
                "the agent needs a flow environment: pass gym.make('FlowMDP-<task>-v0') "
                f"or FlowMDPEnv(your_env) ({error})"
            ) from None
        return spec
