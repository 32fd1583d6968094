"""`flowmdp record`: the robot with each action's flow from noise to action over it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v2 as imageio
import numpy as np
from imageio_ffmpeg import count_frames_and_secs
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from flowmdp.arguments import check_integers
from flowmdp.envs.robots.outer import make_robot
from flowmdp.envs.tasks import get_task
from flowmdp.errors import ConfigurationError, RenderingError
from flowmdp.files import replace_file
from flowmdp.runs.config import MOST, Device
from flowmdp.runs.overlay import FlowOverlay
from flowmdp.runs.play import check_replan, open_agent

SIZE = (640, 480)
VIDEOS, PICTURES = (".mp4", ".mkv", ".mov"), (".png", ".jpg")


class ChainPlayer:
    """Plays the robot by whole chains and keeps the points of the last one.

    Args:
        agent: The agent.
        field: Whose velocity is followed.
        seed: Of the noise.
        replan: Actions of a chunk that are executed before the next chain; None for all.

    Attributes:
        points: x_0 .. x_1 of the chain, shape (flow_steps + 1, action_dim), not clipped.
        position: Which action of its chunk is the robot's next, from 0 on.
    """

    points: NDArray[np.float32]

    def __init__(self, agent: Any, field: Any, seed: int, replan: int | None = None) -> None:
        self.agent, self.field = agent, field
        self.rng = np.random.default_rng(seed)
        self.previous: NDArray[np.float32] | None = None
        self.replan = agent.spec.chunk if replan is None else replan
        self.position = self.replan - 1  # the first observation starts a chain

    def act(self, observation: Any) -> NDArray[np.float32]:
        """The robot's next action, in [-1, 1]; a new chain where the last one is executed."""
        self.position = (self.position + 1) % self.replan
        if self.position == 0:
            self.points = self._chain(observation)
        plan = self.points[-1].reshape(self.agent.spec.chunk, -1)
        action: NDArray[np.float32] = np.clip(plan[self.position], -1, 1)
        if self.agent.spec.include_previous_action:
            self.previous = np.concatenate([action, np.ones(1, np.float32)])[None]
        return action

    def _chain(self, observation: Any) -> NDArray[np.float32]:
        spec = self.agent.spec
        noise = self.rng.standard_normal((1, spec.action_dim), np.float32)
        noise *= np.float32(0 if self.agent.acts_at_mean else spec.noise_scale)
        batch = self.agent.robot.flatten(observation)[None]
        points: NDArray[np.float32] = self.agent.chain(
            batch, noise, self.previous, field=self.field
        )[:, 0]
        return points


class Frame(NamedTuple):
    """A picture of the robot before an action, and what the episode came to after it."""

    picture: NDArray[np.uint8]
    steps: int
    total: float
    success: bool


