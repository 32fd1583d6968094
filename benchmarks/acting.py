"""How long one action of a flow policy takes: `python -m benchmarks.acting`.

Microseconds on one thread for one robot and ten flow steps, of Hopper's widths, at 256x3 and 512x4,
the best of many turns: `agent.outer_policy().predict`, and the file of `flowmdp export`, run by
onnxruntime. `--jax PYTHON` also times the same chain jitted by JAX (benchmarks/acting_jax.py).
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks.train_step import SIZES, make_agent
from flowmdp.runs.export import export

ROUNDS, TURNS, CALLS = 3, 100, 10


def microseconds(function: Callable[[], Any]) -> float:
    """Of one call, the best mean over a turn."""
    times = []
    for _ in range(TURNS):
        start = time.perf_counter()
        for _ in range(CALLS):
            function()
        times.append(time.perf_counter() - start)
    return min(times) / CALLS * 1e6


def exported(agent: Any, folder: str) -> Callable[[], Any]:
    """One action by the exported file."""
    path, options = Path(folder) / "policy.onnx", onnxruntime.SessionOptions()
    export(agent, path)
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    rng, spec = np.random.default_rng(0), agent.spec
    inputs = {
        "observations": rng.standard_normal((1, spec.observation_dim), np.float32),
        "noise": rng.standard_normal((1, spec.action_dim), np.float32),
    }
    return lambda: session.run(None, inputs)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jax", type=Path, help="a Python that has jax")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for size, net_arch in SIZES.items():
        agent = make_agent("flow-bc", net_arch=net_arch, precision="float32")
        observation = np.zeros(agent.spec.observation_dim, np.float32)
        ways: dict[str, Callable[[], Any]] = {}
        ways["predict"] = partial(agent.outer_policy().predict, observation)
        with tempfile.TemporaryDirectory() as folder:
            ways["onnx"] = exported(agent, folder)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                found[name].append(microseconds(way))
            if options.jax:
                script = str(Path(__file__).with_name("acting_jax.py"))
                command = [str(options.jax), script, *map(str, net_arch)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.setdefault("jax", []).append(float(done.stdout))
        print(size, ", ".join(f"{name} {min(times):.0f} us" for name, times in found.items()))


if __name__ == "__main__":
    main()
