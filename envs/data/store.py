"""Minari's local store: where datasets lie, what their metadata say, how a new one gets in.

The store is the folder named by MINARI_DATASETS_PATH, or ~/.minari/datasets. A dataset `a/b/c-v0`
is the folder a/b/c-v0/data with metadata.json beside its episodes.

A new dataset is there whole, or not at all: it is written into a hidden folder of the store, which
Minari does not list, and a rename publishes it. A lock per dataset id keeps builders apart. The
lock dies with its process, so whoever holds it next removes what a killed builder left.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import gymnasium as gym
from filelock import FileLock, Timeout

from flowmdp.errors import ConfigurationError, DatasetError
from flowmdp.files import remove_unfinished, write_json
from flowmdp.robot import RobotInterface
from flowmdp.schemas import Metadata, RecordedSpec, fault

DATASET_ID = re.compile(r"(?:[-_\w]+/)*[-_\w]+-v\d+")


def store_root() -> Path:
    """Folder of Minari's local store, absolute; it need not exist."""
    path = os.environ.get("MINARI_DATASETS_PATH")
    return Path(path).absolute() if path else Path.home() / ".minari" / "datasets"


def dataset_folder(dataset_id: str) -> Path:
    """Folder of a dataset, which need not exist; DatasetError for a malformed id."""
    if not (isinstance(dataset_id, str) and DATASET_ID.fullmatch(dataset_id)):
        raise DatasetError(
            f"malformed dataset id {dataset_id!r}: Minari ids look like flowmdp/hopper/medium-v0"
        )
    return store_root() / dataset_id


def is_present(dataset_id: str) -> bool:
    """Whether something lies where the dataset belongs; `read_metadata` tells if it is whole."""
    try:
        return (dataset_folder(dataset_id) / "data").exists()
    except PermissionError:  # of a folder above, which may not be entered
        return True


def list_datasets() -> dict[str, dict[str, Any] | None]:
    """Every dataset of the local store: id -> metadata, or None where they cannot be used, sorted.

    Raises:
        DatasetError: When the store may not be read.
    """
    root, found = store_root(), dict[str, dict[str, Any] | None]()
    if root.exists() and not os.access(root, os.R_OK | os.X_OK):
        raise DatasetError(f"you have no permission to read the store {root}: ask its owner")
    folders = (folder.parent.relative_to(root) for folder in root.rglob("data"))
    for dataset_id in sorted(filter(DATASET_ID.fullmatch, map(str, folders))):
        try:
            found[dataset_id] = read_metadata(dataset_id)
        except DatasetError:
            found[dataset_id] = None
    return found


def read_metadata(dataset_id: str) -> dict[str, Any]:
    """What metadata.json says; DatasetError for an absent, half-written or misplaced dataset."""
    if not is_present(dataset_id):
        raise absent(dataset_id)
    path = dataset_folder(dataset_id) / "data" / "metadata.json"
    try:
        metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(dataset_id, path.name, error) from error
    if wrong := fault(Metadata, metadata):
        raise broken(dataset_id, f"metadata.json: {wrong}")
    if metadata["dataset_id"] != dataset_id:
        raise broken(dataset_id, f"its metadata belong to {metadata['dataset_id']!r}")
    return metadata


def absent(dataset_id: str, cure: str = "") -> DatasetError:
    """The error for a dataset that is not there; without a cure it names those that are alike."""
    near = get_close_matches(dataset_id, [] if cure else list_datasets(), n=3, cutoff=0.5)
    if near:
        cure = f"did you mean {' or '.join(near)}?"
    cure = cure or (
        "`flowmdp data list` shows what there is, `flowmdp tasks` what gets the tasks' own; record "
        f"it or copy it there, or fetch what others published with `minari download {dataset_id}`"
    )
    return DatasetError(f"dataset {dataset_id} is not in the local store {store_root()}: {cure}")


def broken(dataset_id: str, cause: str) -> DatasetError:
    """The error for a dataset that is there but not whole, with the folder to remove."""
    return DatasetError(
        f"dataset {dataset_id} is half-written or damaged: {cause}; "
        f"restore it, or remove {dataset_folder(dataset_id)} and get it again"
    )


NOT_THE_DATA = {
    *(errno.EACCES, errno.EPERM, errno.EAGAIN, errno.EIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}
"""Failures of reading that say nothing of the data: permission, another's lock, the machine."""


def unreadable(dataset_id: str, file: str, error: BaseException) -> DatasetError:
    """The error for a file that cannot be read; only what is torn is advised to be removed."""
    folder = dataset_folder(dataset_id)
    cause = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, PermissionError):
        return DatasetError(
            f"dataset {dataset_id} is there, but you have no permission to read its {file}: ask "
            f"the owner of {folder}, or `chmod -R u+rX {folder}` if it is yours"
        )
    if isinstance(error, OSError) and error.errno in NOT_THE_DATA:
        return DatasetError(f"dataset {dataset_id}: {file} cannot be read now ({cause}): try again")
    if isinstance(error, ImportError):
        return DatasetError(f'dataset {dataset_id} needs pyarrow: pip install "minari[arrow]"')
    return broken(dataset_id, f"{file} cannot be read ({cause})")


