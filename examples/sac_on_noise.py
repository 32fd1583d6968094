"""Make a cloned flow better on the robot: SB3's SAC chooses the noise of whole chunks.

    python examples/sac_on_noise.py

A flow clones hopper-medium in chunks of four actions and stays as it is; SAC learns, on the live
robot, which noise it starts from (DSRL, Wagenmaker et al. 2025, arXiv:2506.15799).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from flowmdp.agents import FlowBC
from flowmdp.sb3 import FlowReplayBuffer


@dataclass
class Config:
    """Clone, then steer."""

    env_id: str = "FlowMDP-hopper-medium-v0"
    chunk: int = 4  # actions per decision
    flow_steps: int = 5
    clone_steps: int = 30_000
    noise_bound: float = 1.5  # how rare a plan may be, in standard deviations
    decisions: int = 10_000  # chunks, 40,000 steps of the robot
    gradient_steps: int = 4  # per chunk
    evaluations: int = 5
    episodes: int = 10
    seed: int = 0
    out: Path = Path("runs/sac-on-noise")


def main(config: Config) -> list[float]:
    """Returns the mean return of the clone, and of SAC at every evaluation."""
    settings: dict[str, Any] = {"chunk": config.chunk, "flow_steps": config.flow_steps}
    env = Monitor(gym.make(f"flowmdp:{config.env_id}", **settings))
    clone = FlowBC("MlpPolicy", env, seed=config.seed)
    checkpoint = str(config.out / "clone.zip")
    clone.learn(config.clone_steps, progress_bar=True).save(checkpoint)
    before, _ = evaluate_policy(clone, env, config.episodes, deterministic=False)
    print(f"clone: mean return {before:.0f}", flush=True)
    settings |= {"decision": "noise", "noise_bound": config.noise_bound}
    robot, judge = (
        Monitor(gym.make(config.env_id, checkpoint=checkpoint, **settings)) for _ in range(2)
    )
    judged = EvalCallback(
        judge,
        eval_freq=config.decisions // config.evaluations,
        n_eval_episodes=config.episodes,
        log_path=str(config.out),
    )
    SAC(
        "MlpPolicy",
        robot,
        buffer_size=config.decisions,
        replay_buffer_class=FlowReplayBuffer,
        replay_buffer_kwargs={"gamma": 0.99 ** (1 / config.chunk)},  # 0.99 per chunk
        learning_starts=config.decisions // 7,  # random noise: the clone, a little wider
        gradient_steps=config.gradient_steps,
        target_entropy=0.0,
        policy_kwargs={"net_arch": [128] * 3, "activation_fn": torch.nn.Tanh},
        seed=config.seed,
        device="cpu",
    ).learn(config.decisions, callback=judged, progress_bar=True)
    return [float(np.mean(before)), *map(float, np.mean(judged.evaluations_results, 1))]


if __name__ == "__main__":
    main(tyro.cli(Config))
