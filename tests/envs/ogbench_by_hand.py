"""A Minari dataset of OGBench's form, rolled out by hand: no rewards, but the states with it."""

from __future__ import annotations

import json
import warnings
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

from flowmdp.envs.data.store import dataset_folder
from flowmdp.envs.robots.outer import make_robot
from flowmdp.envs.tasks import get_task


def roll_out(task: str, episodes: int = 2, steps: int = 12) -> list[dict[str, Any]]:
    """Episodes of random actions from states around the task's goal.

    Some states are a success and others not, and those of one episode need not follow each other.
    Of each: `observations`, `qpos` and, where the scene has buttons, `button_states` (one more than
    `actions`); and `rewards` and `terminations` as the environment itself gave them.
    """
    robot = make_robot(task)
    bare: Any = robot.unwrapped
    rng, found = np.random.default_rng(0), []
    for number in range(episodes):
        robot.reset(seed=number)
        rows: dict[str, list[Any]] = {name: [] for name in (*KEPT, "rewards", "terminations")}
        for step in range(steps + 1):
            move_near_goal(bare, rng, step)
            rows["observations"].append(bare.compute_observation().astype(np.float32))
            rows["qpos"].append(bare.data.qpos.astype(np.float32))
            rows["button_states"].append(getattr(bare, "_cur_button_states", np.zeros(0)).copy())
            rows["actions"].append(rng.uniform(-1, 1, 5).astype(np.float32))
            _, reward, terminated, *_ = robot.step(rows["actions"][-1])
            rows["rewards"].append(reward)
            rows["terminations"].append(terminated)
        found.append({name: np.array(row) for name, row in rows.items()})
    robot.close()
    return found


KEPT = ("observations", "actions", "qpos", "button_states")


def move_near_goal(bare: Any, rng: np.random.Generator, step: int) -> None:
    """Put every object to its goal, or a few of them somewhere else."""
    import mujoco

    wrong = rng.integers(0, 2, 20).astype(bool) & (step % 3 > 0)
    offset = np.array([0.08, 0.0, 0.0])
    for i in range(getattr(bare, "_num_cubes", 0)):
        goal = bare._data.mocap_pos[bare._cube_target_mocap_ids[i]]
        bare._data.joint(f"object_joint_{i}").qpos[:3] = goal + offset * wrong[i]
    if hasattr(bare, "_target_button_states"):
        goal = bare._target_button_states
        bare._cur_button_states[:] = np.where(wrong[4 : 4 + len(goal)], 1 - goal, goal)
    if hasattr(bare, "_target_drawer_pos"):
        bare._data.joint("drawer_slide").qpos[0] = bare._target_drawer_pos + 0.1 * wrong[2]
        bare._data.joint("window_slide").qpos[0] = bare._target_window_pos + 0.1 * wrong[3]
    mujoco.mj_forward(bare._model, bare._data)
    bare.pre_step()
    bare.post_step()


def write_ogbench(
    dataset_id: str, task: str, episodes: list[dict[str, Any]], leave_out: tuple[str, ...] = ()
) -> str:
    """Write what `roll_out` gave without rewards, as data for all goals of the scene."""
    states = [name for name in ("qpos", "button_states") if name not in leave_out]
    width = episodes[0]["observations"].shape[1]
    buffers = [
        EpisodeBuffer(
            observations=episode["observations"],
            actions=episode["actions"][:-1],
            rewards=[0.0] * (len(episode["actions"]) - 1),
            terminations=[False] * (len(episode["actions"]) - 1),
            truncations=[False] * (len(episode["actions"]) - 2) + [True],
            infos={name: episode[name] for name in states if episode[name].shape[1]},
        )
        for episode in episodes
    ]
    with warnings.catch_warnings(action="ignore"):  # it misses an author and a spec
        minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            observation_space=gym.spaces.Box(-np.inf, np.inf, (width,), np.float32),
            action_space=gym.spaces.Box(-1, 1, (5,), np.float32),
            algorithm_name="by hand",
        )
    path = dataset_folder(dataset_id) / "data" / "metadata.json"
    scene = get_task(task).same_robot[0]
    spec = {"env_spec": json.dumps({"id": scene, "kwargs": {}, "additional_wrappers": []})}
    path.write_text(json.dumps(json.loads(path.read_text()) | spec))
    return dataset_id
