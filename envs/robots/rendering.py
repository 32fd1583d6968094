"""OpenGL for the robots' pictures: a backend that works, and one line where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

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


_PROVEN: set[str] = set()


def choose_backend() -> str:
    """Find an OpenGL backend that renders, set MUJOCO_GL to it and return its name.

    A backend that the user chose through MUJOCO_GL is the only candidate; else GLFW comes first
    where there is a display, then EGL, then OSMesa. Each is tried in a process of its own, because
    a failed one cannot be taken back. Call it before the first frame: then Gymnasium's renderer
    reads MUJOCO_GL. `mujoco.Renderer` reads it when mujoco is imported.

    Raises:
        RenderingError: When none renders; the message names the packages that bring one.
    """
    chosen = os.environ.get("MUJOCO_GL")
    candidates = ("glfw", "egl", "osmesa") if _has_display() else ("egl", "osmesa")
    failures = []
    for backend in (chosen,) if chosen else candidates:
        cause = _failure(backend)
        if cause is None:
            os.environ["MUJOCO_GL"] = backend
            _PROVEN.add(backend)
            return backend
        failures.append(f"{backend}: {cause}")
    cure = "unset MUJOCO_GL to let flowmdp choose, or " if chosen else ""
    raise RenderingError(
        f"no OpenGL to render with ({'; '.join(failures)}): {cure}install a backend, on Debian or "
        "Ubuntu `apt-get install libegl1 libgl1-mesa-dri` (or `libosmesa6`)"
    )


def prepare_rendering(render_mode: str) -> None:
    """Make sure that there is something to render with.

    Raises:
        RenderingError: When no backend renders, or a window is asked for without a display.
    """
    if render_mode == "human":  # a window of GLFW, whatever MUJOCO_GL says
        if not _has_display() or _failure("glfw"):
            raise RenderingError(
                "render_mode='human' needs a display: take 'rgb_array', or set DISPLAY"
            )
    elif os.environ.get("MUJOCO_GL") not in _PROVEN:
        choose_backend()


def _has_display() -> bool:
    """Whether there is a desktop to open a window on; outside Linux there always is."""
    return sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def _failure(backend: str) -> str | None:
    """Why a backend does not render, in a few words; None when it does."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend},
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
