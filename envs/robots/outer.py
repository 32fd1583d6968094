"""The robot's own environment behind a task."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from typing import Any

import gymnasium as gym

from flowmdp.envs.robots.rendering import prepare_rendering
from flowmdp.envs.tasks import Task, get_task
from flowmdp.errors import UnknownTaskError
from flowmdp.robot import unit_robot

EXTRAS = {"robotics": "gymnasium_robotics"}
"""Optional extra -> the module that brings its environments."""


NO_LIMIT = 10_000
"""Steps after which an episode of a robot without a time limit of its own is truncated."""


def make_outer(task: str, source: str | None = None, render_mode: str | None = None) -> gym.Env:
    """`make_robot`, with flat observations and actions in [-1, 1]; see `flowmdp.robot`."""
    return unit_robot(make_robot(task, source, render_mode))


def make_robot(task: str, source: str | None = None, render_mode: str | None = None) -> gym.Env:
    """Build a task's robot, from our table and never from a dataset's own word.

    Args:
        task: Name of the task, `hopper-medium`, or an environment's id. An id `module:Id-v0`
            imports the module.
        source: "builtin", "minari" or "d4rl"; None takes the task's default. The source decides the
            environment's version: D4RL's Gym-MuJoCo files belong to `-v4`, all else to `-v5`.
        render_mode: Passed on to the environment: None, "rgb_array" or "human".

    Returns:
        An environment in its own spaces; it truncates by itself at the task's horizon, or its own.

    Raises:
        UnknownTaskError: For an unknown task or source, or an environment that is not installed.
        RenderingError: With a render mode, when there is no OpenGL to render with.
    """
    row = get_task(task)
    env_id = registered_id(row, row.source(source))
    options: dict[str, Any] = dict(row.options)
    if render_mode is not None:
        prepare_rendering(render_mode)
        options["render_mode"] = render_mode
    if row.horizon:
        options["max_episode_steps"] = row.horizon
    try:
        with warnings.catch_warnings():  # D4RL's data need the older version
            warnings.filterwarnings("ignore", ".* is out of date", DeprecationWarning)
            env: gym.Env[Any, Any] = gym.make(env_id, disable_env_checker=True, **options)
    except (gym.error.Error, ImportError) as error:
        hint = ""
        if isinstance(error, gym.error.UnregisteredEnv) and ":" not in env_id:
            hint = "; where another package registers it, write package:Id"
        raise UnknownTaskError(f"cannot make {env_id} for task {task}: {error}{hint}") from error
    if not row.horizon and (env.spec is None or env.spec.max_episode_steps is None):
        env = gym.wrappers.TimeLimit(env, NO_LIMIT)
    if row.wrapper:
        module, _, name = row.wrapper.partition(":")
        env = getattr(importlib.import_module(module), name)(env)
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if render_mode is not None and renderer is not None:
        import mujoco  # Gymnasium 1.4's own camera stands still, and the robot walks out of it

        track = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
        renderer.camera_id = track  # -1 where the model has no such camera
    return env


def registered_id(row: Task, source: str) -> str:
    """The id of the robot's environment in the installed release; imports what registers it."""
    if row.extra:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # its news; row.wrapper deals with them
                gym.register_envs(importlib.import_module(EXTRAS[row.extra]))
        except ImportError as error:
            raise UnknownTaskError(
                f"task {row.name} needs {EXTRAS[row.extra].replace('_', '-')} ({error}): "
                f'pip install "flowmdp[{row.extra}]"'
            ) from error
    ids = (row.outer_env[source], *row.same_robot)
    return next((env_id for env_id in ids if env_id in gym.registry), ids[0])
