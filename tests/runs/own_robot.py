"""A robot of somebody else's package: an id to import, odd spaces, and a flow policy for it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from numpy.typing import NDArray

from flowmdp.behavior import as_behavior

Observation = dict[str, Any]


class Lopsided(gym.Env[Observation, NDArray[np.float64]]):
    """Pushed along a line; acts in [-1, 3] x [0, 0.5] in float64 and refuses what lies outside."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.action_space = Box(np.array([-1.0, 0.0]), np.array([3.0, 0.5]), dtype=np.float64)
        place: gym.Space[Any] = Box(-np.inf, np.inf, (2,), np.float64)
        self.observation_space = Dict({"place": place, "gear": Discrete(3)})
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(-1, 1, 2), 0
        return self.observed(), {}

    def step(
        self, action: NDArray[np.float64]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is outside")
        self.place = self.place + 0.1 * (action - [1.0, 0.25])
        self.steps += 1
        return self.observed(), -float(np.abs(self.place).sum()), False, False, {}

    def observed(self) -> Observation:
        return {"place": self.place.copy(), "gear": self.steps % 3}

    def render(self) -> Any:
        return np.full((16, 16, 3), self.steps, np.uint8)


gym.register("Lopsided-v0", f"{__name__}:Lopsided", max_episode_steps=15)


def velocity(observations: Any, x_t: Any, t: Any) -> Any:
    """Towards the middle of the robot's box."""
    return -x_t


policy = as_behavior(velocity, flow_steps=4, name=f"{__name__}:policy")
