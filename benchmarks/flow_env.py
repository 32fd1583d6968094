"""How fast the flow environments run: `python -m benchmarks.flow_env [task]`.

Prints, in one run: flow steps per second of the vectorised environment without and with reward
models (two networks of 256x3), what flow steps add to one step of the bare robot, and what making
an environment and importing the package take. Actions are those of a flow towards the dataset,
Gaussian with the spread of x_1 - x_0; nothing is learned.
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
from torch import nn

from flowmdp.env import FlowMDPEnv
from flowmdp.envs.data import load_dataset
from flowmdp.envs.robots.outer import make_outer
from flowmdp.mdp.spec import VELOCITY_SCALE
from flowmdp.vector import FlowMDPVectorEnv

Array = NDArray[np.float32]
CHAINS = (1, 64, 1024, 16384)
WINDOWS, SECONDS = 8, 0.2


def network(inputs: int, outputs: int) -> Callable[..., Array]:
    """An untrained network of three layers of 256, from NumPy arrays to a NumPy array."""
    layers: list[nn.Module] = []
    for width in (256, 256, 256):
        layers += [nn.Linear(inputs, width), nn.GELU()]
        inputs = width
    model = nn.Sequential(*layers, nn.Linear(inputs, outputs))

    @torch.inference_mode()
    def call(*arrays: Array) -> Array:
        result: Array = model(torch.from_numpy(np.concatenate(arrays, axis=1))).numpy()
        return result[:, 0] if outputs == 1 else result

    return call


def flow_actions(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Actions that a flow takes: velocities of about the size of x_1 - x_0."""
    return (rng.standard_normal(shape) * 1.2 / VELOCITY_SCALE).astype(np.float32)


def vector_rate(env: FlowMDPVectorEnv) -> float:
    """Flow steps per second, resets included; the best window, for machines with other work."""
    env.reset(seed=0)
    actions = flow_actions(np.random.default_rng(0), (env.num_envs, env.flow_spec.action_dim))
    for _ in range(2 * env.flow_steps):
        env.step(actions)
    best = 0.0
    for _ in range(WINDOWS):
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            for _ in range(env.flow_steps):
                env.step(actions)
            steps += env.flow_steps
        best = max(best, steps * env.num_envs / (time.perf_counter() - start))
    return best


def print_vector_rates(task: str) -> None:
    """One line per number of chains."""
    dataset = load_dataset(task)
    obs_dim, action_dim = dataset.observations.shape[1], dataset.actions.shape[1]
    models: dict[str, Any] = {
        "critic": network(obs_dim + action_dim, 1),
        "behavior": network(obs_dim + action_dim + 1, action_dim),
    }
    print(f"{'chains':>8} {'no models':>14} {'models 256x3':>14}   flow steps per second")
    for chains in CHAINS:
        plain = FlowMDPVectorEnv(chains, dataset, autoreset_mode="SameStep")
        full = FlowMDPVectorEnv(
            chains, dataset, autoreset_mode="SameStep", reward="divergence", **models
        )
        print(f"{chains:>8} {vector_rate(plain):>14,.0f} {vector_rate(full):>14,.0f}")


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


def main(task: str) -> None:
    """Run all parts and print the figures."""
    print(f"{task}, {torch.get_num_threads()} threads, NumPy {np.__version__}")
    print_vector_rates(task)
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
    main(parser.parse_args().task)
