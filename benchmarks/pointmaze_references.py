"""Reference returns of the PointMaze tasks: uniform random actions (score 0), the planner (100).

    python -m benchmarks.pointmaze_references

Every number is the mean of 200 episodes of the task's horizon, seed 0, with its standard error. The
means stand in `flowmdp.envs.tasks.MAZES`. Takes about two minutes of one core.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

from flowmdp.envs.data.sources.collect import Episode, Recorder
from flowmdp.envs.data.sources.planner import plan_episodes
from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.tasks import get_task


@dataclass
class Config:
    """Play random actions and the planner in every maze."""

    episodes: int = 200
    seed: int = 0
    mazes: tuple[str, ...] = ("open", "umaze", "medium", "large")


def random_episodes(env: gym.Env[Any, Any], seed: int, horizon: int) -> Iterator[Episode]:
    """Yield episodes of uniform random actions without end."""
    for index in itertools.count():
        recorder = Recorder(env, seed, index, horizon)
        rng = np.random.default_rng([seed, index, 1])
        while recorder.episode is None:
            recorder.step(rng.uniform(-1, 1, 2).astype(np.float32))
        yield recorder.episode


def main(config: Config) -> dict[str, tuple[float, float]]:
    """Measure and print; task -> mean returns of random actions and of the planner."""
    found = {}
    names = [f"pointmaze-{maze}{reward}" for maze in config.mazes for reward in ("", "-dense")]
    for task in map(get_task, names):
        means = []
        env = make_outer(task.name)
        for play in (random_episodes, plan_episodes):
            episodes = itertools.islice(play(env, config.seed, task.horizon), config.episodes)
            returns = np.array([episode.rewards.sum() for episode in episodes])
            error = returns.std() / np.sqrt(config.episodes)
            print(f"{task.name:24} {play.__name__:16} {returns.mean():8.2f} ± {error:.2f}")
            means.append(float(returns.mean()))
        env.close()
        found[task.name] = (means[0], means[1])
    return found


if __name__ == "__main__":
    main(tyro.cli(Config))
