"""Train a behaviour policy with Stable-Baselines3 and keep a ladder of its snapshots.

    python examples/train_behavior.py --env-id Hopper-v5 --steps 125000 --every 5000 --seed 1

Every `--every` steps the actor is written to `OUT/step-<n>.safetensors`: float16 weights, with the
command, versions, seed and returns of 20 episodes. The policies that ship are such files.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from flowmdp.envs.data.sources.snapshots import write_snapshot


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
            command = shlex.join(["python", "examples/train_behavior.py", *sys.argv[1:]])
            returns = write_snapshot(self.model, path, config.env_id, config.seed, command)
            print(f"{path}: return {returns.mean():.0f} ± {returns.std():.0f}", flush=True)
        return True


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
