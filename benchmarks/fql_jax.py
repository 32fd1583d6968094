"""FQL's update in JAX, for comparison: `python -m benchmarks.train_step --jax PYTHON` runs it.

PYTHON is an interpreter that has jax and optax; nothing else of this project is needed. The same
networks, batch and flow steps as `flowmdp.agents.FQL`'s, written after Park et al. 2025
(arXiv:2502.02538); as in the paper, the behaviour flow learns in the same update.

    python benchmarks/fql_jax.py 256 256 256
"""

# mypy: ignore-errors
from __future__ import annotations

import itertools
import os
import sys
import time

THREADS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ.setdefault("XLA_FLAGS", THREADS)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

OBSERVATION, ACTION, BATCH, FLOW_STEPS, MEMBERS = 11, 3, 256, 10, 2
GAMMA, TAU, ALPHA, UPDATES, ROUNDS = 0.99, 0.005, 10.0, 10, 8


def mlp(key, widths, members=()):
    """Weights and biases of an MLP, or of several."""
    pairs = list(itertools.pairwise(widths))
    keys = jax.random.split(key, len(pairs))
    return [
        (jax.random.normal(k, (*members, i, o)) / i**0.5, jnp.zeros((*members, 1, o)))
        for k, (i, o) in zip(keys, pairs, strict=True)
    ]


def apply(layers, x, norm=False):
    """The MLP's output; with members, one for each in front."""
    *inner, (weight, bias) = layers
    for w, b in inner:
        x = x @ w + b
        if norm:
            x = jax.nn.standardize(x, axis=-1)
        x = jax.nn.gelu(x)
    return x @ weight + bias


def flow(layers, s, x):
    """Where the behaviour's chains end."""
    for k in range(FLOW_STEPS):
        t = jnp.full_like(x[:, :1], k / FLOW_STEPS)
        x = x + apply(layers, jnp.concatenate([s, x, t], -1)) / FLOW_STEPS
    return x.clip(-1, 1)


def loss(nets, target, batch, key):
    """Of critic, behaviour flow and one-step policy together."""
    s, a, r, s2 = batch
    k1, k2, k3, k4 = jax.random.split(key, 4)
    stop = jax.lax.stop_gradient

    def q(layers, s, a):
        return apply(layers, jnp.concatenate([s, a], -1), norm=True)[..., 0]

    def act(layers, s, x):
        return apply(layers, jnp.concatenate([s, x], -1))

    x = jax.random.normal(k1, a.shape)
    following = q(target, s2, act(stop(nets["policy"]), s2, x).clip(-1, 1)).mean(0)
    critic = ((q(nets["critic"], s, a) - (r + GAMMA * following)) ** 2).mean()
    x, t = jax.random.normal(k2, a.shape), jax.random.uniform(k3, (BATCH, 1))
    inputs = jnp.concatenate([s, x + t * (a - x), t], -1)
    clone = ((apply(nets["flow"], inputs) - (a - x)) ** 2).mean()
    x = jax.random.normal(k4, a.shape)
    actions = act(nets["policy"], s, x)
    distance = ((actions - flow(stop(nets["flow"]), s, x)) ** 2).mean()
    values = q(stop(nets["critic"]), s, actions.clip(-1, 1)).mean(0)
    gain = values.mean() / stop(jnp.abs(values).mean())
    return critic + clone + ALPHA * distance - gain


def main(net_arch):
    """Print updates per second, the best of several rounds."""
    wide = [OBSERVATION + ACTION, *net_arch]
    k1, k2, k3, k4 = jax.random.split(jax.random.key(0), 4)
    nets = {
        "critic": mlp(k1, [*wide, 1], (MEMBERS,)),
        "flow": mlp(k2, [wide[0] + 1, *wide[1:], ACTION]),
        "policy": mlp(k3, [*wide, ACTION]),
    }
    target, adam = nets["critic"], optax.adam(3e-4)
    shapes = ((BATCH, OBSERVATION), (BATCH, ACTION), (BATCH,), (BATCH, OBSERVATION))
    keys = jax.random.split(k4, len(shapes))
    batch = [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]

    @jax.jit
    def update(nets, target, state, key):
        key, own = jax.random.split(key)
        grads = jax.grad(loss)(nets, target, batch, own)
        moves, state = adam.update(grads, state)
        nets = optax.apply_updates(nets, moves)
        target = jax.tree.map(lambda t, n: t + TAU * (n - t), target, nets["critic"])
        return nets, target, state, key

    carried = update(nets, target, adam.init(nets), k4)
    best = 0.0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(UPDATES):
            carried = update(*carried)
        jax.block_until_ready(carried)
        best = max(best, UPDATES / (time.perf_counter() - start))
    print(f"{best:.1f}")


if __name__ == "__main__":
    main([int(width) for width in sys.argv[1:]])
