"""The picture of a video: a robot that software can draw, and the names of its joints."""

from __future__ import annotations

from typing import Any


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
