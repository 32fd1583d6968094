"""One action of a ten-step flow jitted by JAX, for `python -m benchmarks.acting --jax PYTHON`."""

# mypy: ignore-errors
from __future__ import annotations

import itertools
import os
import sys
import time

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import jax.numpy as jnp
import numpy as np

OBSERVATION, ACTION, FLOW_STEPS, TURNS, CALLS = 11, 3, 10, 100, 10


def main(net_arch):
    """Print microseconds, the best mean over a turn."""
    rng, widths = np.random.default_rng(0), [OBSERVATION + ACTION + 1, *net_arch, ACTION]
    layers = [
        (jnp.array(rng.standard_normal((i, o), np.float32) / i**0.5), jnp.zeros(o))
        for i, o in itertools.pairwise(widths)
    ]

    def velocity(x):
        *inner, (weight, bias) = layers
        for w, b in inner:
            x = jax.nn.gelu(x @ w + b, approximate=False)
        return x @ weight + bias

    @jax.jit
    def act(s, x):
        for k in range(FLOW_STEPS):
            t = jnp.full_like(x[:, :1], k / FLOW_STEPS)
            x = x + velocity(jnp.concatenate([s, x, t], -1)) / FLOW_STEPS
        return x.clip(-1, 1)

    s, x = (rng.standard_normal((1, width), np.float32) for width in (OBSERVATION, ACTION))
    times = []
    for _ in range(TURNS):
        start = time.perf_counter()
        for _ in range(CALLS):
            np.asarray(act(s, x))
        times.append(time.perf_counter() - start)
    print(f"{min(times[1:]) / CALLS * 1e6:.0f}")


if __name__ == "__main__":
    main([int(width) for width in sys.argv[1:]])
