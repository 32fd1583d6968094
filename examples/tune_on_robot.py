"""Fine-tune a cloned flow on the robot itself: SB3's PPO corrects every flow step.

    python examples/tune_on_robot.py --steps 1000000

Action 0 is the behaviour flow that ships for hopper-medium, so PPO starts as a robot that hops. The
figures printed are returns of the robot while PPO explores.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize


@dataclass
class Config:
    """Train PPO around the behaviour flow, on live robots."""

    env_id: str = "flowmdp:FlowMDP-hopper-medium-v0"
    steps: int = 1_000_000  # flow steps
    flow_steps: int = 4  # per action of the robot; fewer decisions make credit easier to assign
    robots: int = 8
    rollout: int = 1_024  # flow steps of every robot per update
    epochs: int = 10  # over every roll-out
    seed: int = 0


def main(config: Config) -> list[float]:
    """Train; returns the mean return of the last 40 episodes, after every four updates."""
    settings: dict[str, Any] = {"action_mode": "residual", "flow_steps": config.flow_steps}
    robots = make_vec_env(config.env_id, config.robots, config.seed, env_kwargs=settings)
    gamma, lam = (discount ** (1 / config.flow_steps) for discount in (0.99, 0.95))
    agent = PPO(
        "MlpPolicy",
        VecNormalize(robots, gamma=gamma),  # PPO's critic needs rewards of about 1
        n_steps=config.rollout,
        batch_size=256,
        n_epochs=config.epochs,
        gamma=gamma,  # 0.99 and 0.95 per action of the robot
        gae_lambda=lam,
        policy_kwargs={"log_std_init": -2.0},  # explore near the clone: further off, robots fall
        seed=config.seed,
        device="cpu",
    )
    returns = []
    while agent.num_timesteps < config.steps:
        agent.learn(4 * config.robots * config.rollout, reset_num_timesteps=False)
        episodes = [episode["r"] for episode in agent.ep_info_buffer or []][-40:]
        returns.append(float(np.mean(episodes)))
        actions = agent.num_timesteps // config.flow_steps
        print(f"{actions} actions of the robot: mean return {returns[-1]:.0f}", flush=True)
    return returns


if __name__ == "__main__":
    main(tyro.cli(Config))
