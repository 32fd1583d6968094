"""Minari's local store: where datasets lie, what their metadata say, how a new one gets in.

The store is the folder named by MINARI_DATASETS_PATH, or ~/.minari/datasets. A dataset `a/b/c-v0`
is the folder a/b/c-v0/data with metadata.json beside its episodes.

A new dataset is there whole, or not at all: it is written into a hidden folder of the store, which
Minari does not list, and a rename publishes it. A lock per dataset id keeps builders apart. The
lock dies with its process, so whoever holds it next removes what a killed builder left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
from filelock import FileLock, Timeout

from flowmdp.errors import ConfigurationError, DatasetError
from flowmdp.files import write_json
from flowmdp.robot import RobotInterface

DATASET_ID = re.compile(r"(?:[-_\w]+/)*[-_\w]+-v\d+")
REQUIRED_METADATA = ("dataset_id", "total_episodes", "total_steps", "data_format", "minari_version")


def store_root() -> Path:
    """Folder of Minari's local store; it need not exist."""
    path = os.environ.get("MINARI_DATASETS_PATH")
    return Path(path) if path else Path.home() / ".minari" / "datasets"


def dataset_folder(dataset_id: str) -> Path:
    """Folder of a dataset, which need not exist; DatasetError for a malformed id."""
    if not DATASET_ID.fullmatch(dataset_id):
        raise DatasetError(
            f"malformed dataset id {dataset_id!r}: Minari ids look like flowmdp/hopper/medium-v0"
        )
    return store_root() / dataset_id


def is_present(dataset_id: str) -> bool:
    """Whether something lies where the dataset belongs; `read_metadata` tells if it is whole."""
    return (dataset_folder(dataset_id) / "data").exists()


def list_datasets() -> dict[str, dict[str, Any] | None]:
    """Every dataset of the local store: id -> metadata, or None where it is not whole, sorted."""
    found: dict[str, dict[str, Any] | None] = {}
    folders = (folder.parent.relative_to(store_root()) for folder in store_root().rglob("data"))
    for dataset_id in sorted(filter(DATASET_ID.fullmatch, map(str, folders))):
        try:
            found[dataset_id] = read_metadata(dataset_id)
        except DatasetError:
            found[dataset_id] = None
    return found


def read_metadata(dataset_id: str) -> dict[str, Any]:
    """What metadata.json says; DatasetError for an absent, half-written or misplaced dataset."""
    if not is_present(dataset_id):
        raise DatasetError(
            f"dataset {dataset_id} is not in the local store {store_root()}: `flowmdp data list` "
            "shows what is there, `flowmdp tasks` what gets the rest"
        )
    path = dataset_folder(dataset_id) / "data" / "metadata.json"
    try:
        metadata: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        cause = f"metadata.json cannot be read ({type(error).__name__})"
        raise broken(dataset_id, cause) from error
    if missing := [key for key in REQUIRED_METADATA if key not in metadata]:
        raise broken(dataset_id, f"metadata.json lacks {', '.join(missing)}")
    if metadata["dataset_id"] != dataset_id:
        raise broken(dataset_id, f"its metadata belong to {metadata['dataset_id']!r}")
    for key in ("total_episodes", "total_steps"):
        if not isinstance(metadata[key], int):
            raise broken(dataset_id, f"its {key} is {metadata[key]!r}, not a whole number")
    return metadata


def broken(dataset_id: str, cause: str) -> DatasetError:
    """The error for a dataset that is there but not whole, with the folder to remove."""
    return DatasetError(
        f"dataset {dataset_id} is half-written or damaged: {cause}; "
        f"remove {dataset_folder(dataset_id)} and get it again"
    )


def recorded_spec(metadata: dict[str, Any]) -> dict[str, Any]:
    """The dataset's environment as Gymnasium described it; empty without a description."""
    try:
        return dict(json.loads(metadata["env_spec"]))
    except (KeyError, TypeError, ValueError):
        return {}


def recorded_spaces(metadata: dict[str, Any]) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """The dataset's own observation and action space, of known size; DatasetError without them."""
    from minari.serialization import deserialize_space

    try:
        observation, action = (
            deserialize_space(metadata[f"{name}_space"]) for name in ("observation", "action")
        )
        gym.spaces.flatdim(observation), gym.spaces.flatdim(action)
    except (KeyError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise DatasetError(
            f"dataset {metadata['dataset_id']} has no readable spaces ({type(error).__name__}: "
            f"{error}): write it again with its observation and action space"
        ) from error
    return observation, action


def recorded_robot(metadata: dict[str, Any]) -> RobotInterface:
    """The interface of the robot that the dataset was recorded with.

    Raises:
        DatasetError: When its spaces cannot be read.
        ConfigurationError: For spaces that a flow policy cannot use.
    """
    try:
        return RobotInterface(*recorded_spaces(metadata))
    except ConfigurationError as error:
        raise ConfigurationError(f"dataset {metadata['dataset_id']}: {error}") from error


@contextmanager
def dataset_lock(dataset_id: str) -> Iterator[None]:
    """Hold the right to write a dataset; waits for another builder, saying so on stderr.

    Raises:
        DatasetError: When the store cannot be written, or is full.
    """
    try:
        store_root().mkdir(parents=True, exist_ok=True)
        lock = FileLock(store_root() / f"{_hidden(dataset_id)}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another build of {dataset_id} is running: waiting for it", file=sys.stderr)
            lock.acquire()
        try:
            for stale in store_root().glob(f"{_hidden(dataset_id)}.new-*"):
                _clear(stale, dataset_folder(dataset_id))
            yield
        finally:
            lock.release()
    except OSError as error:
        raise DatasetError(
            f"cannot write dataset {dataset_id} to the store {store_root()} "
            f"({error.strerror or error}): make room or set MINARI_DATASETS_PATH to a folder that "
            "you may write"
        ) from error


@contextmanager
def new_dataset(dataset_id: str) -> Iterator[Path]:
    """Give an empty folder to write a dataset into; publish it when the block ends without error.

    The caller makes `data` in it. A dataset that is already there under this id is replaced. Use it
    under `dataset_lock`, which turns a store that cannot be written into a DatasetError.
    """
    target = dataset_folder(dataset_id)
    prefix = f"{_hidden(dataset_id)}.new-"
    hidden = Path(tempfile.mkdtemp(prefix=prefix, dir=store_root()))
    new, old = hidden / "new", hidden / "old"
    try:
        new.mkdir()
        yield new
        for path in filter(Path.is_file, new.rglob("*")):
            with open(path, "rb+") as file:
                os.fsync(file.fileno())  # the disk holds it before the rename makes it visible
        target.parent.mkdir(parents=True, exist_ok=True)
        for namespace in list(target.relative_to(store_root()).parents)[:-1]:
            marker = store_root() / namespace / "namespace_metadata.json"  # as Minari does
            if not marker.exists():
                write_json(marker, {})
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
    finally:
        _clear(hidden, target)


def _hidden(dataset_id: str) -> str:
    """How the names of a dataset's lock and of its folders under construction begin."""
    return f".flowmdp-{dataset_id.replace('/', '--')}"


def _clear(hidden: Path, target: Path) -> None:
    """Remove a folder of a dataset under construction; put back what it was about to replace."""
    if (hidden / "old").exists() and not target.exists():
        os.rename(hidden / "old", target)
    shutil.rmtree(hidden, ignore_errors=True)
