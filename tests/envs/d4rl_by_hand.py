"""Files in D4RL's layouts, written from roll-outs of the tasks' own environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.tasks import get_task

Arrays = dict[str, NDArray[Any]]

ADROIT_INFOS = {
    "pen": {"desired_orien": 4},
    "hammer": {"board_pos": 3, "target_pos": 3},
    "door": {"door_body_pos": 3},
    "relocate": {"hand_qpos": 30, "obj_pos": 3, "palm_pos": 3, "target_pos": 3},
}
"""Entries of infos/ beside qpos and qvel in the Adroit v1 files, and their lengths."""


def rollout(task: str, episodes: int, length: int, seed: int = 0) -> Arrays:
    """Random actions in the d4rl environment: the arrays of a file, with next_observations.

    An episode that has not ended by itself after `length` steps is cut there, as a timeout.
    """
    outer = make_outer(task, "d4rl")
    outer.action_space.seed(seed)
    rows = []
    for episode in range(episodes):
        observation, _ = outer.reset(seed=seed + episode)
        for n in range(length):
            action = outer.action_space.sample()
            following, reward, terminated, truncated, _ = outer.step(action)
            timeout = (truncated or n == length - 1) and not terminated
            rows.append((observation, action, reward, terminated, timeout, following))
            observation = following
            if terminated or timeout:
                break
    outer.close()
    names = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    columns = zip(names, zip(*rows, strict=True), strict=True)
    arrays = {name: np.asarray(column) for name, column in columns}
    return {name: a.astype("f4") if a.dtype == "f8" else a for name, a in arrays.items()}


def write_d4rl(folder: Path, task: str, arrays: Arrays) -> Path:
    """Write the task's file under D4RL's name; Adroit v1 files have no next_observations."""
    path = folder / get_task(task).d4rl_file
    infos = ADROIT_INFOS.get(task.split("-")[0])
    n = len(arrays["rewards"])
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            if infos is None or key != "next_observations":
                file.create_dataset(key, data=array, compression="gzip")
        sizes = {"qpos": 30, "qvel": 30, **infos} if infos else {"qpos": 6, "qvel": 6}
        for key, size in sizes.items():
            file.create_dataset(f"infos/{key}", data=np.zeros((n, size), "f4"), compression="gzip")
        if infos and not task.endswith("human"):  # recorded from a policy, which is in the file
            for key in ("action_mean", "action_logstd"):
                file[f"infos/{key}"] = np.zeros_like(arrays["actions"])
            file["metadata/algorithm"] = np.bytes_("DAPG")
            file["metadata/policy/fc0/weight"] = np.zeros((32, 4), "f4")
    return path
