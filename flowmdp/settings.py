"""What defines a flow MDP, apart from the robot, the data and the reward models.

The single and the vectorised environment are both built from one `FlowSettings`, so that they
cannot disagree about an argument's default, its range or the layout of an observation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from flowmdp.errors import ConfigurationError
from flowmdp.rewards import DIVERGENCES, REWARDS

STATES = ("env", "dataset")

VELOCITY_SCALE = 6.5
"""Velocity of a flow action of 1, in action units per unit of flow time.

On the straight path a velocity is x_1 - x_0 with x_0 ~ N(0, I) and |x_1| <= 1. A component leaves
[-c, c] with probability at most P(N(0, 1) > c - 1), which at c = 6.5 is 2e-8: less than one step in
a million for up to 50 action dimensions, even if all data actions lie on the bounds. [ours]
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
    velocity_scale: float = VELOCITY_SCALE
    include_time: bool = True
    include_previous_action: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.flow_steps, bool) or not isinstance(self.flow_steps, int | np.integer):
            raise ConfigurationError(f"flow_steps is {self.flow_steps!r}: it must be an integer")
        if self.flow_steps < 1:
            raise ConfigurationError(f"flow_steps is {self.flow_steps}: it must be at least 1")
        _choose("reward", self.reward, tuple(REWARDS))
        _choose("states", self.states, STATES)
        _choose("divergence", self.divergence, tuple(DIVERGENCES))
        if not (math.isfinite(self.velocity_scale) and self.velocity_scale > 0):
            raise ConfigurationError(
                f"velocity_scale is {self.velocity_scale}: it must be positive and finite"
            )
        if not (math.isfinite(self.rho) and self.rho >= 0):
            raise ConfigurationError(f"rho is {self.rho}: it must be zero or positive")
        needed = REWARDS[self.reward].states
        if needed is not None and self.states != needed:
            raise ConfigurationError(
                f"reward {self.reward!r} needs states={needed!r}, not {self.states!r}"
            )

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
