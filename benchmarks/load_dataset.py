"""From a dataset in the store to the first gradient update: seconds and memory at 2 M transitions.

    python -m benchmarks.load_dataset
    python -m benchmarks.load_dataset --task halfcheetah-medium --chunk 5

Random numbers of the task's widths lie in a temporary store as Minari writes them. A fresh process
loads them from a warm cache and begins to train df-dir, 256x3 on the CPU: the normaliser, the first
update of the behaviour flow, the critic's targets from all transitions and its first update. Before
that it does the same with a single episode, so that imports do not count.

Memory is how far the resident set rises at most (VmHWM of /proc/self/status), networks and all,
over the size of the arrays: all those of the `TransitionDataset`, float32 and flags, next
observations included. Later the policy's start takes some 0.1 GB more, whatever the data.

On one thread of a shared Intel server, hopper: loaded in 3 s (Minari's iteration alone: 5 s), first
update after 5 s, memory 1.27 times the arrays; halfcheetah 1.18; hopper in chunks of five 1.45.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import re
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
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
from flowmdp.robot import RobotInterface
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
    robot = RobotInterface(outer.observation_space, outer.action_space)

    def made() -> Iterator[Episode]:
        for number in range(episodes):
            last = np.arange(n) == n - 1
            ends = last & (number % 2 == 0)
            yield Episode(
                seed=None,
                observations=rng.standard_normal((n + 1, robot.observation_dim)),
                actions=rng.uniform(-1, 1, (n, robot.action_dim)).astype(np.float32),
                rewards=rng.standard_normal(n),
                terminations=ends,
                truncations=last & ~ends,
            )

    with dataset_lock(dataset_id):
        write_dataset(dataset_id, outer, made(), {})


def resident(name: str) -> int:
    """Bytes of memory that are resident now (VmRSS), or were at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(rf"{name}:\s*(\d+)", status)[0])


def begin(config: Config, dataset_id: str) -> dict[str, float]:
    """Load and begin: seconds of both, bytes of the arrays and by which memory rose."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # nothing is free that could be filled unseen
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
    before, start = resident("VmRSS"), time.perf_counter()
    data = load_dataset(config.task, dataset_id=dataset_id)
    loaded = time.perf_counter()
    env = FlowMDPEnv(make_robot(config.task), dataset=data, chunk=config.chunk)
    agent = DFDir("MlpPolicy", env, seed=0, device="cpu", behavior_steps=1)
    agent.pretrain(callback=lambda: agent.pretrain_updates < 2)
    return {
        "load": loaded - start,
        "begin": time.perf_counter() - start,
        "arrays": sum(getattr(data, name).nbytes for name in WIDTHS),
        "rise": resident("VmHWM") - before,
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
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            _, found = (fresh.submit(begin, config, name).result() for name in (ONE, ALL))
    memory = found["rise"] / found["arrays"]
    print(f"{config.task}, {config.episodes * config.length:,} transitions", end=", ")
    print(f"{found['arrays'] / 1e6:.0f} MB of arrays: loaded in {found['load']:.2f} s", end=" ")
    print(f"(Minari's iteration alone: {theirs:.2f} s), first update after {found['begin']:.2f} s")
    print(f"peak memory {memory:.2f} times the arrays")
    return {"load": found["load"], "begin": found["begin"], "memory": memory}


if __name__ == "__main__":
    main(tyro.cli(Config))
