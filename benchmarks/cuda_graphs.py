"""What CUDA graphs bring on a GPU: `python -m benchmarks.cuda_graphs`.

Gradient steps per second of FlowBC, DF-dir and DF-div, kernel by kernel and as recorded graphs, at
256x3 and 512x4, batch 256, 10 flow steps, on random transitions of Hopper's widths.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks.train_step import AGENTS, SIZES, random_data
from flowmdp.agents import FlowBC
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.env import FlowMDPEnv


def rate(cls: type[FlowAlgorithm], updates: int, **kwargs: Any) -> float:
    """Updates per second within `learn`, without its first ones."""
    env = FlowMDPEnv(states="dataset", reward="data", dataset=random_data(), flow_steps=10)
    agent = cls("MlpPolicy", env, batch_size=256, seed=0, device="cuda", **kwargs)
    marks: list[float] = []

    def mark(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps % 100 == 0:
            torch.cuda.synchronize()
            marks.append(time.perf_counter())
        return True

    agent.learn(100 + updates, callback=mark, log_interval=0)
    return (len(marks) - 1) * 100 / (marks[-1] - marks[0])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=1000, help="timed, in hundreds")
    parser.add_argument("--precision", default="auto", help="auto, float32, tfloat32, bfloat16")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    device = torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {device}, precision {options.precision}")
    print(f"{'':12}{'network':>9}{'by kernels':>12}{'as graphs':>11}{'ratio':>7}")
    for size, net_arch in SIZES.items():
        for name, (cls, kwargs) in AGENTS.items():
            steps = {} if cls is FlowBC else {"behavior_steps": 0, "critic_steps": 0}
            arguments = {**kwargs, **steps, "policy_kwargs": {"net_arch": net_arch}}
            arguments["precision"] = options.precision
            kernels, graphs = (
                rate(cls, options.updates, cuda_graphs=graphed, **arguments)
                for graphed in (False, True)
            )
            ratio = graphs / kernels
            print(f"{name:12}{size:>9}{kernels:12.0f}{graphs:11.0f}{ratio:7.1f}", flush=True)


if __name__ == "__main__":
    main()
