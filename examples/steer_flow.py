"""Fine-tune a cloned flow online with an algorithm that knows nothing of flows: SB3's SAC.

    flowmdp train flow-bc hopper-medium --out runs/clone
    python examples/steer_flow.py --checkpoint runs/clone/checkpoint.zip --decision noise

`noise`: SAC chooses the noise that the frozen flow starts from, one decision per robot action.
`velocity`: SAC corrects every flow step's velocity, which is the behaviour's plus its own action.
Random flow actions without the flow, the flow itself, and SAC's result are compared on the robot.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from stable_baselines3 import SAC

import flowmdp  # noqa: F401  (registers the environments)
from flowmdp.sb3 import FlowReplayBuffer


@dataclass
class Config:
    """Train SAC around a frozen behaviour flow."""

    checkpoint: Path = Path("runs/clone/checkpoint.zip")
    env_id: str = "FlowMDP-hopper-medium-v0"
    decision: str = "noise"  # or "velocity"
    steps: int = 30_000  # of the environment: robot actions, or flow steps
    learning_starts: int = 2_000
    episodes: int = 20
    seed: int = 0


def mean_return(env: gym.Env[Any, Any], agent: SAC | None, config: Config) -> float:
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
    """Returns the mean return of random flow actions, of the flow itself, and of SAC."""
    settings: dict[str, Any] = {"checkpoint": str(config.checkpoint), "decision": config.decision}
    if config.decision == "velocity":
        settings["action_mode"] = "residual"
    env = gym.make(config.env_id, **settings)
    clone = gym.make(config.env_id, checkpoint=str(config.checkpoint), action_mode="residual")
    clone = gym.wrappers.TransformAction(clone, lambda action: 0 * action, clone.action_space)
    agent = SAC(
        "MlpPolicy",
        env,
        learning_starts=config.learning_starts,
        replay_buffer_class=FlowReplayBuffer,  # gamma per robot action, not per flow step
        replay_buffer_kwargs={"gamma": 0.99},
        seed=config.seed,
    )
    agent.learn(config.steps)
    means = {
        "random flow actions": mean_return(gym.make(config.env_id), None, config),
        "the cloned flow": mean_return(clone, None, config),
        f"SAC, decision {config.decision}": mean_return(env, agent, config),
    }
    print(*(f"{name}: mean return {value:.0f}" for name, value in means.items()), sep="\n")
    return means


if __name__ == "__main__":
    main(tyro.cli(Config))
