"""Fine-tune a cloned flow online with algorithms that know nothing of flows: SB3's PPO and SAC.

    flowmdp train flow-bc hopper-medium --out runs/clone
    python examples/steer_flow.py --checkpoint runs/clone/checkpoint.zip

`velocity`: PPO corrects every flow step; action 0 is the clone's velocity, so it starts as the
clone. `noise`: SAC chooses the noise the frozen flow starts from, one decision per robot action.
Random flow actions, the clone, and what was learned are compared on the robot.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from stable_baselines3 import PPO, SAC

import flowmdp  # noqa: F401  (registers the environments)


@dataclass
class Config:
    """Train around a frozen behaviour flow."""

    checkpoint: Path = Path("runs/clone/checkpoint.zip")
    env_id: str = "FlowMDP-hopper-medium-v0"
    decision: str = "velocity"  # or "noise"
    steps: int = 300_000  # of the environment: flow steps, or robot actions
    rollout: int = 2_560  # PPO's steps per update, SAC's random steps before learning
    episodes: int = 20
    seed: int = 0


def mean_return(env: gym.Env[Any, Any], agent: PPO | SAC | None, config: Config) -> float:
    """Mean return of whole episodes; without an agent the actions are sampled from the box."""
    returns = []
    env.action_space.seed(config.seed)
    for episode in range(config.episodes):
        observation, _ = env.reset(seed=config.seed + episode)
        total, over = 0.0, False
        while not over:
            sample = env.action_space.sample()
            action = sample if agent is None else agent.predict(observation, deterministic=True)[0]
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return float(np.mean(returns))


def main(config: Config) -> dict[str, float]:
    """Returns the mean return of random flow actions, of the clone, and of what was learned."""
    settings: dict[str, Any] = {"checkpoint": str(config.checkpoint), "action_mode": "residual"}
    clone = gym.make(config.env_id, **settings)
    clone = gym.wrappers.TransformAction(clone, lambda action: 0 * action, clone.action_space)
    env = gym.make(config.env_id, decision=config.decision, **settings)
    common: dict[str, Any] = {"policy": "MlpPolicy", "env": env, "seed": config.seed}
    agent: PPO | SAC
    if config.decision == "noise":
        agent = SAC(learning_starts=config.rollout, **common)
    else:  # discounts per robot action, which takes ten flow steps
        gammas = {"gamma": 0.99 ** (1 / 10), "gae_lambda": 0.95 ** (1 / 10)}
        small = {"log_std_init": -1.0}  # explore near the clone
        agent = PPO(n_steps=config.rollout, device="cpu", policy_kwargs=small, **gammas, **common)
    agent.learn(config.steps)
    means = {
        "random flow actions": mean_return(gym.make(config.env_id), None, config),
        "the cloned flow": mean_return(clone, None, config),
        f"{type(agent).__name__} on the {config.decision}": mean_return(env, agent, config),
    }
    print(*(f"{name}: mean return {value:.0f}" for name, value in means.items()), sep="\n")
    return means


if __name__ == "__main__":
    main(tyro.cli(Config))
