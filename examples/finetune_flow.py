"""Make a cloned flow better on the robot: PPO moves the flow itself, whose steps get noise.

    python examples/finetune_flow.py

A flow clones hopper-medium in chunks of four actions; FlowPPO (docs/algorithms/flow-ppo.md) goes on
from it on eight live robots.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from flowmdp.agents import FlowBC, FlowPPO


@dataclass
class Config:
    """Clone, then fine-tune."""

    env_id: str = "flowmdp:FlowMDP-hopper-medium-v0"
    chunk: int = 4  # actions per decision
    flow_steps: int = 4
    clone_steps: int = 15_000
    robots: int = 8
    decisions: int = 100_000  # chunks, of all robots: 400,000 steps at most
    evaluations: int = 4
    episodes: int = 10
    seed: int = 0
    out: Path = Path("runs/finetune-flow")


def main(config: Config) -> list[float]:
    """Returns the mean return of the clone, and of the fine-tuned flow at the end."""
    settings: dict[str, Any] = {"chunk": config.chunk, "flow_steps": config.flow_steps}
    env = Monitor(gym.make(config.env_id, **settings))
    clone = FlowBC("MlpPolicy", env, seed=config.seed).learn(config.clone_steps, progress_bar=True)
    before, _ = evaluate_policy(clone, env, config.episodes, deterministic=False)
    print(f"clone: mean return {before:.0f}", flush=True)
    settings["decision"] = "action"  # one step is a whole chunk
    robots = make_vec_env(config.env_id, config.robots, config.seed, env_kwargs=settings)
    judge = Monitor(gym.make(config.env_id, **settings))
    judged = EvalCallback(
        judge,
        eval_freq=config.decisions // config.robots // config.evaluations,
        n_eval_episodes=config.episodes,
        log_path=str(config.out),
    )
    agent = FlowPPO.from_agent(clone, robots)
    agent.learn(config.decisions, callback=judged, progress_bar=True)
    agent.save(config.out / "flow-ppo.zip")
    after, _ = evaluate_policy(agent, judge, config.episodes)
    print(f"FlowPPO: mean return {after:.0f}", flush=True)
    return [float(np.mean(before)), float(np.mean(after))]


if __name__ == "__main__":
    main(tyro.cli(Config))
