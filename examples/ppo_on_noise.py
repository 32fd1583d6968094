"""Make a cloned flow better on the robot: SB3's PPO chooses the noise of whole chunks.

    python examples/ppo_on_noise.py

A flow clones hopper-medium in chunks of four actions and stays as it is; PPO learns, on eight live
robots, which noise it starts from. Of the algorithms of other libraries it is the steadiest
(docs/online.md).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from flowmdp.agents import FlowBC


@dataclass
class Config:
    """Clone, then steer."""

    env_id: str = "flowmdp:FlowMDP-hopper-medium-v0"
    chunk: int = 4  # actions per decision
    flow_steps: int = 4
    clone_steps: int = 15_000
    noise_bound: float = 1.5  # how rare a plan may be, in standard deviations
    robots: int = 8
    decisions: int = 50_000  # chunks, of all robots: 200,000 steps at most
    evaluations: int = 5
    episodes: int = 10
    seed: int = 0
    out: Path = Path("runs/ppo-on-noise")


def main(config: Config) -> list[float]:
    """Returns the mean return of the clone, and of PPO at every evaluation."""
    settings: dict[str, Any] = {"chunk": config.chunk, "flow_steps": config.flow_steps}
    env = gym.make(config.env_id, **settings)
    clone = FlowBC("MlpPolicy", env, seed=config.seed, device="cpu")
    checkpoint = str(config.out / "clone.zip")
    clone.learn(config.clone_steps, progress_bar=True).save(checkpoint)
    settings |= {"decision": "noise", "noise_bound": config.noise_bound, "checkpoint": checkpoint}
    robots, judge = (
        make_vec_env(config.env_id, n, config.seed, env_kwargs=settings) for n in (config.robots, 1)
    )
    robots = VecNormalize(robots, norm_obs=False)
    judge = VecNormalize(judge, training=False, norm_obs=False, norm_reward=False)
    judged = EvalCallback(
        judge,
        eval_freq=config.decisions // config.evaluations // config.robots,
        n_eval_episodes=config.episodes,
        log_path=str(config.out),
    )
    agent = PPO(
        "MlpPolicy",
        robots,
        n_steps=128,
        batch_size=256,
        policy_kwargs={"log_std_init": -1.0},
        seed=config.seed,
        device="cpu",
    )
    before, _ = evaluate_policy(agent, judge, config.episodes)  # z = 0 at first: the clone's mean
    print(f"clone without noise: mean return {before:.0f}", flush=True)
    agent.learn(config.decisions, callback=judged, progress_bar=True)
    return [float(np.mean(before)), *map(float, np.mean(judged.evaluations_results, 1))]


if __name__ == "__main__":
    main(tyro.cli(Config))