def recorded_spec(metadata: dict[str, Any]) -> dict[str, Any]:
    """The dataset's environment as Gymnasium described it; empty without a description.

    Raises:
        DatasetError: When the description is none.
    """
    try:
        spec: dict[str, Any] = json.loads(metadata.get("env_spec") or "{}")
        wrong = fault(RecordedSpec, spec)
    except (ValueError, RecursionError) as error:
        wrong = str(error)
    if wrong:
        raise DatasetError(
            f"dataset {metadata['dataset_id']} has an env_spec that describes no environment "
            f"({wrong}): write it again with Gymnasium's"
        )
    return spec


def recorded_wrappers(metadata: dict[str, Any], played: gym.Env[Any, Any]) -> list[str]:
    """Names of the wrappers, but of the played environment's own, that the data came through."""
    spec = played.spec
    own = {wrapper.name for wrapper in (spec.additional_wrappers if spec else ())}
    recorded = recorded_spec(metadata).get("additional_wrappers", ())
    return [wrapper["name"] for wrapper in recorded if wrapper["name"] not in own]


def recorded_spaces(metadata: dict[str, Any]) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """The dataset's own observation and action space, of known size; DatasetError without them."""
    from minari.serialization import deserialize_space

    try:
        observation, action = (
            deserialize_space(metadata[f"{name}_space"]) for name in ("observation", "action")
        )
        gym.spaces.flatdim(observation), gym.spaces.flatdim(action)
    except Exception as error:  # nonsense in them makes Gymnasium and NumPy raise whatever comes
        cause = " ".join(str(error).split())[:200]
        raise DatasetError(
            f"dataset {metadata['dataset_id']} has no readable spaces ({type(error).__name__}: "
            f"{cause}): write it again with its observation and action space"
        ) from error
    return observation, action


def recorded_robot(
    metadata: dict[str, Any], played: gym.Space[Any] | None = None
) -> RobotInterface:
    """The interface of the robot that the dataset was recorded with.

    Minari sorts the parts of a Dict observation by name; with the `played` robot's observation
    space they are in its order, where it has the same parts.

    Raises:
        DatasetError: When its spaces cannot be read.
        ConfigurationError: For spaces that a flow policy cannot use.
    """
    try:
        observation, action = recorded_spaces(metadata)
        return RobotInterface(_in_order(observation, played), action)
    except ConfigurationError as error:
        raise ConfigurationError(f"dataset {metadata['dataset_id']}: {error}") from error


def _in_order(space: gym.Space[Any], like: gym.Space[Any] | None) -> gym.Space[Any]:
    if isinstance(space, gym.spaces.Dict) and isinstance(like, gym.spaces.Dict):
        if set(space.spaces) == set(like.spaces):
            return gym.spaces.Dict([(name, _in_order(space[name], like[name])) for name in like])
    if isinstance(space, gym.spaces.Tuple) and isinstance(like, gym.spaces.Tuple):
        if len(space) == len(like):
            return gym.spaces.Tuple(list(map(_in_order, space, like)))
    return space


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
def new_dataset(dataset_id: str, room: int = 0) -> Iterator[Path]:
    """Give an empty folder to write a dataset into; publish it when the block ends without error.

    The caller makes `data` in it. A dataset that is already there under this id is replaced. Use it
    under `dataset_lock`, which turns a store that cannot be written, or has no `room` for so many
    bytes, into a DatasetError.
    """
    target = dataset_folder(dataset_id)
    _check_place(target, room)
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


def _check_place(target: Path, room: int) -> None:
    """Raise OSError where the rename to `target` would fail in the end, or the disk is full."""
    nearest = next(path for path in target.parents if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{nearest} is a file")
    for path in (nearest, target):
        if path.exists() and not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"Permission denied: {path}")
    if nearest.stat().st_dev != store_root().stat().st_dev:
        raise OSError(errno.EXDEV, f"{nearest} is on another disk than the store")
    if (free := shutil.disk_usage(store_root()).free) < room:
        raise OSError(errno.ENOSPC, f"{room / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} free")


def scratch_folder(dataset_id: str) -> tempfile.TemporaryDirectory[str]:
    """An empty folder of the store for what a dataset is made of, removed in the end."""
    return tempfile.TemporaryDirectory(prefix=f"{_hidden(dataset_id)}.new-", dir=store_root())


def unfinished_folder(dataset_id: str, key: str) -> Path:
    """Make the folder that keeps a dataset's finished episodes while others are still missing.

    Use it under `dataset_lock`. `key` tells recipes apart.
    """
    folder = store_root() / f"{_hidden(dataset_id)}.kept-{key}"
    folder.mkdir(exist_ok=True)
    remove_unfinished(folder)
    return folder


def forget_unfinished(dataset_id: str) -> None:
    """Remove what was kept of a dataset, by whatever recipe."""
    for folder in store_root().glob(f"{_hidden(dataset_id)}.kept-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _hidden(dataset_id: str) -> str:
    """How the names of a dataset's lock and of its folders under construction begin."""
    return f".flowmdp-{dataset_id.replace('/', '--')}"


def _clear(hidden: Path, target: Path) -> None:
    """Remove a folder of a dataset under construction; put back what it was about to replace."""
    if (hidden / "old").exists() and not target.exists():
        os.rename(hidden / "old", target)
    shutil.rmtree(hidden, ignore_errors=True)
