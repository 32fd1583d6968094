"""How fast the flow environments run: `python -m benchmarks.flow_env [task]`.

Prints, in one run: flow steps per second of the vectorised environment without and with reward
models (two networks of 256x3), how near that is to what the models' matrix products alone take,
what flow steps add to one step of the bare robot, and what making an environment and importing the
package take. Actions are those of a flow towards the dataset, Gaussian with the spread of
x_1 - x_0; nothing is learned. `--backend torch --device cuda` measures chains on a GPU.

On a CPU a second is one of a core's own time: other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmdp.agents.core.models import as_function
from flowmdp.agents.core.networks import EnsembleMlp, VelocityField
from flowmdp.agents.core.precision import choose_precision, matmul_precision
from flowmdp.env import FlowMDPEnv
from flowmdp.envs.data import load_dataset
from flowmdp.envs.robots.outer import make_outer
from flowmdp.mdp.spec import VELOCITY_SCALE, FlowSettings
from flowmdp.transitions import TransitionDataset
from flowmdp.vector import FlowMDPVectorEnv

Array = NDArray[np.float32]
ARCH = (256, 256, 256)
CHAINS = (1, 64, 1024, 16384)
SHOWN = 1024
WINDOWS, SECONDS = 8, 0.2


def models(dataset: TransitionDataset, precision: str, device: str) -> tuple[dict[str, Any], float]:
    """An untrained critic and behaviour flow, and their floating-point operations per flow step."""
    obs_dim, action_dim = dataset.observations.shape[1], dataset.actions.shape[1]
    value = EnsembleMlp(obs_dim + action_dim, 1, ARCH, layer_norm=True).to(device)
    field = VelocityField(obs_dim, action_dim, ARCH).to(device)

    def critic(observations: Tensor, actions: Tensor) -> Tensor:
        values: Tensor = value(torch.cat([observations, actions], 1))[0, :, 0]
        return values

    asked = {
        "critic": as_function(critic, device, precision),
        "behavior": as_function(field, device, precision),
    }
    per_chain, per_step = (2.0 * sum(w.numel() for w in m.weights) for m in (value, field.mlp))
    return asked, per_step + per_chain / FlowSettings.flow_steps


def product(chains: int, precision: str, device: str) -> tuple[Callable[[], Any], float]:
    """The networks' inner product by itself, and its floating-point operations."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    rows = torch.randn(chains, ARCH[0], device=device, dtype=dtype)
    weight = torch.randn(ARCH[:2], device=device, dtype=dtype)

    def multiply() -> None:
        with torch.inference_mode(), matmul_precision(precision):
            torch.mm(rows, weight)

    return multiply, 2.0 * chains * weight.numel()


def chain_of(env: FlowMDPVectorEnv) -> Callable[[], Any]:
    """A function that moves all chains from noise to action, resets included."""
    shape = env.num_envs, env.flow_spec.action_dim
    actions: Any = flow_actions(np.random.default_rng(0), shape)
    if env.backend == "torch":
        actions = torch.as_tensor(actions, device=env.device)
    env.reset(seed=0)
    return lambda: [env.step(actions) for _ in range(env.flow_steps)]


