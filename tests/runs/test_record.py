"""Videos: the flow drawn over the picture, the choice of an OpenGL backend, what is written."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest

from flowmdp.cli import main
from flowmdp.envs.robots import rendering
from flowmdp.envs.robots.outer import make_outer
from flowmdp.errors import RenderingError
from flowmdp.robot import RobotInterface
from flowmdp.runs.overlay import FlowOverlay
from flowmdp.runs.record import ChainPlayer, Frame, prepare_scene, write_picture

SIZE = (640, 480)


def chain(action: list[float], steps: int = 10) -> Any:
    """A straight chain from zero noise to an action."""
    return np.linspace(np.zeros(len(action)), action, steps + 1).astype(np.float32)


@pytest.mark.parametrize("dimensions", [1, 3, 6, 24])
def test_overlay_draws_beside_the_robot_only(dimensions: int) -> None:
    overlay = FlowOverlay([f"joint {i}" for i in range(dimensions)], SIZE, "title")
    frame = np.full((480, 640, 3), 100, np.uint8)
    before = frame.copy()
    drawn = overlay.draw(frame, chain([0.5] * dimensions), "step 0")
    assert drawn.shape == frame.shape and drawn.dtype == np.uint8
    np.testing.assert_array_equal(frame, before)
    assert (drawn[60:, :280] == 100).all(), "the robot's side of the picture is untouched"
    assert (drawn[20:460, 640 - 150 : 620] != 100).mean() > 0.9


@pytest.mark.parametrize("dimensions", [3, 24])
def test_the_middle_of_the_picture_stays_in_sight(dimensions: int) -> None:
    frame = np.full((480, 640, 3), 100, np.uint8)
    frame[230:250, 310:330] = (0, 255, 0)
    overlay = FlowOverlay([f"joint {i}" for i in range(dimensions)], SIZE, "")
    drawn = overlay.draw(frame, chain([0.5] * dimensions), "")
    assert (drawn == (0, 255, 0)).all(axis=2).sum() == 400


def test_overlay_shows_where_the_action_goes() -> None:
    """The disc of the executed action is higher for a larger action, and clipped at the bound."""

    def height(action: float) -> float:
        overlay = FlowOverlay(["joint"], SIZE, "")
        drawn = overlay.draw(np.zeros((480, 640, 3), np.uint8), chain([action]), "")
        ring = (drawn[:, 560:] > 180).all(axis=2)  # the disc's white edge
        return float(np.nonzero(ring)[0].mean())

    assert height(0.8) < height(0.0) - 20 < height(-0.8) - 40
    assert height(3.0) == pytest.approx(height(1.0), abs=3)


@pytest.mark.parametrize("dimensions", [1, 5])
def test_a_chunks_actions_stand_side_by_side(dimensions: int) -> None:
    """From left to right as high as they are; the executed one on a ground of its own."""
    names, black = [f"joint {i}" for i in range(dimensions)], np.zeros((480, 640, 3), np.uint8)
    ramp = np.repeat(np.linspace(-1, 1, 5), dimensions)  # every dimension rises along the chunk
    drawn = [
        FlowOverlay(names, SIZE, "", chunk=5).draw(black, chain(list(ramp)), "", position)
        for position in range(5)
    ]
    changed = [np.abs(drawn[i] - drawn[i + 1].astype(int)).max(axis=2)[:455] for i in range(4)]
    middles = [float(np.nonzero(where)[1].mean()) for where in changed]
    assert middles == sorted(middles) and middles[3] - middles[0] > 100
    white = np.all(drawn[0] > 180, axis=2)[26:92, 320:600]  # the discs' edges in the first plot
    if dimensions == 5:
        heights = [np.nonzero(white[:, at - 5 : at + 6])[0].mean() for at in range(53, 280, 54)]
        assert heights == sorted(heights, reverse=True), "upwards in the picture"


class Planner:
    """An agent of chunks: the plan is which chain it is and which action of it."""

    acts_at_mean = False
    robot = RobotInterface.plain(1, 2)
    spec = SimpleNamespace(action_dim=6, chunk=3, noise_scale=1.0, include_previous_action=True)

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def chain(self, observations: Any, noise: Any, previous: Any, field: Any) -> Any:
        assert noise.shape == (1, 6) and observations.shape == (1, 1)
        self.seen.append(None if previous is None else previous.tolist())
        plan = 0.1 * len(self.seen) + 0.01 * np.arange(6)
        return np.stack([noise, plan[None]]).astype(np.float32)


@pytest.mark.parametrize(("replan", "wanted"), [(None, "012012"), (2, "010101"), (1, "000000")])
def test_a_chunk_is_played_action_by_action(replan: int | None, wanted: str) -> None:
    agent = Planner()
    player: Any = ChainPlayer(agent, None, 0, replan)
    for step, position in enumerate(map(int, wanted)):
        action = player.act(np.zeros(1, np.float32))
        assert player.position == position and player.points.shape == (2, 6)
        first = 0.1 * (wanted[: step + 1].count("0")) + 0.02 * position
        np.testing.assert_allclose(action, [first, first + 0.01], rtol=1e-5)
    assert agent.seen[0] is None, "an episode's first action has none before it"
    (before,) = agent.seen[1]
    last = 0.1 + 0.02 * ((replan or 3) - 1)
    np.testing.assert_allclose(before, [last, last + 0.01, 1], rtol=1e-5)


def test_past_actions_fade() -> None:
    overlay = FlowOverlay(["joint"], SIZE, "")
    black = np.zeros((480, 640, 3), np.uint8)
    first = overlay.draw(black, chain([0.9]), "")
    second = overlay.draw(black, chain([-0.9]), "")
    alone = FlowOverlay(["joint"], SIZE, "").draw(black, chain([-0.9]), "")
    differs = (second != alone).any(axis=2)
    assert differs.any(), "the first action is still there"
    assert second[differs].mean() < first[differs].mean(), "and fainter than it was"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # imageio's reader, its pipes
def test_video_has_the_robots_rate_and_the_episodes_length(
    gl: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(runs["flow-bc"]), tmp_path / "video.mp4"
    assert main(["record", run, "--out", str(out), "--steps", "4"]) == 0
    assert "4 steps" in capsys.readouterr().out
    video: Any = imageio.get_reader(out)
    with video as reader:
        meta = reader.get_meta_data()
        frames = [np.asarray(frame) for frame in reader.iter_data()]
    assert meta["fps"] == 125 and meta["size"] == SIZE
    assert len(frames) == 4
    robot = frames[0][100:440, 200:440]
    assert robot.std() > 20, "there is something to see"
    plain = tmp_path / "plain.mp4"
    assert main(["record", run, "--out", str(plain), "--steps", "2", "--plain"]) == 0
    assert main(["record", run, "--out", str(plain), "--steps", "2", "--behavior"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.mp4", "video.mp4"]

    pictures = []
    for number in (1, 3):
        path = tmp_path / f"{number}.png"
        assert main(["record", run, "--out", str(path), "--steps", str(number)]) == 0
        assert f"{path}: {number} steps, return" in capsys.readouterr().out
        pictures.append(imageio.imread(path).astype(int))
        apart = np.abs(pictures[-1] - frames[number - 1]).mean()
        assert apart < 3, "the video's frame, but for its compression"
    assert main(["record", run, "--out", str(path), "--replan", "2"]) == 2
    assert "--replan" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_full_disk_keeps_the_old_video(
    gl: str,
    runs: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    out = tmp_path / f"video{suffix}"
    command = ["record", str(runs["flow-bc"]), "--out", str(out), "--steps", "4"]
    assert main(command) == 0
    before = out.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        assert main(command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("flowmdp: ffmpeg stopped writing") and "is the disk full?" in line
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]


def test_the_camera_follows_the_robot(gl: str) -> None:
    """Ten metres further on, the robot is still in the middle of the picture."""
    env: Any = make_outer("hopper-medium", render_mode="rgb_array")
    prepare_scene(env, *SIZE)
    env.reset(seed=0)
    bare = env.unwrapped
    shares = []
    for distance in (0.0, 10.0):
        bare.set_state(np.r_[distance, 1.25, 0, 0, 0, 0], np.zeros(6))
        frame = env.render().astype(int)
        brown = frame[..., 0] > frame[..., 2] + 30
        shares.append(brown[:, 240:400].mean())
    env.close()
    assert shares[0] > 0.02 and shares[1] == pytest.approx(shares[0], rel=0.2)


def test_without_gl_a_line_names_the_packages(
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    assert main(["record", str(runs["flow-bc"]), "--out", str(tmp_path / "video.mp4")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("flowmdp: no OpenGL") and "apt-get install libegl1" in line
    assert "unset MUJOCO_GL" in line
    assert list(tmp_path.iterdir()) == []


ROBOT = """
import gymnasium, flowmdp
env = gymnasium.make("FlowMDP-hopper-medium-v0", render_mode="rgb_array")
env.reset(seed=0)
print(env.render().std())
"""


def draw(backend: str | None) -> subprocess.CompletedProcess[str]:
    """Draw the robot in a new process, which has no display and this MUJOCO_GL."""
    environment = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    environment |= {} if backend is None else {"MUJOCO_GL": backend}
    return subprocess.run(
        [sys.executable, "-c", ROBOT], env=environment, capture_output=True, text=True
    )


def test_python_needs_no_variable_to_render(gl: str) -> None:
    run = draw(None)
    assert run.returncode == 0 and run.stderr == "", run.stderr
    assert float(run.stdout) > 20, "there is something to see"


def test_a_backend_that_fails_in_python_gives_the_same_line() -> None:
    """The user's own choice is not replaced: GLFW without a display."""
    run = draw("glfw")
    line = run.stderr.strip().splitlines()[-1]
    assert line.startswith("flowmdp.errors.RenderingError: no OpenGL to render with (glfw: ")
    assert "unset MUJOCO_GL" in line and "apt-get install libegl1" in line


