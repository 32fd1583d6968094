"""Record a trained agent through the flow environment: one picture per action of the robot.

    python examples/record_video.py --checkpoint runs/hopper-medium/df-div-seed0/checkpoint.zip

`flowmdp record DIR` does the same with the flow of every action drawn over the picture.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio
import tyro

import flowmdp  # noqa: F401  (registers the environments)
from flowmdp.agents import load_agent


@dataclass
class Config:
    """Play one episode and write a video."""

    checkpoint: Path
    out: Path = Path("video.mp4")
    steps: int = 500  # actions of the robot, at most
    seed: int = 0


def main(config: Config) -> float:
    """Returns the robot's return."""
    agent = load_agent(config.checkpoint)
    settings = agent.spec.settings  # source, flow_steps, velocity_scale ...: as it was trained
    if agent.acts_at_mean:
        settings["noise_scale"] = 0.0  # as its paper evaluates it
    env: Any = gym.make(f"FlowMDP-{agent.spec.task}-v0", render_mode="rgb_array_list", **settings)
    observation, _ = env.reset(seed=config.seed)
    total, frames, over = 0.0, 0, False
    fps = env.metadata["render_fps"]
    with imageio.get_writer(config.out, fps=fps, macro_block_size=16) as writer:
        video: Any = writer
        while frames < config.steps and not over:
            action, _ = agent.predict(observation)  # a velocity, not yet what the robot does
            observation, reward, terminated, truncated, info = env.step(action)
            total, over = total + float(reward), terminated or truncated
            if "executed_action" in info:  # the chain is complete and the robot has moved
                for picture in env.render():  # one for each time it moved, also of a chunk
                    video.append_data(picture)
                    frames += 1
    env.close()
    print(f"{config.out}: {frames} frames, return {total:.0f}")
    return total


if __name__ == "__main__":
    main(tyro.cli(Config))