def flow_actions(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Actions that a flow takes: velocities of about the size of x_1 - x_0."""
    return (rng.standard_normal(shape) * 1.2 / VELOCITY_SCALE).astype(np.float32)


def seconds(functions: list[Callable[[], Any]], device: str) -> list[float]:
    """What one call of each takes: measured in turns, the best of some windows."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = [float("inf")] * len(functions)
    for _ in range(1 + WINDOWS):
        for i, function in enumerate(functions):
            calls, start = 0, clock()
            while clock() < start + SECONDS:
                function()
                wait()
                calls += 1
            best[i] = min(best[i], (clock() - start) / calls)
    return best


def print_vector_rates(task: str, backend: str, device: str) -> None:
    """One line per number of chains."""
    dataset = load_dataset(task)
    where: dict[str, Any] = {"backend": backend, "autoreset_mode": "SameStep"}
    where |= {"device": device} if backend == "torch" else {}
    precisions = list(dict.fromkeys(["float32", choose_precision("auto", torch.device(device))]))
    print(f"flow steps per second, backend {backend} on {device}: without models, and with two of")
    print("256x3; in brackets their share of what the products alone would reach")
    print(f"{'chains':>7} {'no models':>12}" + "".join(f"{name:>20}" for name in precisions))
    for chains in CHAINS:
        alone = [product(chains, precision, device) for precision in precisions]
        functions = [chain_of(FlowMDPVectorEnv(chains, dataset, **where))]
        for precision in precisions:
            asked, operations = models(dataset, precision, device)
            env = FlowMDPVectorEnv(chains, dataset, reward="divergence", **asked, **where)
            functions.append(chain_of(env))
        times = seconds([*functions, *(multiply for multiply, _ in alone)], device)
        plain, *rates = (chains * env.flow_steps / time for time in times[: len(functions)])
        products = [n / time for (_, n), time in zip(alone, times[len(functions) :], strict=True)]
        shares = [operations * rate / p for rate, p in zip(rates, products, strict=True)]
        told = "".join(f"{r:>14,.0f} ({s:>3.0%})" for r, s in zip(rates, shares, strict=True))
        print(f"{chains:>7} {plain:>12,.0f}{told}")
        if chains == SHOWN:
            told = ", ".join(
                f"{p / 1e9:,.0f} in {name}" for p, name in zip(products, precisions, strict=True)
            )
            shown = f"{operations / 1e9:.6f} GFLOP per flow step; GFLOP/s of a product: {told}"
    print(f"{shown} ({SHOWN} chains)")


def outer_step_times(
    env: gym.Env[Array, Array], actions: Array, per_outer: int, steps: int = 3000
) -> list[float]:
    """Microseconds of every outer step, resets left out."""
    env.reset(seed=0)
    times: list[float] = []
    while len(times) < steps:
        start = time.perf_counter()
        for k in range(per_outer):
            _, _, terminated, truncated, _ = env.step(actions[(len(times) + k) % len(actions)])
        times.append(1e6 * (time.perf_counter() - start))
        if terminated or truncated:
            env.reset()
    return times


def print_nested_times(task: str) -> None:
    """Bare robot and flow environment in turns; medians, so that other processes matter little."""
    bare, flow = make_outer(task), FlowMDPEnv(make_outer(task))
    rng = np.random.default_rng(0)
    shape = (1000, *flow.outer_action_space.shape)
    outer_actions = rng.uniform(-1, 1, shape).astype(np.float32)
    actions = flow_actions(rng, shape)
    alone: list[float] = []
    nested: list[float] = []
    for _ in range(4):
        alone += outer_step_times(bare, outer_actions, 1)
        nested += outer_step_times(flow, actions, flow.flow_steps)
    without, with_flow = float(np.median(alone)), float(np.median(nested))
    print(
        f"one outer step: {without:.0f} us bare, {with_flow:.0f} us with {flow.flow_steps} ", end=""
    )
    print(f"flow steps, which add {with_flow - without:.0f} us")


def best_time(code: str, repeats: int = 5) -> float:
    """Shortest of some runs in fresh interpreters, as timed inside by `time.perf_counter`."""
    script = f"import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
    command = [sys.executable, "-W", "ignore", "-c", script]
    return min(float(subprocess.check_output(command)) for _ in range(repeats))


def main(task: str, backend: str, device: str) -> None:
    """Run all parts and print the figures."""
    threads = torch.get_num_threads()
    print(f"{task}, {threads} threads, NumPy {np.__version__}, torch {torch.__version__}")
    print_vector_rates(task, backend, device)
    if backend == "torch":
        return
    print_nested_times(task)
    print(f"import flowmdp: {best_time('import flowmdp'):.3f} s")
    make = f"import gymnasium, flowmdp; gymnasium.make('FlowMDP-{task}-v0')"
    print(f"import, then make FlowMDP-{task}-v0: {best_time(make):.3f} s")
    code = f"{make}.reset(seed=0)"
    print(f"import, make and reset: {best_time(code):.3f} s")
    code = f"import gymnasium, flowmdp; gymnasium.make_vec('FlowMDP-{task}-v0', num_envs=1024)"
    print(f"import, then make_vec of 1024 chains with the data read: {best_time(code):.3f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", nargs="?", default="hopper-medium")
    parser.add_argument("--backend", choices=("numpy", "torch"), default="numpy")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    main(arguments.task, arguments.backend, arguments.device)
