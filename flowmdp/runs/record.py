"""`flowmdp record`: a video of the robot with each action's flow from noise to action over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from imageio_ffmpeg import count_frames_and_secs
from numpy.typing import NDArray
from tqdm import tqdm

from flowmdp.arguments import check_integers
from flowmdp.envs.robots.outer import make_robot
from flowmdp.errors import ConfigurationError, RenderingError
from flowmdp.files import replace_file
from flowmdp.runs.config import MOST, Device
from flowmdp.runs.overlay import FlowOverlay
from flowmdp.runs.play import open_agent

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

    def points(self, observation: Any) -> NDArray[np.float32]:
        """x_0 .. x_1 for one observation, shape (flow_steps + 1, action_dim), not clipped."""
        spec = self.agent.spec
        noise = self.rng.standard_normal((1, spec.action_dim), np.float32)
        noise *= np.float32(0 if self.agent.acts_at_mean else spec.noise_scale)
        batch = self.agent.robot.flatten(observation)[None]
        points: NDArray[np.float32] = self.agent.chain(
            batch, noise, self.previous, field=self.field
        )[:, 0]
        if spec.include_previous_action:
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
    trust: bool = False,
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
        trust: Import, and so run, the code of others that the run names.

    Raises:
        RenderingError: When there is no OpenGL, or ffmpeg cannot write; an older video stays.
        ConfigurationError: For a length below 1, a negative seed or an unknown format.
        CheckpointError: When the checkpoint cannot be used.
    """
    check_integers(1, MOST, **{"--steps": steps})
    check_integers(0, MOST, **{"--seed": seed})
    if out.suffix.lower() not in FORMATS:
        raise ConfigurationError(f"--out {out}: use a name ending in {', '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise ConfigurationError(f"--out {out}: the folder does not exist, create it")
    agent = open_agent(run_folder, task, device, trust)
    task = str(agent.spec.task)
    env = make_robot(task, agent.spec.source, render_mode="rgb_array")
    prepare_scene(env, *SIZE)
    policy = agent.behavior_policy() if behavior else agent.outer_policy()
    player = ChainPlayer(agent, policy.field, seed)
    title = f"{'behaviour flow' if behavior else agent.name} on {task}"
    names = actuator_names(env, agent.spec.action_dim)
    overlay = None if plain else FlowOverlay(names, SIZE, title)
    try:
        played, total = replace_file(
            out, lambda path: write_video(path, env, player, overlay, steps, seed)
        )
    finally:
        env.close()
    print(f"{out}: {played} steps, return {total:.0f}, {frame_rate(env)} frames/s")


def write_video(
    path: Path, env: Any, player: ChainPlayer, overlay: FlowOverlay | None, length: int, seed: int
) -> tuple[int, float]:
    """Play until the episode ends or the length is reached; returns steps and return.

    Raises:
        RenderingError: When ffmpeg stops, or the file is not whole.
    """
    broken = "ffmpeg stopped writing the video: is the disk full? Free some space and repeat"
    observation, _ = env.reset(seed=seed)
    total, steps, over = 0.0, 0, False
    writer = imageio.get_writer(
        path, fps=frame_rate(env), codec="libx264", quality=8, macro_block_size=16
    )
    try:
        with tqdm(total=length, desc="recording") as bar:
            while steps < length and not over:
                points = player.points(observation)
                frame = env.render()
                if overlay is not None:
                    frame = overlay.draw(frame, points, f"step {steps}  return {total:.0f}")
                writer.append_data(frame)
                action = player.agent.robot.to_robot(np.clip(points[-1], -1, 1))
                observation, reward, terminated, truncated, _ = env.step(action)
                total, steps, over = total + float(reward), steps + 1, terminated or truncated
                bar.update()
    except OSError as error:
        raise RenderingError(broken) from error
    finally:
        writer.close()
    if not is_whole(path, steps):
        raise RenderingError(broken)
    return steps, total


def frame_rate(env: Any) -> int:
    """Frames per second at which the robot moves in real time; 30 where it does not tell."""
    return int(env.metadata.get("render_fps", 30))


def is_whole(path: Path, frames: int) -> bool:
    """Whether a video holds that many frames; imageio does not tell how its ffmpeg ended."""
    try:
        return bool(count_frames_and_secs(path)[0] == frames)
    except RuntimeError:
        return False


def prepare_scene(env: Any, width: int, height: int) -> None:
    """Set the picture's size in pixels, and leave out shadows and mirrors: software GL is slow.

    Call it before the first frame. Environments without MuJoCo's model keep their own picture.
    """
    if not all(env.has_wrapper_attr(name) for name in ("model", "mujoco_renderer")):
        return
    model, renderer = env.get_wrapper_attr("model"), env.get_wrapper_attr("mujoco_renderer")
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    renderer.width, renderer.height = width, height
    model.vis.quality.shadowsize = 0
    model.mat_reflectance[:] = 0


def actuator_names(env: Any, count: int) -> list[str]:
    """Names of the joints behind the action's dimensions; numbers where the model has none."""
    names = [f"action {i + 1}" for i in range(count)]
    if env.has_wrapper_attr("action_names") and len(env.get_wrapper_attr("action_names")) == count:
        return list(env.get_wrapper_attr("action_names"))
    model = getattr(env.unwrapped, "model", None)
    if model is None or getattr(model, "nu", None) != count:
        return names
    import mujoco  # not above: by then the OpenGL backend must be chosen

    for i in range(count):
        joint = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, model.actuator_trnid[i, 0])
        if joint:
            names[i] = joint.removesuffix("_joint").replace("_", " ")
    return names
