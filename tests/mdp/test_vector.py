"""The vectorised environment against Gymnasium's own vectorisation of the single one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from flowmdp.env import FlowMDPEnv
from flowmdp.errors import ActionError, ConfigurationError, ResetNeededError
from flowmdp.mdp.spec import FlowSpec
from flowmdp.vector import FlowMDPVectorEnv
from tests.mdp.toys import behavior, critic, toy_dataset

MODELS: dict[str, Any] = {"critic": critic, "behavior": behavior}
VARIANTS: dict[str, dict[str, Any]] = {
    "data": {"reward": "data"},
    "direction": {"reward": "direction", "include_previous_action": True},
    "divergence": {"reward": "divergence", "include_time": False, "rho": 0.3},
    "residual": {"reward": "data", "action_mode": "residual", "flow_steps": 4},
    "scaled": {"reward": "direction", "noise_scale": 0.4},
    "noisy": {"reward": "direction", "noise_std": 0.2, "flow_steps": 1},
}


def single(variant: str) -> Callable[[], FlowMDPEnv]:
    return lambda: FlowMDPEnv(
        dataset=toy_dataset(), states="dataset", **{"flow_steps": 3, **MODELS, **VARIANTS[variant]}
    )


def vector(variant: str = "data", num_envs: int = 5, **arguments: Any) -> FlowMDPVectorEnv:
    settings = {"flow_steps": 3, **MODELS, **VARIANTS[variant], **arguments}
    return FlowMDPVectorEnv(num_envs, toy_dataset(), **settings)


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """Same structure, dtypes and, up to rounding, values."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(theirs, tuple | list) or theirs.dtype == object:
        for one, other in zip(ours, theirs, strict=True):
            if other is not None:
                assert_same(one, other, where)
            else:
                assert one is None, where
    else:
        assert ours.dtype == theirs.dtype, f"{where}: {ours.dtype} {theirs.dtype}"
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6, err_msg=where)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_agrees_with_sync_vectorisation(variant: str, mode: AutoresetMode) -> None:
    ours = vector(variant, autoreset_mode=mode)
    theirs = SyncVectorEnv([single(variant)] * 5, autoreset_mode=mode)
    assert ours.observation_space == theirs.observation_space
    assert ours.single_action_space == theirs.single_action_space
    assert ours.metadata["autoreset_mode"] is mode
    assert_same(ours.reset(seed=7), theirs.reset(seed=7))
    rng = np.random.default_rng(0)
    for step in range(12):
        actions = rng.uniform(-1.1, 1.1, (5, 2)).astype(np.float32)
        assert_same(ours.step(actions), theirs.step(actions), f"step {step}")
    assert_same(ours.reset(), theirs.reset())


def test_agrees_without_autoreset_and_out_of_step() -> None:
    """Chains that the caller resets one by one, so that they are at different flow times."""
    ours = vector(autoreset_mode="Disabled")
    theirs = SyncVectorEnv([single("data")] * 5, autoreset_mode="Disabled")
    assert_same(ours.reset(seed=1), theirs.reset(seed=1))
    zero = np.zeros((5, 2), np.float32)
    assert_same(ours.step(zero), theirs.step(zero))
    mask = np.array([True, False, False, True, False])
    assert_same(
        ours.reset(options={"reset_mask": mask})[0], theirs.reset(options={"reset_mask": mask})[0]
    )
    for _ in range(2):
        result = ours.step(zero)
        assert_same(result, theirs.step(zero))
    assert np.array_equal(result[2], ~mask)
    with pytest.raises(ResetNeededError, match=r"call reset\(\)"):
        ours.step(zero)


def test_next_step_reset_of_some_chains() -> None:
    """Chains at different flow times under automatic resets, against single environments."""
    ours = vector()
    theirs = SyncVectorEnv([single("data")] * 5)
    mask = np.array([False, True, True, False, False])
    zero = np.zeros((5, 2), np.float32)
    for env in (ours, theirs):
        env.reset(seed=2)
        env.step(zero)
        env.reset(options={"reset_mask": mask})
    for _ in range(9):
        assert_same(ours.step(zero), theirs.step(zero))


def test_agrees_with_async_vectorisation() -> None:
    theirs = AsyncVectorEnv([single("divergence")] * 2)
    ours = vector("divergence", num_envs=2)
    assert_same(ours.reset(seed=[3, 9])[0], theirs.reset(seed=[3, 9])[0])
    actions = np.full((2, 2), 0.1, np.float32)
    for _ in range(4):
        assert_same(ours.step(actions)[:4], theirs.step(actions)[:4])
    theirs.close()


def test_both_environments_show_one_specification() -> None:
    settings: dict[str, Any] = {"noise_scale": 0.4, "include_previous_action": True}
    told = {"flow_steps": 7, "task": "toy", "source": "here", **settings}
    alone = FlowMDPEnv(dataset=toy_dataset(), states="dataset", reward="data", **told)
    together = FlowMDPVectorEnv(2, toy_dataset(), **told)
    spec = FlowSpec(2, 2, velocity_scale=6.5, **told)
    for env in (alone, together):
        assert env.flow_spec == spec
        assert env.flow_steps == spec.flow_steps
        with pytest.raises(AttributeError):
            env.flow_steps = 3  # type: ignore[misc]
    parts = [spec.state, spec.point, spec.t, spec.previous_action]
    indices = np.arange(spec.flow_observation_dim)
    assert [list(indices[part]) for part in parts] == [[0, 1], [2, 3], [4], [5, 6]]
    assert spec.context_dim == 5 and spec.space() == alone.observation_space
    bare = FlowSpec(2, 2, 7, 6.5, include_time=False)
    assert not indices[bare.t].size and not indices[bare.previous_action].size
    assert bare.flow_observation_dim == 4


