"""Train a behaviour policy with Stable-Baselines3's SAC; keep a ladder of its snapshots.

    python examples/train_behavior.py --env-id Hopper-v5 --steps 500000 --out behavior/hopper

The actor is evaluated (10 episodes) and written, in float16, with its command and its returns.
"""

import importlib.metadata
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from safetensors.torch import save_file
from stable_baselines3 import SAC
from stable_baselines3.common import callbacks, evaluation, monitor

PACKAGES = ("torch", "stable-baselines3", "gymnasium", "mujoco", "numpy")


@dataclass
class Config:
    """Train a SAC behaviour policy and write its snapshots."""

    env_id: str = "Hopper-v5"  # Gymnasium id of the robot's environment
    steps: int = 500_000  # environment steps
    seed: int = 0
    out: Path = Path("behavior/hopper")
    every: int = 25_000  # steps between two snapshots
    threads: int = 1  # CPU threads for torch
    learning_starts: int = 10_000  # random steps before the first update (RL Zoo's for Hopper)


class Ladder(callbacks.BaseCallback):
    """Writes the actor and its evaluated returns every `every` steps."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.eval_env = config, monitor.Monitor(gym.make(config.env_id))

    def _on_step(self) -> bool:
        if self.num_timesteps % self.config.every == 0:
            self.eval_env.reset(seed=self.config.seed + 10_000)
            model: Any = self.model
            options: Any = {"deterministic": False, "return_episode_rewards": True}
            returns, _ = evaluation.evaluate_policy(model, self.eval_env, 10, **options)
            metadata = {
                "env_id": self.config.env_id,
                "algorithm": "SAC",
                "steps": str(self.num_timesteps),
                "seed": str(self.config.seed),
                "returns": json.dumps(np.round(returns, 1).tolist()),
                "command": shlex.join(["python", "examples/train_behavior.py", *sys.argv[1:]]),
                "versions": json.dumps({p: importlib.metadata.version(p) for p in PACKAGES}),
            }
            actor = model.policy.actor.state_dict()
            weights = {name: w.half().contiguous() for name, w in actor.items()}
            path = self.config.out / f"step-{self.num_timesteps:07d}.safetensors"
            save_file(weights, path, metadata)
            print(f"{path}: return {np.mean(returns):.0f} ± {np.std(returns):.0f}", flush=True)
        return True


def main(config: Config) -> None:
    """Train and write the ladder."""
    torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    starts = min(config.learning_starts, config.steps // 2)
    model = SAC("MlpPolicy", config.env_id, learning_starts=starts, seed=config.seed)
    model.learn(config.steps, callback=Ladder(config))


if __name__ == "__main__":
    main(tyro.cli(Config))
