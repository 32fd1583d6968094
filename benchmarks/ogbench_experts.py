"""How fast OGBench's experts record: the plain environment, the lean one, and several processes.

python -m benchmarks.ogbench_experts [NAME]
"""

from __future__ import annotations

import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from flowmdp.envs.data.sources import manipulation
from flowmdp.envs.data.sources.kept import cores, record
from flowmdp.envs.data.sources.manipulation import Experts

ROUNDS, STEPS = 4, 300


def main(name: str = "scene-play") -> None:
    """Print steps a second, and their ratio to the plain environment's."""
    manipulation.TRANSITIONS = STEPS
    ways = {"plain": Experts(name, lean=False), "lean": Experts(name)}
    for experts in ways.values():
        experts.record(0, 0, 2)  # builds the model
    seconds = dict.fromkeys(ways, 0.0)
    for index in range(ROUNDS):  # in turn: the machine may do other things too
        for way, experts in ways.items():
            begun = time.perf_counter()
            experts.record(0, index, STEPS)
            seconds[way] += time.perf_counter() - begun
    speeds = {way: ROUNDS * STEPS / taken for way, taken in seconds.items()}
    jobs = cores()
    done = [time.perf_counter() for _ in record(name, 0, range((ROUNDS + 1) * jobs), jobs)]
    speeds[f"lean, {jobs} processes"] = ROUNDS * jobs * STEPS / (done[-1] - done[jobs - 1])
    for way, speed in speeds.items():
        print(f"{way:20} {speed:6.0f} steps a second, {speed / speeds['plain']:.2f} times as many")


if __name__ == "__main__":
    main(*sys.argv[1:])
