"""All ways to make the same environment agree, step by step, for the same seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from flowmdp.sb3 import FlowVecEnv

HOPPER = "FlowMDP-hopper-medium-v0"
N, STEPS, SEED = 2, 8, 5
Step = tuple[NDArray[Any], ...]


def actions() -> NDArray[np.float32]:
    """The same for everybody, some beyond the box; shape (STEPS, N, action_dim)."""
    return np.random.default_rng(0).uniform(-1.1, 1.1, (STEPS, N, 3)).astype(np.float32)


def singles(settings: dict[str, Any]) -> Iterator[Step]:
    """`gym.make`, N times, reset by hand in the step that ends an episode."""
    envs = [gym.make(HOPPER, **settings) for _ in range(N)]
    yield (np.stack([env.reset(seed=SEED + i)[0] for i, env in enumerate(envs)]),)
    for row in actions():
        results = []
        for env, action in zip(envs, row, strict=True):
            observation, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                observation, _ = env.reset()
            results.append((observation, reward, terminated or truncated))
        yield tuple(np.stack(column) for column in zip(*results, strict=True))


def vectorised(settings: dict[str, Any], mode: str | None) -> Iterator[Step]:
    """`gym.make_vec`; the vector entry point is reached by mode None."""
    same_step: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    options = settings | same_step if mode is None else {**settings, "vector_kwargs": same_step}
    envs = gym.make_vec(HOPPER, num_envs=N, vectorization_mode=mode, **options)
    yield (envs.reset(seed=SEED)[0],)
    for row in actions():
        observations, rewards, terminations, truncations, _ = envs.step(row)
        yield observations, rewards, terminations | truncations
    envs.close()


def adapted(settings: dict[str, Any]) -> Iterator[Step]:
    """The adapter for Stable-Baselines3."""
    envs: Any = gym.make_vec(HOPPER, num_envs=N, autoreset_mode="SameStep", **settings)
    adapter = FlowVecEnv(envs.unwrapped)
    adapter.seed(SEED)
    yield (adapter.reset(),)
    for row in actions():
        observations, rewards, dones, _ = adapter.step(row)
        yield np.asarray(observations), rewards, dones


def assert_agree(ways: dict[str, Iterator[Step]], tolerance: float) -> None:
    """Every way against the first, at every step."""
    played = {name: list(way) for name, way in ways.items()}
    reference = next(iter(played.values()))
    assert len(reference) == 1 + STEPS
    assert any(done.any() for *_, done in reference[1:]) or tolerance == 0
    for name, steps in played.items():
        for k, (ours, theirs) in enumerate(zip(steps, reference, strict=True)):
            for mine, other in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(
                    mine, other, rtol=tolerance, atol=tolerance, err_msg=f"{name}, step {k}"
                )


@pytest.mark.parametrize(
    "settings",
    [
        {"reward": "data", "include_previous_action": True},
        {"reward": "direction", "noise_std": 0.1},
        {"reward": "divergence", "include_time": False},
    ],
    ids=lambda settings: settings["reward"],
)
def test_dataset_states(settings: dict[str, Any], hopper_data: Path) -> None:
    """Five ways, with the critic and the behaviour flow that ship; up to their rounding."""
    settings = {"flow_steps": 3, **settings}
    single = {"states": "dataset", **settings}
    ways = {
        "make": singles(single),
        "make_vec": vectorised(settings, None),
        "sync": vectorised(single, "sync"),
        "async": vectorised(single, "async"),
        "Stable-Baselines3": adapted(settings),
    }
    assert_agree(ways, 1e-3)


@pytest.mark.parametrize(
    "settings",
    [{"flow_steps": 2}, {"decision": "noise", "flow_steps": 2}, {"decision": "action"}],
)
def test_live_robots(settings: dict[str, Any]) -> None:
    """Bit for bit: nothing is batched here."""
    ways = {
        "make": singles(settings),
        "sync": vectorised(settings, "sync"),
        "async": vectorised(settings, "async"),
    }
    assert_agree(ways, 0)
