"""Minari's local store: where datasets lie, what their metadata say, how a new one gets in.

The store is the folder named by MINARI_DATASETS_PATH, or ~/.minari/datasets. A dataset `a/b/c-v0`
is the folder a/b/c-v0/data with metadata.json beside its episodes.

A new dataset is there whole, or not at all: it is written into a hidden folder of the store, which
Minari does not list, and a rename publishes it. A lock per dataset id keeps builders apart. The
lock dies with its process, so whoever holds it next removes what a killed builder left.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowmdp.errors import DatasetError
from flowmdp.files import write_json

DATASET_ID = re.compile(r"(?:[-_\w]+/)*[-_\w]+-v\d+")
Count = Annotated[int, Field(strict=True, ge=0)]


class Metadata(BaseModel):
    """What flowmdp reads of a dataset's metadata.json; other keys may be anything."""

    model_config = ConfigDict(extra="allow")

    dataset_id: str
    total_episodes: Count
    total_steps: Count
    data_format: Literal["hdf5", "arrow", "parquet"]
    minari_version: str
    algorithm_name: str = "unknown"
    observation_space: str | None = None
    action_space: str | None = None
    env_spec: str | None = None
    flowmdp_build: dict[str, Any] = {}


class RecordedWrapper(BaseModel):
    """A wrapper of the recorded environment, as Gymnasium's `WrapperSpec`."""

    name: str
    entry_point: str = ""
    kwargs: dict[str, Any] | None = None


class RecordedSpec(BaseModel):
    """What flowmdp reads of the recorded environment's description, Gymnasium's `EnvSpec`."""

    id: str | None = None
    kwargs: dict[str, Any] = {}
    additional_wrappers: list[RecordedWrapper] = []


HARMLESS_WRAPPERS = {
    *("PassiveEnvChecker", "OrderEnforcing", "TimeLimit", "Autoreset", "RecordEpisodeStatistics"),
    *("RecordVideo", "RenderCollection", "HumanRendering", "AddWhiteNoise", "ObstructView"),
    *("FlattenObservation", "DtypeObservation", "ClipAction", "RescaleAction"),
    *("JaxToNumpy", "JaxToTorch", "NumpyToTorch", "ArrayConversion"),
    *("NormalizeReward", "TransformReward", "ClipReward"),
}
"""Gymnasium's wrappers that leave observations and actions what they are. `RescaleAction` maps the
box of the recorded actions to the robot's, as the loader does. Some change rewards."""


def store_root() -> Path:
    """Folder of Minari's local store, absolute; it need not exist."""
    path = os.environ.get("MINARI_DATASETS_PATH")
    return Path(path).absolute() if path else Path.home() / ".minari" / "datasets"


def dataset_folder(dataset_id: str) -> Path:
    """Folder of a dataset, which need not exist; DatasetError for a malformed id."""
    if not DATASET_ID.fullmatch(dataset_id):
        raise DatasetError(
            f"malformed dataset id {dataset_id!r}: Minari ids look like flowmdp/hopper/medium-v0"
        )
    return store_root() / dataset_id


def is_present(dataset_id: str) -> bool:
    """Whether something lies where the dataset belongs; `read_metadata` tells if it is whole."""
    return os.path.lexists(dataset_folder(dataset_id) / "data")


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
        metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        Metadata.model_validate(metadata)
    except ValidationError as error:
        raise broken(dataset_id, f"metadata.json: {_first(error)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(dataset_id, path.name, error) from error
    if metadata["dataset_id"] != dataset_id:
        raise broken(dataset_id, f"its metadata belong to {metadata['dataset_id']!r}")
    return metadata


def _first(error: ValidationError) -> str:
    """What is wrong with the first field that is wrong, in a few words."""
    first = error.errors(include_url=False)[0]
    name = ".".join(map(str, first["loc"]))
    value = repr(first["input"])
    value = value if len(value) <= 40 else f"{value[:37]}..."
    return f"{name} is missing" if first["type"] == "missing" else f"{name} is {value}: {first['msg']}"


def broken(dataset_id: str, cause: str) -> DatasetError:
    """The error for a dataset that is there but not whole, with the folder to remove."""
    return DatasetError(
        f"dataset {dataset_id} is half-written or damaged: {cause}; "
        f"remove {dataset_folder(dataset_id)} and get it again"
    )


NOT_THE_DATA = {
    *(errno.EACCES, errno.EPERM, errno.EAGAIN, errno.EIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}
"""Failures of reading that say nothing of the data: permission, another's lock, the machine."""


def unreadable(dataset_id: str, file: str, error: BaseException) -> DatasetError:
    """The error for a file of a dataset that cannot be read; removing it is advised only if torn."""
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

    `id`, `kwargs` and `additional_wrappers` are always there and of their types.

    Raises:
        DatasetError: When the description is none.
    """
    text = metadata.get("env_spec")
    try:
        return RecordedSpec.model_validate_json(text).model_dump() if text else {}
    except ValidationError as error:
        raise DatasetError(
            f"dataset {metadata['dataset_id']} has an env_spec that describes no environment "
            f"({_first(error)}): write it again with Gymnasium's"
        ) from error


def changing_wrappers(
    metadata: dict[str, Any], played: gym.envs.registration.EnvSpec | None = None
) -> list[str]:
    """Names of recorded wrappers that made observations or actions other than the robot's own.

    Wrappers that the `played` environment has too, of the same arguments, do not count, nor do
    those of packages other than Gymnasium, which nobody here can know.
    """
    own = [(w.name, w.kwargs or {}) for w in (played.additional_wrappers if played else ())]
    return [
        wrapper["name"]
        for wrapper in recorded_spec(metadata).get("additional_wrappers", ())
        if wrapper["entry_point"].startswith("gymnasium.")
        and wrapper["name"] not in HARMLESS_WRAPPERS
        and (wrapper["name"], wrapper["kwargs"] or {}) not in own
    ]


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
