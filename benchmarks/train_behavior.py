"""Train a behaviour policy with Stable-Baselines3 and keep a ladder of its snapshots.

    python -m benchmarks.train_behavior --env-id Hopper-v5 --steps 125000 --every 5000 --seed 1

Every `--every` steps the actor is written to `OUT/step-<n>.safetensors`: float16 weights, with the
command, versions, seed and returns of 20 episodes. The policies that ship are such files.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from safetensors.torch import save_file
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from flowmdp.envs.data.sources.behavior import BehaviorPolicy
from flowmdp.envs.data.sources.collect import NUM_ENVS, roll_out
from flowmdp.errors import ConfigurationError

EPISODES = 20
PACKAGES = ("torch", "stable-baselines3", "gymnasium", "mujoco", "numpy")


@dataclass
class Config:
    """Train a behaviour policy and write its snapshots."""

    env_id: str = "Hopper-v5"  # Gymnasium id of the robot's environment
    algorithm: Literal["sac", "ppo"] = "sac"
    """SAC needs fewer steps; PPO (observations and rewards normalised) needs less time."""
    steps: int = 500_000  # of the environment
    seed: int = 0
    out: Path = Path("behavior/hopper")
    every: int = 25_000  # steps between two snapshots
    threads: int = 1  # CPU threads for torch
    learning_starts: int = 10_000  # random steps before SAC's first update (RL Zoo's for Hopper)
    log_std_init: float = 0.0
    """PPO's first log standard deviation; -1 and -2 (RL Zoo) clip fewer actions."""


class Ladder(BaseCallback):
    """Writes a snapshot every `every` steps."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def _on_step(self) -> bool:
        config, step = self.config, self.num_timesteps
        if step % config.every < self.training_env.num_envs:
            path = config.out / f"step-{step:07d}.safetensors"
            command = shlex.join(["python", "-m", "benchmarks.train_behavior", *sys.argv[1:]])
            returns = write_snapshot(self.model, path, config.env_id, config.seed, command)
            print(f"{path}: return {returns.mean():.0f} ± {returns.std():.0f}", flush=True)
        return True


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
    envs = [gym.make(env_id, disable_env_checker=True) for _ in range(NUM_ENVS)]
    horizon = gym.spec(env_id).max_episode_steps or 1000
    episodes = roll_out(BehaviorPolicy.load(path), envs, seed, horizon)
    returns = np.array([e.rewards.sum() for e in itertools.islice(episodes, EPISODES)])
    for env in envs:
        env.close()
    metadata["returns"] = json.dumps([round(float(r), 1) for r in returns])
    save_file(actor, path, metadata=metadata)
    return returns


def main(config: Config) -> None:
    """Train and write the ladder."""
    torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    model: BaseAlgorithm
    if config.algorithm == "sac":
        starts = min(config.learning_starts, config.steps // 2)
        model = SAC("MlpPolicy", config.env_id, learning_starts=starts, seed=config.seed)
    else:  # not clipped, so that the normaliser can be folded into the actor
        envs = VecNormalize(make_vec_env(config.env_id, 8, config.seed), clip_obs=float("inf"))
        options = {"log_std_init": config.log_std_init}
        model = PPO(
            "MlpPolicy", envs, n_steps=512, batch_size=128, seed=config.seed, policy_kwargs=options
        )
    model.learn(config.steps, callback=Ladder(config))


if __name__ == "__main__":
    main(tyro.cli(Config))
