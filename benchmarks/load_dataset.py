"""From a dataset in the store to the first gradient update: seconds and memory, for 2 M transitions.

    python -m benchmarks.load_dataset
    python -m benchmarks.load_dataset --task halfcheetah-medium --chunk 5

Random numbers of the task's widths lie in a temporary store as Minari writes them. A fresh process
loads them from a warm cache and begins to train df-dir, 256x3 on the CPU: the normaliser, the
critic's first targets from all transitions, one update of each network. Before that it does the
same with a single episode, so that what imports and networks take is left out.

Memory is how much higher its resident set peaks (VmHWM of /proc/self/status) than with the single
episode, over the size of the arrays: all those of the `TransitionDataset`, float32 and flags, next
observations included.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import minari
import numpy as np
import tyro

from flowmdp.agents import DFDir
from flowmdp.env import FlowMDPEnv
from flowmdp.envs.data import load_dataset
from flowmdp.envs.data.sources.build import write_dataset
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.data.store import dataset_lock
from flowmdp.envs.robots.outer import make_outer, make_robot
from flowmdp.transitions import WIDTHS

ALL, ONE = "benchmark/all-v0", "benchmark/one-v0"


@dataclass
class Config:
    """Write a dataset of random numbers into a temporary store, load it and begin to train."""

    task: str = "hopper-medium"
    episodes: int = 2_000
    length: int = 1_000
    """Steps of every episode."""
    chunk: int = 1
    """Actions per decision."""


def write(config: Config, dataset_id: str, episodes: int) -> None:
    """Put episodes of random numbers into the store; every second one terminates."""
    outer, n, rng = make_outer(config.task), config.length, np.random.default_rng(0)
    widths = [space.shape[0] for space in (outer.observation_space, outer.action_space)]

    def made() -> Iterator[Episode]:
        for number in range(episodes):
            last = np.arange(n) == n - 1
            ends = last & (number % 2 == 0)
            yield Episode(
                seed=None,
                observations=rng.standard_normal((n + 1, widths[0])),
                actions=rng.uniform(-1, 1, (n, widths[1])).astype(np.float32),
                rewards=rng.standard_normal(n),
                terminations=ends,
                truncations=last & ~ends,
            )

    with dataset_lock(dataset_id):
        write_dataset(dataset_id, outer, made(), {})


def begin(config: Config, dataset_id: str) -> dict[str, float]:
    """Load and train one step: seconds of both, bytes of the arrays and the process's peak."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
    start = time.perf_counter()
    data = load_dataset(config.task, dataset_id=dataset_id)
    loaded = time.perf_counter()
    env = FlowMDPEnv(make_robot(config.task), dataset=data, chunk=config.chunk)
    DFDir("MlpPolicy", env, seed=0, device="cpu", behavior_steps=1, critic_steps=1).learn(1)
    return {
        "load": loaded - start,
        "begin": time.perf_counter() - start,
        "arrays": sum(getattr(data, name).nbytes for name in WIDTHS),
        "peak": 1024 * int(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[0]),
    }


def main(config: Config) -> dict[str, float]:
    """Measure; seconds of the load and to the first update, and peak memory over the arrays."""
    with tempfile.TemporaryDirectory() as store:
        os.environ["MINARI_DATASETS_PATH"] = store
        write(config, ALL, config.episodes)
        write(config, ONE, 1)
        start = time.perf_counter()
        deque(minari.load_dataset(ALL).iterate_episodes(), maxlen=0)  # warms the cache, too
        theirs = time.perf_counter() - start
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
            _, one, found = (fresh.apply(begin, (config, name)) for name in (ONE, ONE, ALL))
    memory = (found["peak"] - one["peak"]) / (found["arrays"] - one["arrays"])
    print(f"{config.task}, {config.episodes * config.length:,} transitions", end=", ")
    print(f"{found['arrays'] / 1e6:.0f} MB of arrays: loaded in {found['load']:.2f} s", end=" ")
    print(f"(Minari's iteration alone: {theirs:.2f} s), first update after {found['begin']:.2f} s")
    print(f"peak memory {memory:.2f} times the arrays")
    return {"load": found["load"], "begin": found["begin"], "memory": memory}


if __name__ == "__main__":
    main(tyro.cli(Config))
