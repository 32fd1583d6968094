"""Offline learning behind Stable-Baselines3's interface: learn, save, load, evaluate.

    python examples/sb3_style.py --steps 3000

The agent learns from the task's dataset, which is built here when it is absent. It then plays the
flow environment, where SB3's `evaluate_policy` reports the robot's return, and the bare robot. The
flow environment draws the noise of every chain; on the bare robot `evaluate_policy` plays
deterministically, from x_0 = 0, and the returns of the two may differ a lot.
"""

from dataclasses import dataclass, field
from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

import flowmdp  # noqa: F401  (registers the environments)
from flowmdp.agents import DFDiv


@dataclass
class Config:
    """Train DF-div, save it, load it, evaluate it twice."""

    steps: int = 3_000
    behavior_steps: int = 10_000
    critic_steps: int = 5_000
    episodes: int = 10
    net_arch: list[int] = field(default_factory=lambda: [256, 256, 256])
    seed: int = 0
    out: Path = Path("runs/sb3-style")


def main(config: Config) -> dict[str, float]:
    """Returns the mean return on the flow environment and on the bare robot."""
    env = Monitor(gym.make("FlowMDP-hopper-medium-v0", **DFDiv.environment))  # its own noise
    agent = DFDiv(
        "MlpPolicy",
        env,
        behavior_steps=config.behavior_steps,
        critic_steps=config.critic_steps,
        policy_kwargs={"net_arch": config.net_arch},
        seed=config.seed,
    )
    checkpoints = CheckpointCallback(max(1, config.steps // 2), str(config.out))
    agent.learn(config.steps, callback=checkpoints, progress_bar=True)
    agent.save(config.out / "agent.zip")

    agent = DFDiv.load(config.out / "agent.zip", env=env)
    means = {}
    for name, policy, world in (
        ("flow environment", agent, env),
        ("bare robot", agent.outer_policy(), Monitor(gym.make("Hopper-v5"))),
    ):
        mean, std = evaluate_policy(policy, world, n_eval_episodes=config.episodes)
        print(f"return on the {name}: {mean:.0f} ± {std:.0f}")
        means[name] = float(np.mean(mean))
    return means


if __name__ == "__main__":
    main(tyro.cli(Config))
