"""Import D4RL's original HDF5 files (Fu et al. 2020) into Minari's local store.

A file holds all transitions in one row: observations, actions, rewards, terminals, timeouts, and in
the Gym-MuJoCo ones next_observations; infos/* and metadata/* are left behind. An episode ends where
terminals or timeouts say so, where next_observations does not lead to the following row, and at the
end of the file. Neither `d4rl` nor `gym` nor `mujoco_py` is needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from numpy.typing import NDArray

from flowmdp.envs.data.sources.build import write_dataset
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.data.store import dataset_lock, is_present
from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.tasks import TASKS, Task, get_task
from flowmdp.errors import DatasetError
from flowmdp.transitions import check_values

Arrays = dict[str, NDArray[Any]]

KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")

IMPORT_KEY = "flowmdp_import"
"""Key of a dataset's metadata that tells which file it came from, and what was done to it."""


def import_d4rl(
    file: str | os.PathLike[str], task: str, clip_actions: bool = False, force: bool = False
) -> str:
    """Write one of D4RL's files as the task's Minari dataset of source "d4rl".

    Without `next_observations` the observation after an episode's last step is not in the file.
    Where the episode timed out its last step is dropped, as D4RL's own `qlearning_dataset` does;
    where it terminated the step stays, followed by a copy of its observation, which nothing
    bootstraps from.

    Args:
        file: The file, `hopper_medium-v2.hdf5` or `pen-human-v1.hdf5`.
        task: The task it belongs to, `hopper-medium`.
        clip_actions: Whether actions outside [-1, 1] are clipped; else they are an error.
        force: Whether to replace a dataset that was imported before.

    Returns:
        The dataset's Minari id.

    Raises:
        UnknownTaskError: For an unknown task.
        DatasetError: When the file is torn, foreign, holds NaN, has other shapes than the task's
            environment, bears the name of another task's file or of another version, was imported
            before, or the store cannot be written.
    """
    row = get_task(task)
    dataset_id, path = row.dataset("d4rl"), Path(file)
    _refuse_other_files(row, path.name)
    with make_outer(task, "d4rl") as outer:
        arrays = _read(path, outer)
        clip = None if clip_actions else "clip them with clip_actions=True (--clip-actions)"
        check_values(str(path), arrays, cure="download it again", clip=clip)
        episodes = _episodes(arrays, outer.observation_space.dtype)
        first = next(episodes, None)
        if first is None:
            raise DatasetError(f"{path} holds no whole transition: download it again")
        notes = {
            "file": path.name,
            "transitions": len(arrays["rewards"]),
            "actions_clipped": int((np.abs(arrays["actions"]) > 1).any(1).sum()),
            "has_next_observations": "next_observations" in arrays,
        }
        metadata = {IMPORT_KEY: notes, "algorithm_name": "D4RL"}
        with dataset_lock(dataset_id):
            if is_present(dataset_id) and not force:
                cure = "keep it, or replace it with --force (force=True)"
                raise DatasetError(f"dataset {dataset_id} is there already: {cure}")
            write_dataset(dataset_id, outer, chain([first], episodes), metadata)
    return dataset_id


def _refuse_other_files(row: Task, name: str) -> None:
    """Refuse what D4RL named otherwise: another task's file, or another version of this one's."""
    owner = next((task.name for task in TASKS.values() if task.d4rl_file == name), row.name)
    if owner != row.name:
        cure = f"import it with --task {owner}"
        raise DatasetError(f"{name} is D4RL's file of {owner}, not of {row.name}: {cure}")
    stem = re.escape(row.d4rl_file.rsplit("-v", 1)[0])
    if name != row.d4rl_file and re.fullmatch(rf"{stem}-v\d+\.hdf5", name):
        raise DatasetError(
            f"{name} is another version of D4RL's data than {row.d4rl_file}, which task {row.name} "
            "stands for: import that file"
        )


def _read(path: Path, outer: gym.Env[Any, Any]) -> Arrays:
    """The arrays of a D4RL file that make transitions of the environment."""
    if not path.is_file():
        raise DatasetError(f"{path} does not exist: name D4RL's file, like hopper_medium-v2.hdf5")
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in KEYS if not isinstance(file.get(key), h5py.Dataset)]
            keys = (*KEYS, *({"next_observations"} & set(file)))
            arrays = {} if missing else {key: np.asarray(file[key]) for key in keys}
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise DatasetError(f"cannot read {path} ({error}): download it again") from error
    if missing:
        raise DatasetError(
            f"{path} is no D4RL file: it lacks {', '.join(missing)}; give one like "
            "hopper_medium-v2.hdf5"
        )
    lengths = {key: len(array) for key, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise DatasetError(f"{path} has arrays of different lengths ({listed}): download it again")
    if lengths["rewards"] == 0:
        raise DatasetError(f"{path} holds no transitions: download it again")
    observed, acted = outer.observation_space.shape, outer.action_space.shape
    shapes = {"observations": observed, "next_observations": observed, "actions": acted}
    for key, array in arrays.items():
        shape = shapes.get(key, ())
        if shape == () and array.shape[1:] == (1,):  # some files keep them as columns
            arrays[key] = array[:, 0]
        elif array.shape[1:] != shape:
            raise DatasetError(
                f"{path} has {key} of shape {array.shape[1:]}, but {outer.spec and outer.spec.id} "
                f"has {shape}: name the task that the file belongs to"
            )
        if array.dtype.kind not in "fbiu":
            raise DatasetError(f"{path} has {key} that are no numbers: download it again")
    return arrays


def _episodes(arrays: Arrays, dtype: Any) -> Iterator[Episode]:
    """Yield the episodes of a file, observations of that dtype; skip those left without a step."""
    observations, terminals = arrays["observations"], arrays["terminals"].astype(bool)
    ended = terminals | arrays["timeouts"].astype(bool)
    following = arrays.get("next_observations", observations)
    if following is not observations:
        ended[:-1] |= ~(following[:-1] == observations[1:]).all(axis=1)
    ended[-1] = True
    start = 0
    for end in np.flatnonzero(ended).tolist():
        known = following is not observations or terminals[end]
        rows, start = slice(start, end + int(known)), end + 1
        last = np.arange(rows.start, rows.stop) == rows.stop - 1
        if len(last):
            yield Episode(
                seed=None,
                observations=np.concatenate([observations[rows], following[[end]]]).astype(dtype),
                actions=np.clip(arrays["actions"][rows], -1, 1).astype(np.float32),
                rewards=arrays["rewards"][rows].astype(np.float64),
                terminations=last & terminals[end],
                truncations=last & ~terminals[end],
            )
