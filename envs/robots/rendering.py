"""OpenGL for the robots' pictures: a backend that works, and one line where there is none."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym

from flowmdp.errors import RenderingError

_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 16, 16) as renderer:
    renderer.update_scene(data)
    renderer.render()
"""


def choose_backend() -> str:
    """Find an OpenGL backend that renders, and set MUJOCO_GL to it.

    With a display GLFW comes first, MuJoCo's own default; without one it cannot work, and EGL and
    OSMesa are left. Each candidate is tried in a process of its own, because a failed one cannot be
    taken back. A backend that the user chose through MUJOCO_GL is the only candidate.

    Call it before the first frame: then Gymnasium's renderer reads MUJOCO_GL. `mujoco.Renderer`
    reads it when mujoco is imported.

    Returns:
        The backend's name.

    Raises:
        RenderingError: When none renders; the message names the packages that bring one.
    """
    chosen = os.environ.get("MUJOCO_GL")
    candidates = ("glfw", "egl", "osmesa") if has_display() else ("egl", "osmesa")
    failures = []
    for backend in (chosen,) if chosen else candidates:
        cause = _failure(backend)
        if cause is None:
            os.environ["MUJOCO_GL"] = backend
            return backend
        failures.append(f"{backend}: {cause}")
    cure = "unset MUJOCO_GL to let flowmdp choose, or " if chosen else ""
    raise RenderingError(
        f"no OpenGL to render with ({'; '.join(failures)}): {cure}install a backend, on Debian or "
        "Ubuntu `apt-get install libegl1 libgl1-mesa-dri` (or `libosmesa6`)"
    )


def has_display() -> bool:
    """Whether there is a desktop to open a window on; outside Linux there always is."""
    linux = sys.platform == "linux"
    return not linux or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def prepare_rendering(render_mode: str) -> None:
    """Make sure that there is something to render with; a backend the user chose is trusted.

    Raises:
        RenderingError: When no backend renders, or a window is asked for without a display.
    """
    if render_mode == "human":  # a window of GLFW, whatever MUJOCO_GL says
        if not has_display():
            raise RenderingError(
                "render_mode='human' needs a display: take 'rgb_array', or set DISPLAY"
            )
    elif not os.environ.get("MUJOCO_GL"):
        choose_backend()


class TypedRendering(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Raises `RenderingError` where the first frame fails because its backend does not work.

    The first frame is drawn by `render`, or by `reset` in the modes that draw by themselves.

    Args:
        env: The environment, with a render mode.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As the environment."""
        with _typed_failures():
            return super().reset(seed=seed, options=options)

    def render(self) -> Any:
        """As the environment."""
        with _typed_failures():
            return super().render()


@contextlib.contextmanager
def _typed_failures() -> Iterator[None]:
    """After a failure, try the backend by itself: one that does not render is the cause."""
    try:
        yield
    except Exception:
        choose_backend()
        raise


def _failure(backend: str) -> str | None:
    """Why a backend does not render, in a few words; None when it does."""
    environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        return "no answer within a minute"
    if probe.returncode == 0:
        return None
    lines = [line for line in probe.stderr.splitlines() if line and not line.startswith(" ")]
    errors = [line for line in lines if "Error" in line and "ignored" not in line]
    return (errors or lines or ["crashed"])[-1].strip()[:120]
