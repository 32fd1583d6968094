"""A hand-written RL loop on the flow MDP: REINFORCE, in plain Gymnasium and torch.

    python examples/custom_loop.py --episodes 1000

The environment is the generation of the hopper's actions, so the policy chooses velocities: ten of
them carry a noise x_0 to one action of the robot. The sum of rewards is the robot's return.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn
from torch.distributions import Normal

import flowmdp  # noqa: F401  (registers the environments)


@dataclass
class Config:
    """Train a Gaussian velocity policy by REINFORCE."""

    env_id: str = "FlowMDP-hopper-medium-v0"
    episodes: int = 1_000
    batch: int = 10  # episodes per gradient step
    gamma: float = 0.99  # per action of the robot; inside a chain nothing is discounted
    learning_rate: float = 3e-3
    std: float = 0.1  # of the velocity, in units of the flow action
    seed: int = 0


def play(env: gym.Env[Any, Any], policy: nn.Module, config: Config) -> tuple[Any, Any, list[float]]:
    """One episode: observations, flow actions, and the discounted return from every step on."""
    observations, actions, rewards = [env.reset()[0]], [], []
    over = False
    while not over:
        with torch.no_grad():
            mean = policy(torch.from_numpy(observations[-1]))
        actions.append(torch.normal(mean, config.std).numpy())
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        rewards.append((float(reward), config.gamma if "executed_action" in info else 1.0))
        observations.append(observation)
        over = terminated or truncated
    returns = [0.0]
    for reward, discount in reversed(rewards):
        returns.append(reward + discount * returns[-1])
    return np.stack(observations[:-1]), np.stack(actions), returns[:0:-1]


def main(config: Config) -> list[float]:
    """Train; returns the mean discounted return of every batch of episodes."""
    torch.manual_seed(config.seed)
    env = gym.make(config.env_id)
    env.reset(seed=config.seed)
    inputs, outputs = map(gym.spaces.flatdim, (env.observation_space, env.action_space))
    policy = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, outputs), nn.Tanh())
    optimizer = torch.optim.Adam(policy.parameters(), config.learning_rate)
    means: list[float] = []
    for n in range(config.batch, config.episodes + 1, config.batch):
        episodes = [play(env, policy, config) for _ in range(config.batch)]
        observations, actions, returns = (np.concatenate(x) for x in zip(*episodes, strict=True))
        weights = torch.tensor((returns - returns.mean()) / returns.std(), dtype=torch.float32)
        density = Normal(policy(torch.tensor(observations)), config.std)
        loss = -(weights * density.log_prob(torch.tensor(actions)).sum(-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        means.append(float(np.mean([values[0] for _, _, values in episodes])))
        print(f"{n} episodes: discounted return {means[-1]:.1f}", flush=True)
    return means


if __name__ == "__main__":
    main(tyro.cli(Config))