def record(
    run_folder: Path,
    *,
    out: Path = Path("video.mp4"),
    steps: int | None = None,
    seed: int = 0,
    behavior: bool = False,
    replan: int | None = None,
    task: str | None = None,
    plain: bool = False,
    device: Device = "cpu",
    trust: bool = False,
) -> None:
    """Record a video or a picture: the robot, and over it each action's flow from noise to action.

    Where the agent plans chunks, the plot of each of the robot's dimensions shows the actions of
    the chunk side by side; the one that is executed stands out.

    Needs no display: rendering goes through GLFW, EGL or OSMesa (MUJOCO_GL chooses, else whichever
    works). The video runs at the robot's own frame rate.

    For example:
      flowmdp record runs/hopper-medium/df-div-seed0 --out video.mp4
      flowmdp record runs/my-run --behavior --out behavior.mp4
      flowmdp record runs/my-run --steps 250 --seed 3
      flowmdp record runs/my-run --out flow.png --steps 40

    Args:
        run_folder: Run folder, or a checkpoint file.
        out: The file to write: a video (.mp4, .mkv, .mov), or a picture (.png, .jpg).
        steps: Longest length, in steps of the robot, 1000 when not given; a picture shows the last
            of them, the first when not given.
        seed: Seed of start and noise.
        behavior: Play the behaviour flow instead of the trained policy.
        replan: Actions of a chunk that are executed before the next one is planned; the whole chunk
            when not given.
        task: Refuse the checkpoint unless it belongs to this task.
        plain: Only the robot, without the flow drawn over it.
        device: Where the policy runs.
        trust: Import, and so run, the code of others that the run names.

    Raises:
        RenderingError: When there is no OpenGL, or ffmpeg cannot write; an older video stays.
        ConfigurationError: For a length below 1, a negative seed or an unknown format.
        CheckpointError: When the checkpoint cannot be used.
    """
    kind = out.suffix.lower()
    if kind not in VIDEOS + PICTURES:
        endings = ", ".join(VIDEOS + PICTURES)
        raise ConfigurationError(f"--out {out}: use a name ending in {endings}")
    if steps is None:
        steps = 1 if kind in PICTURES else 1000
    check_integers(1, MOST, **{"--steps": steps})
    check_integers(0, MOST, **{"--seed": seed})
    if not out.parent.is_dir():
        raise ConfigurationError(f"--out {out}: the folder does not exist, create it")
    agent = open_agent(run_folder, task, device, trust)
    if replan is not None:
        check_replan(replan, agent)
    task = str(agent.spec.task)
    env = make_robot(task, agent.spec.source, render_mode="rgb_array")
    prepare_scene(env, *SIZE)
    policy = agent.behavior_policy() if behavior else agent.outer_policy()
    player = ChainPlayer(agent, policy.field, seed, replan)
    title = f"{'behaviour flow' if behavior else agent.name} on {task}"
    names = actuator_names(env, agent.spec.robot_action_dim)
    overlay = None if plain else FlowOverlay(names, SIZE, title, agent.spec.chunk)
    rate = frame_rate(env)
    try:
        frames = played(env, player, overlay, steps, seed)
        write = write_picture if kind in PICTURES else write_video
        last = replace_file(out, lambda path: write(path, frames, rate))
    finally:
        env.close()
    outcome = ""
    if get_task(task).success:
        outcome = ", success" if last.success else ", no success"
    words = f"{last.steps} steps, return {last.total:.0f}{outcome}"
    print(f"{out}: {words}" + f", {rate} frames/s" * (kind in VIDEOS))


def played(
    env: Any, player: ChainPlayer, overlay: FlowOverlay | None, length: int, seed: int
) -> Iterator[Frame]:
    """Play until the episode ends or the length is reached, a frame before every action."""
    observation, _ = env.reset(seed=seed)
    total, steps, over = 0.0, 0, False
    with tqdm(total=length, desc="recording") as bar:
        while steps < length and not over:
            action = player.act(observation)
            picture = env.render()
            if overlay is not None:
                status = f"step {steps}  return {total:.0f}"
                picture = overlay.draw(picture, player.points, status, player.position)
            observation, reward, terminated, truncated, info = env.step(
                player.agent.robot.to_robot(action)
            )
            total, steps, over = total + float(reward), steps + 1, terminated or truncated
            bar.update()
            yield Frame(picture, steps, total, bool(info.get("success")))


def write_picture(path: Path, frames: Iterator[Frame], rate: int) -> Frame:
    """Write the last frame, which is returned."""
    (last,) = deque(frames, maxlen=1)
    Image.fromarray(last.picture).save(path)
    return last


def write_video(path: Path, frames: Iterator[Frame], rate: int) -> Frame:
    """Write all frames; returns the last.

    Raises:
        RenderingError: When ffmpeg stops, or the file is not whole.
    """
    broken = "ffmpeg stopped writing the video: is the disk full? Free some space and repeat"
    writer = imageio.get_writer(path, fps=rate, codec="libx264", quality=8, macro_block_size=16)
    try:
        for frame in frames:
            writer.append_data(frame.picture)
    except OSError as error:
        raise RenderingError(broken) from error
    finally:
        writer.close()
    if not is_whole(path, frame.steps):
        raise RenderingError(broken)
    return frame


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
    """Names of the joints behind the action's dimensions; numbers where the model has none.

    A robot may tell them itself, in an attribute `action_names`.
    """
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
