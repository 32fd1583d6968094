"""The robot's own environment behind a task."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from typing import Any

import gymnasium as gym

from flowmdp.envs.robots.faults import explain
from flowmdp.envs.robots.rendering import prepare_rendering
from flowmdp.envs.tasks import TASKS, Task, get_task
from flowmdp.errors import RenderingError, RobotError, UnknownTaskError
from flowmdp.robot import unit_robot

EXTRAS = {"robotics": "gymnasium_robotics", "ogbench": "ogbench"}
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
        source: "builtin", "minari", "d4rl" or "ogbench"; None takes the task's default. The source
            decides the environment's version: D4RL's Gym-MuJoCo files belong to `-v4`, not `-v5`.
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
    no_opengl = None
    if render_mode is not None:
        no_opengl = _no_opengl(row, render_mode)
        options["render_mode"] = render_mode
    if row.horizon:
        options["max_episode_steps"] = row.horizon
    env = _made(env_id, options)
    if not row.horizon and (env.spec is None or env.spec.max_episode_steps is None):
        env = gym.wrappers.TimeLimit(env, NO_LIMIT)
    if row.wrapper:
        module, _, name = row.wrapper.partition(":")
        env = getattr(importlib.import_module(module), name)(env)
    if render_mode is not None and render_mode not in env.metadata.get("render_modes", ()):
        raise RenderingError(f"{env_id} has no render mode {render_mode!r}: it cannot be drawn")
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if render_mode is not None and renderer is not None:
        if no_opengl is not None:
            raise no_opengl
        import mujoco  # Gymnasium 1.4's own camera stands still, and the robot walks out of it

        track = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
        renderer.camera_id = track  # -1 where the model has no such camera
    return env


def _no_opengl(row: Task, render_mode: str) -> RenderingError | None:
    """Why there is no OpenGL; raised for our robots, while others may draw without it."""
    try:
        prepare_rendering(render_mode)
    except RenderingError as error:
        if row.name in TASKS:
            raise
        return error
    return None


def _made(env_id: str, options: dict[str, Any]) -> gym.Env[Any, Any]:
    """What `gym.make` makes, or one line that says why not."""
    try:
        with warnings.catch_warnings():  # D4RL's data need the older version
            warnings.filterwarnings("ignore", ".* is out of date", DeprecationWarning)
            warnings.filterwarnings("ignore", ".*DISPLAY environment variable")  # mujoco.viewer's
            warnings.filterwarnings("ignore", ".*not in the possible render_modes")  # we look later
            env: gym.Env[Any, Any] = gym.make(env_id, disable_env_checker=True, **options)
    except (gym.error.Error, ImportError) as error:
        hint = ""
        if isinstance(error, gym.error.UnregisteredEnv) and ":" not in env_id:
            hint = "; where another package registers it, write package:Id"
        raise UnknownTaskError(f"cannot make {env_id}: {error}{hint}") from error
    except Exception as error:  # whatever the robot's own code raises
        raise RobotError(f"cannot make {env_id}: {explain(error)}") from error
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
