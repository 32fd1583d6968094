"""Import OGBench's original .npz files (Park et al. 2025, arXiv:2410.20092), or download them.

A file holds all rows one after the other: observations, actions, terminals, qpos, qvel, and where
there are buttons button_states. `terminals` marks an episode's last row, whose action leads
nowhere. Rewards are not in the file; they are computed at load for the task that is asked for.
"""

from __future__ import annotations

import os
import re
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flowmdp.envs.data.sources.build import make_recorded, write_dataset
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.data.sources.d4rl import IMPORT_KEY, MOST_COMPRESSED
from flowmdp.envs.data.sources.manipulation import reward_free
from flowmdp.envs.data.store import dataset_lock, is_present, read_metadata, scratch_folder
from flowmdp.envs.tasks import TASKS, Task, get_task
from flowmdp.errors import DatasetError
from flowmdp.transitions import check_values

Arrays = dict[str, NDArray[Any]]

OFFICIAL = re.compile(r"([a-z0-9-]+-(?:play|noisy|navigate|stitch|explore))-v0(-val)?\.npz")
"""Names that OGBench gives its files."""

TIMEOUT = 30
"""Seconds without an answer after which a download fails."""


def import_ogbench(
    file: str | os.PathLike[str], task: str, clip_actions: bool = False, force: bool = False
) -> str:
    """Write one of OGBench's files as the Minari dataset of source "ogbench" of its tasks.

    Args:
        file: The file, `scene-play-v0.npz`.
        task: Any task that the data serves, `scene-play-task1`.
        clip_actions: Whether actions outside [-1, 1] are clipped; else they are an error.
        force: Whether to replace a dataset that was imported before.

    Returns:
        The dataset's Minari id.

    Raises:
        UnknownTaskError: For an unknown task, or when OGBench is not installed.
        DatasetError: When the file is torn, foreign, holds NaN, has other shapes than the task's
            environment, bears the name of another scene's data, was imported before, or the store
            cannot be written.
    """
    row, path = get_task(task), Path(file)
    dataset_id = row.dataset("ogbench")
    _refuse_other_files(row, path.name)
    with dataset_lock(dataset_id):
        return _import(path, row, clip_actions, force)


def download_ogbench(task: str, force: bool = False) -> str:
    """Fetch a task's file from OGBench's own server and import it.

    Args:
        task: Any task that the data serves, `scene-play-task1`.
        force: Whether to replace a dataset that is already there.

    Returns:
        The dataset's Minari id.

    Raises:
        UnknownTaskError: For an unknown task, or when OGBench is not installed.
        DatasetError: When the task has no such dataset, the network or the server fails, what
            arrived is not whole, or the store cannot be written.
    """
    row = get_task(task)
    dataset_id = row.dataset("ogbench")
    if is_present(dataset_id) and not force:
        read_metadata(dataset_id)
        return dataset_id
    with dataset_lock(dataset_id), scratch_folder(dataset_id) as folder:
        if is_present(dataset_id) and not force:
            return dataset_id
        path = Path(folder) / f"{row.ogbench}-v0.npz"
        command = f"flowmdp data import {path.name}"
        cure = f"check the network and try again, or fetch the file elsewhere and `{command}`"
        with path.open("wb") as file:
            file.writelines(_blocks(f"{_server(row)}/{path.name}", cure))
        return _import(path, row, False, force)


def _server(row: Task) -> str:
    """Where OGBench's package says that its files are."""
    with make_recorded(row):  # explains how to install it where it is missing
        import ogbench.utils

        return str(ogbench.utils.DATASET_URL)


def _blocks(url: str, cure: str) -> Iterator[bytes]:
    """What a server sends, with a progress bar; DatasetError for less than it promised."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            size, came = int(answer.headers.get("Content-Length") or 0), 0
            name = url.rpartition("/")[2]
            with tqdm(total=size or None, desc=name, unit="B", unit_scale=True) as bar:
                while block := answer.read(2**20):
                    came += len(block)
                    bar.update(len(block))
                    yield block
            if came < size:
                raise ConnectionError(f"it broke off after {came:,} of {size:,} bytes")
    except Exception as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise DatasetError(f"cannot download {url} ({cause}): {cure}") from error


def _refuse_other_files(row: Task, name: str) -> None:
    """Refuse what OGBench named otherwise: another scene's data, or data for validation."""
    if not (official := OFFICIAL.fullmatch(name)):
        return
    stem, validation = official.groups()
    if validation:
        raise DatasetError(f"{name} is for validation: import {stem}-v0.npz")
    if stem != row.ogbench:
        owner = next((task.name for task in TASKS.values() if stem == task.ogbench), None)
        cure = f"import it with --task {owner}" if owner else f"import {row.ogbench}-v0.npz"
        raise DatasetError(f"{name} is OGBench's file of {stem}, not of {row.ogbench}: {cure}")


