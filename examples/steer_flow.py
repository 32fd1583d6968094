"""Steer a cloned flow with an algorithm that knows nothing of flows: SB3's PPO.

    flowmdp train df-div hopper-medium --seed 1 --out runs/df-div
    python examples/steer_flow.py --checkpoint runs/df-div/checkpoint.zip

PPO corrects every flow step of the behaviour that the checkpoint cloned; action 0 is the clone. The
checkpoint's critic pays it, in 256 chains from recorded states, and no simulator runs. Then the
robot judges random flow actions, the clone, and PPO.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from flowmdp.agents import load_agent
from flowmdp.sb3 import FlowVecEnv


@dataclass
class Config:
    """Train around a frozen behaviour flow."""

    checkpoint: Path
    steps: int = 450_000  # flow steps, ten for one action of the robot
    chains: int = 256
    rollout: int = 40  # flow steps of every chain per update
    rho: float = 10.0  # what leaving the clone costs, in units of the critic; less leaves the data
    episodes: int = 20
    seed: int = 0


def mean_return(env: gym.Env[Any, Any], act: Callable[[Any], Any], episodes: int) -> float:
    """Mean return of the robot over whole episodes."""
    total = 0.0
    for seed in range(1_000, 1_000 + episodes):
        (observation, _), over = env.reset(seed=seed), False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            total, over = total + float(reward), terminated or truncated
    return total / episodes


def main(config: Config) -> dict[str, float]:
    """Returns the mean return of random flow actions, of the clone, and of PPO."""
    env_id = f"flowmdp:FlowMDP-{load_agent(config.checkpoint).spec.task}-v0"
    settings: dict[str, Any] = {"checkpoint": str(config.checkpoint), "action_mode": "residual"}
    pay: dict[str, Any] = {"reward": "divergence", "rho": config.rho, "autoreset_mode": "SameStep"}
    chains: Any = gym.make_vec(env_id, num_envs=config.chains, **pay, **settings)
    envs = VecNormalize(VecMonitor(FlowVecEnv(chains.unwrapped)), gamma=1.0)
    tenth = max(64, config.chains * config.rollout // 10)
    ppo: dict[str, Any] = {"n_steps": config.rollout, "batch_size": tenth, "seed": config.seed}
    ppo |= {"gamma": 1.0, "gae_lambda": 1.0}  # an episode is one chain: nothing to discount
    ppo |= {"policy_kwargs": {"log_std_init": -2.0}}  # explore near the clone
    agent = PPO("MlpPolicy", envs, device="cpu", **ppo).learn(config.steps)

    def learned(observation: Any) -> Any:
        return agent.predict(envs.normalize_obs(observation), deterministic=True)[0]

    plain, clone = gym.make(env_id), gym.make(env_id, **settings)
    still = np.zeros_like(clone.action_space.sample())
    plain.action_space.seed(config.seed)
    means = {
        "random": mean_return(plain, lambda _: plain.action_space.sample(), config.episodes),
        "clone": mean_return(clone, lambda _: still, config.episodes),
        "PPO": mean_return(clone, learned, config.episodes),
    }
    print(*(f"{name}: mean return {value:.0f}" for name, value in means.items()), sep="\n")
    return means


if __name__ == "__main__":
    main(tyro.cli(Config))
