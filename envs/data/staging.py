"""Put a new dataset into Minari's local store in one step: it is there whole, or not at all.

A dataset is written into a hidden folder of the store itself, so that one rename on one file
system publishes it. A lock per dataset id keeps builders apart; it dies with its process, so
whatever hidden folder the next holder of the lock finds was left by a builder that was killed.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from flowmdp.envs.data.store import dataset_folder, store_root
from flowmdp.errors import DatasetError


@contextmanager
def dataset_lock(dataset_id: str) -> Iterator[None]:
    """Hold the right to write a dataset; waits for another builder, saying so on stderr.

    Whoever gets in removes what killed builders left, and puts back a dataset that was being
    replaced when its builder was killed.

    Raises:
        DatasetError: When the store cannot be written.
    """
    target, name = dataset_folder(dataset_id), dataset_id.replace("/", "--")
    with writing_to_store(dataset_id):
        store_root().mkdir(parents=True, exist_ok=True)
        lock = FileLock(store_root() / f".flowmdp-{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another build of {dataset_id} is running: waiting for it", file=sys.stderr)
            lock.acquire()
    try:
        with writing_to_store(dataset_id):
            for replaced in store_root().glob(f".flowmdp-{name}.old-*"):
                if not target.exists():
                    os.rename(replaced, target)
            for stale in store_root().glob(f".flowmdp-{name}.*-*"):
                shutil.rmtree(stale, ignore_errors=True)
        yield
    finally:
        lock.release()


@contextmanager
def new_dataset(dataset_id: str) -> Iterator[Path]:
    """Give an empty folder to write a dataset into; publish it when the block ends without error.

    A dataset that is already there under this id is replaced. To be used under `dataset_lock`.

    Yields:
        The dataset's future folder; the caller makes `data` in it.

    Raises:
        DatasetError: When the store cannot be written, or is full.
    """
    target, name = dataset_folder(dataset_id), dataset_id.replace("/", "--")
    with writing_to_store(dataset_id):
        staging = Path(tempfile.mkdtemp(prefix=f".flowmdp-{name}.new-", dir=store_root()))
        try:
            staging.chmod(0o777 & ~_umask())
            yield staging
            _flush(staging)
            _make_namespaces(target.parent)
            if target.exists():
                replaced = staging.with_name(staging.name.replace(".new-", ".old-"))
                os.rename(target, replaced)
                os.rename(staging, target)
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                os.rename(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def writing_to_store(dataset_id: str) -> Iterator[None]:
    """Turn the operating system's refusals into one line with the cure.

    Raises:
        DatasetError: For every OSError inside.
    """
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"cannot write dataset {dataset_id} to the store {store_root()} "
            f"({error.strerror or error}): make room or set MINARI_DATASETS_PATH to a folder that "
            "you may write"
        ) from error


def _make_namespaces(folder: Path) -> None:
    """Make the namespace folders above a dataset as Minari does: each with its own JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    for parent in (folder, *folder.parents):
        if parent == store_root() or store_root() not in parent.parents:
            return
        marker = parent / "namespace_metadata.json"
        if not marker.exists():
            partial = parent / f".{marker.name}.{os.getpid()}"
            partial.write_text("{}", encoding="utf-8")
            os.replace(partial, marker)


def _flush(folder: Path) -> None:
    """Have the disk hold all files before the rename makes them visible."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