def _import(path: Path, row: Task, clip_actions: bool, force: bool) -> str:
    dataset_id = row.dataset("ogbench")
    if is_present(dataset_id) and not force:
        cure = "keep it, or replace it with --force (force=True)"
        raise DatasetError(f"dataset {dataset_id} is there already: {cure}")
    with make_recorded(row) as env:
        widths = {name: (width,) for name, width in env.get_wrapper_attr("state_widths").items()}
        shapes = {"observations": env.observation_space.shape, "actions": env.action_space.shape}
        arrays = _read(path, shapes | widths | {"terminals": ()}, row.ogbench)
        clip = None if clip_actions else "clip them with clip_actions=True (--clip-actions)"
        values = {name: array for name, array in arrays.items() if name != "terminals"}
        check_values(str(path), values, cure="download it again", clip=clip)
        rows = len(arrays["terminals"])
        notes = {
            "file": path.name,
            "rows": rows,
            "actions_clipped": int((np.abs(arrays["actions"]) > 1).any(1).sum()),
        }
        metadata = {IMPORT_KEY: notes, "algorithm_name": "OGBench"}
        write_dataset(dataset_id, env, _episodes(arrays, list(widths)), metadata, rows)
    return dataset_id


def _read(path: Path, shapes: dict[str, Any], name: str) -> Arrays:
    """The arrays of a file that the data consists of."""
    if not path.is_file():
        raise DatasetError(f"{path} does not exist: name OGBench's file, like {name}-v0.npz")
    try:
        with zipfile.ZipFile(path) as members:
            declared = sum(member.file_size for member in members.infolist())
        if declared > max(MOST_COMPRESSED * path.stat().st_size, 2**26):
            raise DatasetError(
                f"{path} declares {declared / 2**20:,.0f} MiB, but holds {path.stat().st_size:,} "
                "bytes: download it again"
            )
        with np.load(path, allow_pickle=False) as file:
            if missing := [key for key in shapes if key not in file]:
                raise DatasetError(
                    f"{path} is no file of {name}: it lacks {', '.join(missing)}; give one like "
                    f"{name}-v0.npz"
                )
            arrays = {key: file[key] for key in shapes}  # compares checksums
    except DatasetError:
        raise
    except PermissionError as error:
        raise DatasetError(f"you have no permission to read {path}: ask for it") from error
    except Exception as error:  # a damaged file makes zipfile and NumPy raise whatever comes
        raise DatasetError(
            f"cannot read {path} ({' '.join(str(error).split())[:200]}): give OGBench's file, like "
            f"{name}-v0.npz, or download it again"
        ) from error
    _check_rows(path, arrays, shapes, name)
    return arrays


def _check_rows(path: Path, arrays: Arrays, shapes: dict[str, Any], name: str) -> None:
    """Refuse arrays of other shapes or lengths, and rows that make no episodes."""
    for key, array in arrays.items():
        if array.dtype.kind not in "fbiu":
            raise DatasetError(f"{path} has {key} that are no numbers: download it again")
        if array.shape[1:] != shapes[key] or not array.shape:
            raise DatasetError(
                f"{path} has {key} of shape {array.shape[1:]}, but {name} has {shapes[key]}: name "
                "a task that the file belongs to"
                if array.shape
                else f"{path} has {key} that are one number: download it again"
            )
    if not np.isin(arrays.get("button_states", 0), (0, 1)).all():
        raise DatasetError(f"{path} has button_states other than 0 and 1: download it again")
    lengths = {key: len(array) for key, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise DatasetError(f"{path} has arrays of different lengths ({listed}): download it again")
    ends = np.flatnonzero(arrays["terminals"])
    if not len(ends) or ends[-1] != lengths["terminals"] - 1:
        raise DatasetError(f"{path} does not end with the end of an episode: download it again")
    if np.diff(ends, prepend=-1).min() < 2:
        raise DatasetError(f"{path} has an episode without a transition: download it again")


def _episodes(arrays: Arrays, states: list[str]) -> Iterator[Episode]:
    """The file's episodes; what was done in the last row led nowhere and is left out."""
    start = 0
    for end in np.flatnonzero(arrays["terminals"]).tolist():
        rows, start = slice(start, end + 1), end + 1
        kinds = {"qpos": np.float32, "button_states": np.int64}
        yield reward_free(
            arrays["observations"][rows].astype(np.float32),
            np.clip(arrays["actions"][rows][:-1], -1, 1).astype(np.float32),
            {name: arrays[name][rows].astype(kinds[name]) for name in states},
        )