def test_an_error_of_the_robots_own_stays_what_it_is(gl: str) -> None:
    with pytest.raises(gym.error.ResetNeeded):
        make_outer("hopper-medium", render_mode="rgb_array").render()


def test_a_window_needs_a_display() -> None:
    with pytest.raises(RenderingError, match="'human' needs a display"):
        make_outer("hopper-medium", render_mode="human")


@pytest.mark.parametrize("display", [False, True])
def test_backends_are_tried_in_order(display: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "")  # so that what the choice sets is taken back afterwards
    if display:
        monkeypatch.setenv("DISPLAY", ":0")
    asked: list[str] = []

    def failure(backend: str) -> str | None:
        asked.append(backend)
        return None if backend == "osmesa" else "no library"

    monkeypatch.setattr(rendering, "_failure", failure)
    assert rendering.choose_backend() == "osmesa"
    assert asked == [*(["glfw"] if display else []), "egl", "osmesa"]


def test_a_failing_probe_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_PROBE", "raise ImportError('no libEGL')")
    assert rendering._failure("egl") == "ImportError: no libEGL"
    monkeypatch.setattr(rendering, "_PROBE", f"import sys; sys.exit({sys.maxsize % 2})")
    assert rendering._failure("egl") == "crashed"


def test_a_picture_of_a_late_step_holds_few_frames(tmp_path: Path) -> None:
    there: list[weakref.ref[Any]] = []

    def frames() -> Iterator[Frame]:
        for step in range(9):
            picture = np.full((4, 4, 3), step, np.uint8)
            there.append(weakref.ref(picture))
            assert sum(one() is not None for one in there) <= 3
            yield Frame(picture, step, 0.0, False)

    assert write_picture(tmp_path / "flow.png", frames(), 30).steps == 8
