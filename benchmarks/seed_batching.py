"""Whether several seeds in one process would pay: `python -m benchmarks.seed_batching`.

Trains the velocity networks of several seeds once one after another and once as one ensemble of
batched products (`EnsembleMlp`), which is what vectorising over seeds comes to, and prints how many
times faster that is. Measured on one CPU core: 1.36 at 256x3, 1.05 at 512x4; the critics, where
most of a step goes, are ensembles already. So `flowmdp bench` runs a process per seed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from flowmdp.agents.core.networks import Descent, EnsembleMlp
from flowmdp.agents.core.precision import fastest_precision

INPUT_DIM, OUTPUT_DIM, BATCH = 15, 3, 256  # Hopper's velocity field
SIZES = {"256x3": [256] * 3, "512x4": [512] * 4}
ROUNDS = 5  # turn about, so that both meet the same machine; the best counts


def step(network: EnsembleMlp, descent: Descent, inputs: torch.Tensor, bfloat16: bool) -> None:
    """One gradient step of every member on inputs of shape (batch, INPUT_DIM)."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bfloat16):
        loss = network(inputs).square().mean(dim=(1, 2)).sum()
    descent.step(loss)


def seconds(function: Callable[[], None], repeats: int) -> float:
    """Mean time of one call."""
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def measure(net_arch: list[int], seeds: int, device: torch.device, repeats: int) -> float:
    """How many times faster the ensemble is than its members one after another."""
    bfloat16 = fastest_precision(device) == "bfloat16"
    inputs = torch.randn(BATCH, INPUT_DIM, device=device)

    def make(members: int) -> Callable[[], None]:
        network = EnsembleMlp(INPUT_DIM, OUTPUT_DIM, net_arch, members).to(device)
        descent = Descent(network, 3e-4, 1.0)
        return lambda: step(network, descent, inputs, bfloat16)

    together, apart = make(seeds), [make(1) for _ in range(seeds)]

    def one_after_another() -> None:
        for one in apart:
            one()

    times = [
        (seconds(one_after_another, repeats), seconds(together, repeats)) for _ in range(ROUNDS)
    ]
    return min(a for a, _ in times) / min(b for _, b in times)


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=30, help="steps per timing")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, net_arch in SIZES.items():
        ratio = measure(net_arch, options.seeds, device, options.repeats)
        print(f"{name} on {device.type}: {options.seeds} seeds together {ratio:.2f}x as fast")


if __name__ == "__main__":
    main()
