"""What CUDA graphs bring on a GPU: `python -m benchmarks.cuda_graphs`.

Gradient steps per second at 256x3 and 512x4, batch 256, 10 flow steps, on random transitions of
Hopper's widths: kernel by kernel, as recorded graphs, and of `--seeds` agents side by side in one
graph; and how many times the time of one such a step of all takes.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks.train_step import SIZES, make_agent
from flowmdp.agents.core.together import together


def rate(label: str, updates: int, seeds: int = 1, **kwargs: Any) -> float:
    """Updates per second of each agent within `learn`, without its first ones."""
    agents = [make_agent(label, device="cuda", **kwargs) for _ in range(seeds)]
    marks: list[float] = []

    def mark(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"] is agents[-1] and agents[-1].num_timesteps % 100 == 0:
            torch.cuda.synchronize()
            marks.append(time.perf_counter())
        return True

    together(agents, [a.learning(100 + updates, mark, log_interval=0) for a in agents])
    return (len(marks) - 1) * 100 / (marks[-1] - marks[0])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=1000, help="timed, in hundreds")
    parser.add_argument("--precision", default="auto", help="auto, float32, tfloat32, bfloat16")
    parser.add_argument("--seeds", type=int, default=10, help="agents side by side")
    parser.add_argument("--only", nargs="*", default=["flow-bc", "df-dir", "df-div"])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    device = torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {device}, precision {options.precision}")
    print(f"{'':12}{'network':>8}{'by kernels':>11}{'as graphs':>10}{'ratio':>7}", end="")
    print(f"{options.seeds:>7} seeds{'time':>7}")
    for size, net_arch in SIZES.items():
        for label in options.only:
            arguments = {"net_arch": net_arch, "precision": options.precision}
            kernels = rate(label, options.updates, cuda_graphs=False, **arguments)
            graphs = rate(label, options.updates, **arguments)
            several = rate(label, options.updates, options.seeds, **arguments)
            row = f"{label:12}{size:>8}{kernels:11.0f}{graphs:10.0f}{graphs / kernels:7.1f}"
            print(f"{row}{several:13.0f}{graphs / several:7.1f}", flush=True)


if __name__ == "__main__":
    main()
