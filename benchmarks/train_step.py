"""How fast the agents learn: `python -m benchmarks.train_step`.

Prints gradient steps per second of FlowBC, DF-dir and DF-div (critic "td", which goes on learning;
and "iql", which does not) at 256x3 and 512x4, batch 256, 10 flow steps, in float32 and bfloat16;
and the share of that time which the bare matrix products of one step take: the same shapes, strides
and types, replayed without anything between them. No simulator, no dataset: random transitions of
Hopper's widths, which cost what real ones cost.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flowmdp.agents import DFDir, DFDiv, FlowBC
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.env import FlowMDPEnv
from flowmdp.transitions import TransitionDataset

SIZES = {"256x3": [256] * 3, "512x4": [512] * 4}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
AGENTS: dict[str, tuple[type[FlowAlgorithm], dict[str, Any]]] = {
    "FlowBC": (FlowBC, {}),
    "DF-dir td": (DFDir, {"critic": "td"}),
    "DF-dir iql": (DFDir, {"critic": "iql"}),
    "DF-div td": (DFDiv, {"critic": "td"}),
    "DF-div iql": (DFDiv, {"critic": "iql"}),
}


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


class Products(TorchDispatchMode):
    """Records the operands of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], list[torch.Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket.__name__ in PRODUCTS:
            self.calls.append((func, [operand.detach() for operand in args]))
        return func(*args, **(kwargs or {}))


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median time of one call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def measure(cls: type[FlowAlgorithm], repeats: int, **kwargs: Any) -> tuple[float, float]:
    """Updates per second, and the share of the time that the bare products take."""
    env = FlowMDPEnv(states="dataset", reward="data", dataset=random_data(), flow_steps=10)
    agent = cls("MlpPolicy", env, batch_size=256, seed=0, device="cpu", **kwargs)
    agent.learn(5, log_interval=0)  # places the data, makes the optimisers' state
    with Products() as products:
        agent.update()

    def replay() -> None:
        for product, operands in products.calls:
            product(*operands)

    with torch.no_grad():
        replay()
        update, bare = [], []
        for _ in range(3):  # turn about, so that both meet the same machine
            bare.append(seconds(replay, repeats))
            with torch.enable_grad():
                update.append(seconds(agent.update, repeats))
    return 1 / min(update), min(bare) / min(update)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="updates per timing, three times")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; all by default")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'':12}{'network':>9}{'precision':>11}{'updates/s':>11}{'of products':>13}")
    for size, net_arch in SIZES.items():
        for name, (cls, kwargs) in AGENTS.items():
            steps = {} if cls is FlowBC else {"behavior_steps": 0, "critic_steps": 0}
            for precision in ("float32", "bfloat16"):
                rate, share = measure(
                    cls,
                    options.repeats,
                    precision=precision,
                    policy_kwargs={"net_arch": net_arch},
                    **kwargs,
                    **steps,
                )
                print(f"{name:12}{size:>9}{precision:>11}{rate:11.1f}{share:12.0%}", flush=True)


if __name__ == "__main__":
    main()
