"""Robots small enough to learn from within seconds, for the tests of learning online."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from flowmdp.env import FlowMDPEnv
from flowmdp.transitions import TransitionDataset
from flowmdp.whole_chain import ActionEnv

Float = NDArray[np.float32]


class Line(gym.Env[Float, Float]):
    """A point on a line: moved by half the action, paid -x^2; 10 steps, ends beyond 1.5."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[Float, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.steps = float(self.np_random.uniform(-1, 1)), 0
        return np.array([self.x], np.float32), {}

    def step(self, action: Float) -> tuple[Float, float, bool, bool, dict[str, Any]]:
        self.x += 0.5 * float(action[0])
        self.steps += 1
        observed = np.array([self.x], np.float32)
        return observed, -(self.x**2), abs(self.x) > 1.5, self.steps == 10, {}


class Bandit(gym.Env[Float, Float]):
    """The robot of `toys.two_modes`: one step, which earns the more the nearer to 0.5."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[Float, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.standard_normal(1, np.float32), {}

    def step(self, action: Float) -> tuple[Float, float, bool, bool, dict[str, Any]]:
        earned = float(np.exp(-10 * (action[0] - 0.5) ** 2))
        return np.zeros(1, np.float32), earned, True, False, {}


def line_data(episodes: int = 60) -> TransitionDataset:
    """Episodes of a = -x and noise: better than nothing, worse than -2 x."""
    env, rng, recorded = Line(), np.random.default_rng(0), []
    for seed in range(episodes):
        observations, actions, rewards, ended = [env.reset(seed=seed)[0]], [], [], False
        terminated = False
        while not ended:
            action = np.clip(-observations[-1] + 0.5 * rng.standard_normal(1), -1, 1)
            observed, reward, terminated, truncated, _ = env.step(action.astype(np.float32))
            observations.append(observed)
            actions.append(action)
            rewards.append(reward)
            ended = terminated or truncated
        recorded.append(
            {
                "observations": np.stack(observations),
                "actions": np.stack(actions).astype(np.float32),
                "rewards": np.array(rewards),
                "terminations": terminated,
            }
        )
    return TransitionDataset.from_episodes(recorded, Line.observation_space, Line.action_space)


def whole(make: Callable[[], Any] = Line, **settings: Any) -> Callable[[], ActionEnv]:
    """A function that makes a robot in whole actions, or chunks."""
    return lambda: ActionEnv(FlowMDPEnv(make(), **settings))
