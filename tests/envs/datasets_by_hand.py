"""Minari datasets written by hand into the test's own store: a few episodes of known numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from flowmdp.envs.data.sources.build import write_dataset
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.data.store import dataset_lock
from flowmdp.envs.robots.outer import make_outer

OBS_DIM, ACTION_DIM = 11, 3


def episode(
    length: int, terminated: bool = False, truncated: bool = False, seed: int = 0
) -> Episode:
    """An episode of random numbers whose last step carries the given flags."""
    rng = np.random.default_rng(seed)
    ends = np.arange(length) == length - 1
    return Episode(
        seed=seed,
        observations=rng.standard_normal((length + 1, OBS_DIM)),
        actions=rng.uniform(-1, 1, (length, ACTION_DIM)).astype(np.float32),
        rewards=rng.standard_normal(length),
        terminations=ends & terminated,
        truncations=ends & truncated,
    )


def write(
    dataset_id: str,
    episodes: Sequence[Episode],
    task: str = "hopper-medium",
    env: gym.Env[Any, Any] | None = None,
    **metadata: Any,
) -> str:
    """Write episodes as a dataset of the task's outer environment, or another; returns its id."""
    outer = make_outer(task) if env is None else env
    with dataset_lock(dataset_id):
        write_dataset(dataset_id, outer, episodes, metadata)
    outer.close()
    return dataset_id
