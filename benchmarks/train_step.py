"""How fast the agents learn: `python -m benchmarks.train_step`.

Prints, for every agent at 256x3 and 512x4 (batch 256, its own flow steps), in float32 and bfloat16:
gradient steps per second, the counted GFLOP of one step's matrix products, and the part of the
step that they would take at the rate of a bare product of 256 rows, which is measured turn about.
`--jax PYTHON` also runs FQL's update in JAX (benchmarks/fql_jax.py) with that interpreter, turn
about. No simulator, no dataset: random transitions of Hopper's widths cost what real ones do.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from flowmdp.agents import ALGORITHMS
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.env import FlowMDPEnv
from flowmdp.transitions import TransitionDataset

SIZES = {"256x3": [256] * 3, "512x4": [512] * 4}
BATCH, ROUNDS = 256, 3
AGENTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ALGORITHMS},
    "df-dir iql": ("df-dir", {"critic": "iql"}),
    "df-div iql": ("df-div", {"critic": "iql"}),
    "df-div adj": ("df-div", {"flow_value": "adjoint"}),
}
"""Label -> algorithm, and hyper-parameters."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random_data(n: int = 10_000) -> TransitionDataset:
    """Random transitions as wide as Hopper's, in episodes of 100."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (n, 3)).astype(np.float32)
    starts = np.arange(n) % 100 == 0
    return TransitionDataset(
        id="random",
        observations=rng.standard_normal((n, 11), np.float32),
        actions=actions,
        rewards=rng.standard_normal(n, np.float32),
        next_observations=rng.standard_normal((n, 11), np.float32),
        terminations=np.zeros(n, np.bool_),
        truncations=np.roll(starts, -1),
        previous_actions=np.zeros_like(actions),
        starts=starts,
    )


def make_agent(label: str, **kwargs: Any) -> FlowAlgorithm:
    """An agent of the table that has its data and its optimisers' state."""
    name, own = AGENTS[label]
    cls, data = ALGORITHMS[name], random_data()
    suited = cls.environment_of(cls.config_class.of(own))
    settings = {"flow_steps": cls.only_flow_steps or 10, **suited}
    env = FlowMDPEnv(states="dataset", reward="data", dataset=data, **settings)
    parts = ("behavior_steps", "critic_steps", "value_steps")
    fitted = {steps: 0 for steps in parts if steps in cls.config_class.names()}
    agent: FlowAlgorithm = cls(
        "MlpPolicy", env, batch_size=BATCH, seed=0, **{"device": "cpu", **fitted, **own, **kwargs}
    )
    return agent.learn(5, log_interval=0)


class Flops(TorchDispatchMode):
    """Counts matrix products; `FlopCounterMode` itself cannot look into `autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count it."""
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median time of one call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def measure(
    label: str, precision: str, net_arch: list[int], repeats: int
) -> tuple[float, float, float]:
    """Updates per second, GFLOP of one, and GFLOP per second of a bare product."""
    agent = make_agent(label, precision=precision, net_arch=net_arch)
    with Flops() as counter:
        agent.update()
    rows, weight = (
        torch.randn(size, net_arch[0], dtype=DTYPES[precision]) for size in (BATCH, net_arch[0])
    )
    update, bare = [], []
    for _ in range(ROUNDS):  # turn about, so that both meet the same machine
        bare.append(seconds(lambda: rows @ weight, 10 * repeats))
        update.append(seconds(agent.update, repeats))
    rate = 2 * rows.numel() * len(weight) / min(bare)
    return 1 / min(update), counter.total / 1e9, rate / 1e9


def against_jax(python: Path, net_arch: list[int], repeats: int) -> str:
    """Updates per second of FQL with its paper's critic, in JAX and here; the best of turns."""
    given = {**ALGORITHMS["fql"].paper, "net_arch": net_arch}
    agents = {one: make_agent("fql", precision=one, **given) for one in DTYPES}
    script = [str(python), str(Path(__file__).with_name("fql_jax.py")), *map(str, net_arch)]
    rates: dict[str, list[float]] = {name: [] for name in ("jax", *agents)}
    for _ in range(ROUNDS):
        done = subprocess.run(script, capture_output=True, text=True, check=True)
        rates["jax"].append(float(done.stdout))
        for precision, agent in agents.items():
            rates[precision].append(1 / seconds(agent.update, repeats))
    return ", ".join(f"{name} {max(found):.1f}" for name, found in rates.items())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="updates per timing, three times")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--only", nargs="*", default=list(AGENTS), help="agents, by their names")
    parser.add_argument("--precision", nargs="*", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--jax", type=Path, help="a Python that has jax and optax")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(
        f"{'':12}{'network':>8}{'precision':>10}{'updates/s':>10}{'GFLOP':>7}{'GFLOP/s':>8}  share"
    )
    for size, net_arch in SIZES.items():
        for label in options.only:
            for precision in options.precision:
                rate, flop, bare = measure(label, precision, net_arch, options.repeats)
                row = f"{label:12}{size:>8}{precision:>10}{rate:10.1f}{flop:7.2f}{bare:8.0f}"
                print(f"{row}{flop * rate / bare:7.0%}", flush=True)
        if options.jax:
            found = against_jax(options.jax, net_arch, options.repeats)
            print(f"fql at {size}, updates/s: {found}", flush=True)


if __name__ == "__main__":
    main()
