"""`flowmdp record`: a video of the robot with each action's flow from noise to action over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flowmdp.arguments import check_integers
from flowmdp.envs.robots.rendering import choose_backend
from flowmdp.errors import ConfigurationError, RenderingError
from flowmdp.files import replace_file
from flowmdp.runs.config import Device
from flowmdp.runs.overlay import FlowOverlay
from flowmdp.runs.scene import actuator_names, prepare_scene

SIZE = (640, 480)
FORMATS = (".mp4", ".mkv", ".mov")


class ChainPlayer:
    """Plays the robot by whole chains and keeps their points.

    Args:
        agent: The agent.
        field: Whose velocity is followed.
        seed: Of the noise.
    """

    def __init__(self, agent: Any, field: Any, seed: int) -> None:
        self.agent, self.field = agent, field
        self.rng = np.random.default_rng(seed)
        self.previous: NDArray[np.float32] | None = None

    def points(self, observation: NDArray[Any]) -> NDArray[np.float32]:
        """x_0 .. x_1 for one observation, shape (flow_steps + 1, action_dim), not clipped."""
        spec = self.agent.spec
        noise = self.rng.standard_normal((1, spec.action_dim), np.float32)
        noise *= np.float32(0 if self.agent.acts_at_mean else spec.noise_scale)
        batch = np.asarray(observation, np.float32)[None]
        points: NDArray[np.float32] = self.agent.chain(
            batch, noise, self.previous, field=self.field
        )[:, 0]
        if self.agent.spec.include_previous_action:
            flag = np.ones(1, np.float32)
            self.previous = np.concatenate([np.clip(points[-1], -1, 1), flag])[None]
        return points


def record(
    run_folder: Path,
    *,
    out: Path = Path("video.mp4"),
    steps: int = 1000,
    seed: int = 0,
    behavior: bool = False,
    task: str | None = None,
    plain: bool = False,
    device: Device = "cpu",
) -> None:
    """Record a video: the robot, and over it each action's flow from noise to action.

    Needs no display: rendering goes through GLFW, EGL or OSMesa (MUJOCO_GL chooses, else whichever
    works). The video runs at the robot's own frame rate.

    For example:
      flowmdp record runs/hopper-medium/df-div-seed0 --out video.mp4
      flowmdp record runs/my-run --behavior --out behavior.mp4
      flowmdp record runs/my-run --steps 250 --seed 3

    Args:
        run_folder: Run folder, or a checkpoint file.
        out: The video file to write.
        steps: Longest length, in steps of the robot.
        seed: Seed of start and noise.
        behavior: Play the behaviour flow instead of the trained policy.
        task: Refuse the checkpoint unless it belongs to this task.
        plain: Only the robot, without the flow drawn over it.
        device: Where the policy runs.

    Raises:
        RenderingError: When there is no OpenGL, or ffmpeg cannot write; an older video stays.
        ConfigurationError: For a length below 1, a negative seed or an unknown format.
        CheckpointError: When the checkpoint cannot be used.
    """
    check_integers(1, **{"--steps": steps})
    check_integers(0, **{"--seed": seed})
    if out.suffix.lower() not in FORMATS:
        raise ConfigurationError(f"--out {out}: use a name ending in {', '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise ConfigurationError(f"--out {out}: the folder does not exist, create it")
    backend = choose_backend()  # before anything that takes time to load
    from flowmdp.envs.robots.outer import make_outer
    from flowmdp.runs.play import open_agent

    agent = open_agent(run_folder, task, device)
    task = str(agent.spec.task)
    env = make_outer(task, agent.spec.source, render_mode="rgb_array")
    prepare_scene(env, *SIZE)
    policy = agent.behavior_policy() if behavior else agent.outer_policy()
    player = ChainPlayer(agent, policy.field, seed)
    title = f"{'behaviour flow' if behavior else agent.name} on {task}"
    overlay = FlowOverlay(actuator_names(env, agent.spec.action_dim), SIZE, title)
    total: list[float] = []
    try:
        replace_file(
            out,
            lambda path: total.extend(
                write_video(path, env, player, None if plain else overlay, steps, seed)
            ),
        )
    except BrokenVideoError as error:
        raise RenderingError(
            f"ffmpeg stopped writing {out}: is the disk full? Free some space and repeat"
        ) from error
    finally:
        env.close()
    played, reward = total
    fps = env.metadata["render_fps"]
    print(f"{out}: {played:.0f} steps, return {reward:.0f}, {fps} frames/s ({backend})")


class BrokenVideoError(Exception):
    """ffmpeg did not write all frames."""


def write_video(
    path: Path, env: Any, player: ChainPlayer, overlay: FlowOverlay | None, length: int, seed: int
) -> tuple[int, float]:
    """Play until the episode ends or the length is reached; returns steps and return.

    Raises:
        BrokenVideoError: When ffmpeg stops, or the file is not whole.
    """
    import imageio.v2 as imageio

    observation, _ = env.reset(seed=seed)
    total, steps, over = 0.0, 0, False
    writer = imageio.get_writer(
        path, fps=env.metadata["render_fps"], codec="libx264", quality=8, macro_block_size=16
    )
    try:
        with tqdm(total=length, desc="recording") as bar:
            while steps < length and not over:
                points = player.points(observation)
                frame = env.render()
                if overlay is not None:
                    frame = overlay.draw(frame, points, f"step {steps}  return {total:.0f}")
                writer.append_data(frame)
                action = np.clip(points[-1], -1, 1)
                observation, reward, terminated, truncated, _ = env.step(action)
                total, steps, over = total + float(reward), steps + 1, terminated or truncated
                bar.update()
    except OSError as error:
        raise BrokenVideoError from error
    finally:
        writer.close()
    if not is_whole(path, steps):
        raise BrokenVideoError
    return steps, total


def is_whole(path: Path, frames: int) -> bool:
    """Whether a video holds that many frames; imageio does not tell how its ffmpeg ended."""
    from imageio_ffmpeg import count_frames_and_secs

    try:
        return bool(count_frames_and_secs(path)[0] == frames)
    except RuntimeError:
        return False
