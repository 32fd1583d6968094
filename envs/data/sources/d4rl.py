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
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from numpy.typing import NDArray

from flowmdp.envs.data.sources.build import write_dataset
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.data.staging import dataset_lock, new_dataset
from flowmdp.envs.data.store import is_present
from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.tasks import TASKS, Task, get_task
from flowmdp.errors import DatasetError

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
        task: The task it belongs to, `hopper-medium`; its environment of source "d4rl" gives the
            spaces.
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
    _refuse_to_replace(dataset_id, force)
    _refuse_other_files(row, path.name)
    outer = make_outer(task, "d4rl")
    try:
        arrays = read_d4rl(path)
        _check(path, arrays, outer, clip_actions)
        ends = episode_ends(arrays)
        if not any(True for _ in d4rl_episodes(arrays, ends, np.float32)):
            raise DatasetError(f"{path} holds no whole transition: download it again")
        notes = {
            "file": path.name,
            "transitions": len(arrays["rewards"]),
            "actions_clipped": int((np.abs(arrays["actions"]) > 1).any(1).sum()),
            "has_next_observations": "next_observations" in arrays,
        }
        metadata = {IMPORT_KEY: notes, "algorithm_name": "D4RL"}
        episodes = d4rl_episodes(arrays, ends, outer.observation_space.dtype)
        with dataset_lock(dataset_id):
            _refuse_to_replace(dataset_id, force)
            with new_dataset(dataset_id) as folder:
                write_dataset(folder, dataset_id, outer, episodes, metadata)
    finally:
        outer.close()
    return dataset_id


def _refuse_to_replace(dataset_id: str, force: bool) -> None:
    if is_present(dataset_id) and not force:
        raise DatasetError(
            f"dataset {dataset_id} is there already: keep it, or replace it with --force "
            "(force=True)"
        )


def _refuse_other_files(row: Task, name: str) -> None:
    """Refuse what D4RL named otherwise: another task's file, or another version of this one's."""
    for other in TASKS.values():
        if other.d4rl_file == name and other is not row:
            raise DatasetError(
                f"{name} is D4RL's file of {other.name}, not of {row.name}: import it with "
                f"--task {other.name}"
            )
    stem, version = row.d4rl_file.rsplit("-v", 1)
    found = re.fullmatch(rf"{re.escape(stem)}-v(\d+\.hdf5)", name)
    if found and found[1] != version:
        raise DatasetError(
            f"{name} is another version of D4RL's data than {row.d4rl_file}, which task {row.name} "
            "stands for: import that file"
        )


def read_d4rl(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a D4RL file that make transitions, of one common length.

    Raises:
        DatasetError: When the file is absent, torn or foreign, or its lengths disagree.
    """
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in KEYS if not isinstance(file.get(key), h5py.Dataset)]
            if missing:
                raise DatasetError(
                    f"{path} is no D4RL file: it lacks {', '.join(missing)}; give one like "
                    "hopper_medium-v2.hdf5"
                )
            arrays = {
                key: np.asarray(file[key]) for key in (*KEYS, "next_observations") if key in file
            }
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"cannot read {path} ({error}): download it again") from error
    for key in ("rewards", "terminals", "timeouts"):  # some files keep them as columns
        arrays[key] = arrays[key].reshape(len(arrays[key])) if arrays[key].size else arrays[key]
    lengths = {key: len(array) for key, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise DatasetError(f"{path} has arrays of different lengths ({listed}): download it again")
    if lengths["rewards"] == 0:
        raise DatasetError(f"{path} holds no transitions: download it again")
    return arrays


def episode_ends(arrays: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Indices of the last transition of every episode, shape (episodes,)."""
    ends = arrays["terminals"].astype(bool) | arrays["timeouts"].astype(bool)
    if "next_observations" in arrays:
        follows = (arrays["next_observations"][:-1] == arrays["observations"][1:]).all(axis=1)
        ends[:-1] |= ~follows
    ends[-1] = True
    return np.flatnonzero(ends)


def d4rl_episodes(
    arrays: dict[str, NDArray[Any]], ends: NDArray[np.int64], dtype: Any
) -> Iterator[Episode]:
    """Yield the episodes that end at `ends`; those left without a step are skipped."""
    start = 0
    for end in ends:
        terminated = bool(arrays["terminals"][end])
        stop = end + 1
        if "next_observations" in arrays:
            final = arrays["next_observations"][end]
        else:
            final = arrays["observations"][end]
            stop -= not terminated
        rows, start = slice(start, stop), end + 1
        if rows.start == rows.stop:
            continue
        last = np.arange(rows.start, rows.stop) == rows.stop - 1
        yield Episode(
            seed=None,
            observations=np.concatenate([arrays["observations"][rows], final[None]]).astype(dtype),
            actions=np.clip(arrays["actions"][rows], -1, 1).astype(np.float32),
            rewards=arrays["rewards"][rows].astype(np.float64),
            terminations=last & terminated,
            truncations=last & (not terminated),
        )


def _check(
    path: Path, arrays: dict[str, NDArray[Any]], outer: gym.Env[Any, Any], clip_actions: bool
) -> None:
    """Compare shapes with the environment's; refuse NaN and, unless clipped, actions outside."""
    spaces = {"observations": outer.observation_space, "actions": outer.action_space}
    spaces["next_observations"] = outer.observation_space
    env_id = outer.spec.id if outer.spec else "the task's environment"
    for key, space in spaces.items():
        if key in arrays and arrays[key].shape[1:] != space.shape:
            raise DatasetError(
                f"{path} has {key} of shape {arrays[key].shape[1:]}, but {env_id} has "
                f"{space.shape}: name the task that the file belongs to"
            )
    for key, array in arrays.items():
        if array.dtype.kind not in "fbiu" or not np.isfinite(array).all():
            raise DatasetError(f"{path} has NaN or infinite {key}: download it again")
    outside = int((np.abs(arrays["actions"]) > 1 + 1e-5).any(axis=1).sum())
    if outside and not clip_actions:
        raise DatasetError(
            f"{path} has actions outside [-1, 1] in {outside} of {len(arrays['actions'])} "
            "transitions: pass clip_actions=True (--clip-actions) to clip them"
        )
