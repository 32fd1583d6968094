"""Write the actor of a Stable-Baselines3 agent as a behaviour policy file, with its own returns.

The one module of flowmdp.envs that needs torch and Stable-Baselines3: it makes the files that come
with the package, and nothing else imports it.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd

from flowmdp.envs.data.sources.behavior import BehaviorPolicy
from flowmdp.envs.data.sources.collect import roll_out
from flowmdp.errors import ConfigurationError

EPISODES = 20
PACKAGES = ("torch", "stable-baselines3", "gymnasium", "mujoco", "numpy")


def actor_weights(model: BaseAlgorithm) -> dict[str, torch.Tensor]:
    """The actor's tensors under the names of SB3's SAC; see `BehaviorPolicy`.

    PPO's observation normaliser (VecNormalize) is folded into the first layer: W' = W / std,
    b' = b - W' mean, which is exact when the normaliser does not clip (clip_obs=inf).

    Raises:
        ConfigurationError: For another algorithm than SAC and PPO.
    """
    if isinstance(model, SAC):
        return dict(model.policy.actor.state_dict())
    if not isinstance(model, PPO):
        raise ConfigurationError(f"{type(model).__name__} is not supported: train SAC or PPO")
    weights = model.policy.state_dict()
    names = {"mlp_extractor.policy_net": "latent_pi", "action_net": "mu"}
    actor = {"log_std": weights["log_std"]}
    for theirs, ours in names.items():
        actor |= {k.replace(theirs, ours): v for k, v in weights.items() if k.startswith(theirs)}
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None and isinstance(normalizer.obs_rms, RunningMeanStd):
        std = np.sqrt(normalizer.obs_rms.var + normalizer.epsilon)
        scaled = actor["latent_pi.0.weight"] / torch.as_tensor(std).float()
        mean = torch.as_tensor(normalizer.obs_rms.mean).float()
        actor["latent_pi.0.bias"] = actor["latent_pi.0.bias"] - scaled @ mean
        actor["latent_pi.0.weight"] = scaled
    return actor


def write_snapshot(
    model: BaseAlgorithm, path: Path, env_id: str, seed: int, command: str
) -> NDArray[np.float64]:
    """Write the actor in float16 and roll the written file out.

    Args:
        model: A SAC agent, or a PPO agent with or without VecNormalize.
        path: The safetensors file; its folder exists.
        env_id: Gymnasium id of the environment it was trained on.
        seed: Seed of the training and of the roll-out.
        command: The command that trained it.

    Returns:
        Returns of `EPISODES` episodes, stochastic actions; they are in the file's metadata too,
        beside the command, the seed and the versions.
    """
    metadata = {
        "algorithm": type(model).__name__,
        "command": command,
        "env_id": env_id,
        "seed": str(seed),
        "steps": str(model.num_timesteps),
        "versions": json.dumps({name: importlib.metadata.version(name) for name in PACKAGES}),
    }
    actor = {name: w.half().contiguous() for name, w in actor_weights(model).items()}
    save_file(actor, path, metadata=metadata)
    envs = [gym.make(env_id, disable_env_checker=True) for _ in range(EPISODES)]
    horizon = gym.spec(env_id).max_episode_steps or 1000
    episodes = roll_out(BehaviorPolicy.load(path), envs, seed, horizon)
    returns = np.array([e.rewards.sum() for e in itertools.islice(episodes, EPISODES)])
    for env in envs:
        env.close()
    metadata["returns"] = json.dumps([round(float(r), 1) for r in returns])
    save_file(actor, path, metadata=metadata)
    return returns