def test_options_are_for_all_chains_or_one_row_each() -> None:
    env = vector("direction")
    state, noise = np.arange(10.0).reshape(5, 2), np.ones(2)
    observations, _ = env.reset(seed=0, options={"state": state, "noise": noise})
    assert np.array_equal(observations[:, :2], state)
    assert np.array_equal(observations[:, 2:4], np.ones((5, 2)))


def test_fresh_arrays() -> None:
    env = vector()
    observations = [env.reset(seed=0)[0]]
    observations += [env.step(np.zeros((5, 2), np.float32))[0] for _ in range(5)]
    for one in observations:
        assert sum(np.shares_memory(one, other) for other in observations) == 1


def test_seeds_none_go_on_and_lists_are_taken() -> None:
    env = vector()
    first, _ = env.reset(seed=[1, 2, 3, 4, 5])
    assert np.array_equal(env.reset(seed=1)[0], first)
    assert not np.array_equal(env.reset()[0], first)
    with pytest.raises(ConfigurationError, match="2 seeds for 5 chains"):
        env.reset(seed=[1, 2])


def test_make_vec(hopper_data: Path) -> None:
    with pytest.warns(UserWarning, match="latest versioned"):
        env = gym.make_vec("FlowMDP-hopper-medium", num_envs=3, flow_steps=2)
    assert isinstance(env.unwrapped, FlowMDPVectorEnv) and env.num_envs == 3
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(env)
    wrapped.reset(seed=0)
    for _ in range(2):
        *_, infos = wrapped.step(wrapped.action_space.sample())
    assert (infos["episode"]["l"] == 2).all()
    sync = gym.make_vec(
        "FlowMDP-hopper-medium-v0",
        num_envs=3,
        vectorization_mode="sync",
        states="dataset",
        reward="data",
    )
    assert_same(env.reset(seed=4)[0], sync.reset(seed=4)[0])
    live = gym.make_vec("FlowMDP-hopper-medium-v0", num_envs=2, vectorization_mode="sync")
    live.reset(seed=0)
    for made in (env, sync, live):
        made.close()


def test_latent_noise_is_vectorised_by_gymnasium() -> None:
    with pytest.raises(ConfigurationError, match=r"not on 'noise': use vectorization_mode='sync'"):
        gym.make_vec("FlowMDP-hopper-medium-v0", num_envs=2, decision="noise")


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((4, 2), np.float32), r"shape \(4, 2\)"),
        (np.zeros((5, 2), np.int32), "dtype int32"),
        (np.full((5, 2), np.nan, np.float32), "not finite"),
    ],
)
def test_bad_actions(actions: Any, message: str) -> None:
    env = vector()
    env.reset(seed=0)
    with pytest.raises(ActionError, match=message):
        env.step(actions)


def test_bad_arguments() -> None:
    with pytest.raises(ConfigurationError, match="num_envs is 0"):
        vector(num_envs=0)
    with pytest.raises(ConfigurationError, match="vectorization_mode='sync'"):
        vector(reward="return")
    with pytest.raises(ConfigurationError, match="needs a critic"):
        vector(reward="direction", critic=None)
    with pytest.raises(ConfigurationError, match="NextStep, SameStep, Disabled"):
        vector(autoreset_mode="Never")
    with pytest.raises(ResetNeededError):
        vector().step(np.zeros((5, 2), np.float32))
    for options in ({"noise": np.zeros(3)}, {"goal": 1}, {"reset_mask": np.ones(5)}):
        with pytest.raises(ConfigurationError, match="options"):
            vector().reset(options=options)
    with pytest.raises(ConfigurationError, match=r"options\['state'\]"):
        vector().reset(options={"state": np.zeros(2)})


FORKED = """
import gymnasium as gym, numpy as np, torch
from flowmdp.env import FlowMDPEnv
from tests.mdp.toys import PointRobot
torch.set_num_threads(2)
weight = torch.ones(400, 400)
def behavior(observations, x_t, t):
    return (0 * (weight @ weight).sum() + torch.as_tensor(x_t)).numpy()
weight @ weight  # starts the threads
make = lambda: FlowMDPEnv(PointRobot(), action_mode="residual", behavior=behavior, flow_steps=2)
envs = gym.vector.AsyncVectorEnv([make] * 2, context="fork")
envs.reset(seed=0)
for _ in range(3):
    envs.step(np.zeros((2, 2), np.float32))
envs.close()
print("done")
"""


def test_forked_environments_answer_after_torch_has_run_on_threads() -> None:
    """OpenMP's threads do not survive a fork; without a cure the children wait forever."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    child = subprocess.Popen(
        [sys.executable, "-c", FORKED],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    assert out == "done\n", err
