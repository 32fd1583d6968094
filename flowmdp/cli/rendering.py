"""Rendering without a display: a working OpenGL backend, and a robot that software can draw."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from flowmdp.errors import RenderingError

BACKENDS = ("egl", "osmesa")
"""Tried in this order; GLFW needs a display and is taken only when MUJOCO_GL asks for it."""

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

    Call it before mujoco is imported, which reads MUJOCO_GL once. Each candidate is tried in a
    process of its own, because a failed one cannot be taken back. A backend that the user chose
    through MUJOCO_GL is the only candidate.

    Returns:
        The backend's name.

    Raises:
        RenderingError: When none renders; the message names the packages that bring one.
    """
    chosen = os.environ.get("MUJOCO_GL")
    failures = []
    for backend in (chosen,) if chosen else BACKENDS:
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


def prepare_scene(env: Any, width: int, height: int) -> None:
    """Set the picture's size and leave out shadows and mirrors, which software GL draws slowly.

    Call it before the first frame. Environments without MuJoCo's model keep their own picture.

    Args:
        env: The outer environment.
        width: Of the frame, pixels.
        height: Of the frame, pixels.
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
    model = getattr(env.unwrapped, "model", None)
    if model is None or getattr(model, "nu", None) != count:
        return names
    import mujoco

    for i in range(count):
        joint = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, model.actuator_trnid[i, 0])
        if joint:
            names[i] = joint.removesuffix("_joint").replace("_", " ")
    return names
