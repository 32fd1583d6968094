"""The behaviour policies that come with the package, and the script that trains them."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from examples import train_behavior
from flowmdp.envs.data.sources.behavior import BehaviorPolicy
from flowmdp.errors import FlowMDPError


@pytest.mark.parametrize("algorithm", ["SAC", "PPO"])
def test_numpy_actor_equals_stable_baselines3(algorithm: str) -> None:
    model: BaseAlgorithm
    env = make_vec_env("Hopper-v5", 2, seed=0)
    rng = np.random.default_rng(0)
    observations, noise = rng.standard_normal((9, 11)), rng.standard_normal((9, 3))
    if algorithm == "SAC":
        model = SAC("MlpPolicy", env, policy_kwargs={"net_arch": [16, 16]}, seed=0)
        states = torch.tensor(observations).float()
        mean, log_std, _ = model.actor.get_action_dist_params(states)
        expected = torch.tanh(mean + log_std.exp() * torch.tensor(noise).float())
    else:
        env = VecNormalize(env, clip_obs=float("inf"))
        model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0)
        model.learn(64)
        states = torch.tensor(env.normalize_obs(observations)).float()
        gaussian = cast(
            torch.distributions.Normal, model.policy.get_distribution(states).distribution
        )
        expected = (gaussian.mean + gaussian.stddev * torch.tensor(noise)).clip(-1, 1)
    weights = {name: value.numpy() for name, value in train_behavior.actor_weights(model).items()}
    policy = BehaviorPolicy(weights, {"algorithm": algorithm})
    actions = policy.sample(observations, noise)
    np.testing.assert_allclose(actions, expected.detach().numpy(), atol=1e-5)
    env.close()


def test_the_training_script_writes_such_files(tmp_path: Path) -> None:
    train_behavior.main(
        train_behavior.Config(algorithm="ppo", steps=4_096, every=4_096, out=tmp_path)
    )
    (path,) = tmp_path.iterdir()
    provenance = BehaviorPolicy.load(path).provenance
    assert provenance["steps"] == "4096" and len(provenance["returns"]) == 20


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 100])
def test_a_damaged_policy_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "actor.safetensors"
    path.write_bytes(content)
    with pytest.raises(FlowMDPError, match="cannot read the behaviour policy"):
        BehaviorPolicy.load(path)
