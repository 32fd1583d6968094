"""Time and memory of `load_dataset` on a million hopper transitions, beside Minari's own reading.

    python -m benchmarks.load_dataset
    python -m benchmarks.load_dataset --episodes 200 --length 500

On one core of an AMD EPYC server: 0.5 s (Minari's iteration alone, without building the flat
arrays: 1.0 s), peak memory 1.01 times the arrays.
"""

from __future__ import annotations

import os
import tempfile
import time
import tracemalloc
from collections import deque
from dataclasses import dataclass

import minari
import numpy as np
import tyro

from flowmdp.envs.data import load_dataset
from flowmdp.envs.data.sources.build import write_dataset
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.data.store import dataset_lock
from flowmdp.envs.robots.outer import make_outer
from flowmdp.transitions import WIDTHS

ID, TASK = "benchmark/million-v0", "hopper-medium"


@dataclass
class Config:
    """Write a dataset of random numbers into a temporary store and load it."""

    episodes: int = 2_000
    length: int = 500
    """Steps of every episode."""


def main(config: Config) -> dict[str, float]:
    """Measure; seconds of a load from a warm cache, and peak memory over the arrays' size."""
    with tempfile.TemporaryDirectory() as store:
        os.environ["MINARI_DATASETS_PATH"] = store
        outer, n = make_outer(TASK), config.length
        rng, ends = np.random.default_rng(0), np.arange(n) == n - 1
        episodes = (
            Episode(
                seed=None,
                observations=rng.standard_normal((n + 1, 11)),
                actions=rng.uniform(-1, 1, (n, 3)).astype(np.float32),
                rewards=rng.standard_normal(n),
                terminations=ends,
                truncations=np.zeros_like(ends),
            )
            for _ in range(config.episodes)
        )
        with dataset_lock(ID):
            write_dataset(ID, outer, episodes, {})
        load_dataset(TASK, dataset_id=ID)  # warms the cache
        start = time.perf_counter()
        data = load_dataset(TASK, dataset_id=ID)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        deque(minari.load_dataset(ID).iterate_episodes(), maxlen=0)
        theirs = time.perf_counter() - start
        arrays = sum(getattr(data, name).nbytes for name in WIDTHS)
        steps = len(data)
        del data
        tracemalloc.start()
        load_dataset(TASK, dataset_id=ID)
        memory = tracemalloc.get_traced_memory()[1] / arrays
        tracemalloc.stop()
    print(f"{steps:,} transitions: {ours:.2f} s, Minari's iteration {theirs:.2f} s", end="; ")
    print(f"peak memory {memory:.2f} times the {arrays / 1e6:.0f} MB of arrays")
    return {"seconds": ours, "minari_seconds": theirs, "memory": memory}


if __name__ == "__main__":
    main(tyro.cli(Config))
