"""A robot, a dataset and reward models small enough to know by heart, for the tests."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict
from numpy.typing import NDArray

from flowmdp.env import FlowMDPEnv
from flowmdp.transitions import TransitionDataset

Float = NDArray[np.float32]


class PointRobot(gym.Env[NDArray[np.float64], Float]):
    """A point in the plane moved by the action; ends beyond 2, truncates after 20 steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.render_mode = render_mode
        self.frames = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.1, 0.1, 2)
        self.steps = 0
        return self.position.copy(), {"seed": seed, "options": options}

    def step(self, action: Float) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        self.position = self.position + 0.5 * action
        self.steps += 1
        reward = 1.0 - float(np.abs(action).sum())
        ended = bool(np.abs(self.position).max() > 2)
        return self.position.copy(), reward, ended, self.steps >= 20, {"steps": self.steps}

    def render(self) -> Any:
        self.frames += 1
        return np.full((8, 8, 3), self.steps, np.uint8) if self.render_mode else None


class GoalRobot(gym.ObservationWrapper[dict[str, NDArray[np.float64]], Float, Any]):
    """The point robot with a goal, observed as PointMaze and Fetch do: a Dict of three Boxes."""

    goal = np.array([0.5, -0.5])

    def __init__(self) -> None:
        super().__init__(PointRobot())
        box = Box(-np.inf, np.inf, (2,), np.float64)
        names = ("observation", "achieved_goal", "desired_goal")
        space: gym.Space[Any] = Dict({name: box for name in names})
        self.observation_space = space

    def observation(self, observation: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return {
            "observation": observation,
            "achieved_goal": observation,
            "desired_goal": self.goal,
        }


def toy_dataset(size: int = 40, obs_dim: int = 2, action_dim: int = 2) -> TransitionDataset:
    """Episodes of 10 steps with random contents."""
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((size, obs_dim), np.float32)
    actions = rng.uniform(-1, 1, (size, action_dim)).astype(np.float32)
    starts = np.arange(size) % 10 == 0
    previous = np.roll(actions, 1, axis=0)
    previous[starts] = 0
    return TransitionDataset(
        id="toy",
        observations=observations,
        actions=actions,
        rewards=np.ones(size, np.float32),
        next_observations=np.roll(observations, -1, axis=0),
        terminations=np.zeros(size, np.bool_),
        truncations=np.roll(starts, -1),
        previous_actions=previous,
        starts=starts,
    )


def critic(observations: Float, actions: Float) -> Float:
    """The value -||a - s||^2 of the point robot: best is to act as observed."""
    value: Float = -np.square(actions - observations).sum(-1)
    return value


def aim(observations: Float, actions: Float) -> Float:
    """A critic with a known optimum: value 0 for the action (0.5, -0.5), at every state."""
    value: Float = -np.square(actions - np.array([0.5, -0.5], np.float32)).sum(-1)
    return value


def behavior(observations: Float, x_t: Float, t: Float) -> Float:
    """Velocity of the straight path from x_t to the action s / 2."""
    remaining: Float = np.maximum(1 - t, np.float32(0.05))
    return (observations / np.float32(2) - x_t) / remaining


def make_toy(**arguments: Any) -> FlowMDPEnv:
    """A flow environment around the point robot, or on toy data, with both models."""
    outer = None if arguments.get("states") == "dataset" else PointRobot()
    models: dict[str, Any] = {"critic": critic, "behavior": behavior}
    return FlowMDPEnv(outer, **{"dataset": toy_dataset(), **models, **arguments})
