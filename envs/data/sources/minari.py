"""Download a task's published dataset through Minari, whole or not at all."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from flowmdp.envs.data.reading import read_transitions
from flowmdp.envs.data.store import dataset_lock, is_present, new_dataset, read_metadata
from flowmdp.envs.tasks import get_task
from flowmdp.errors import DatasetError

ATTEMPTS = 3


def download_dataset(task: str, force: bool = False, pause: float = 2.0) -> str:
    """Fetch the task's dataset of source "minari" into the local store.

    Minari decides where from (MINARI_REMOTE, by default Farama's at Hugging Face). The dataset is
    read and its episodes and steps are counted before it appears in the store.

    Args:
        task: Name of the task, `hopper-medium`.
        force: Whether to replace a dataset that is already there.
        pause: Seconds before the second attempt; doubled before each further one.

    Returns:
        The dataset's Minari id.

    Raises:
        UnknownTaskError: For an unknown task.
        DatasetError: When the task has no published dataset, the network or the remote fails, what
            arrived is not whole, or the store cannot be written.
    """
    dataset_id = get_task(task).dataset("minari")
    if is_present(dataset_id) and not force:
        read_metadata(dataset_id)
        return dataset_id
    with dataset_lock(dataset_id):
        if is_present(dataset_id) and not force:
            return dataset_id
        with new_dataset(dataset_id) as folder:
            arriving = folder / "arriving"
            with _store_at(arriving):
                _fetch(dataset_id, pause)
                try:
                    read_transitions(read_metadata(dataset_id))
                except DatasetError as error:
                    raise DatasetError(
                        f"what arrived of {dataset_id} is not whole ({error.__cause__ or error}): "
                        "run the same command again"
                    ) from error
            os.rename(arriving / dataset_id / "data", folder / "data")
            shutil.rmtree(arriving)
    return dataset_id


def _fetch(dataset_id: str, pause: float) -> None:
    """Call Minari's download, again after a failure of the network."""
    import minari

    for attempt in range(1, ATTEMPTS + 1):
        try:
            with redirect_stdout(sys.stderr):
                minari.download_dataset(dataset_id, force_download=True)
            return
        except Exception as error:  # which one, is up to the remote's own HTTP library
            cause = " ".join(str(error).split())[:200] or type(error).__name__
            if isinstance(error, ImportError):
                cure = 'pip install "flowmdp[hf]"'
                message = f"downloading {dataset_id} needs huggingface_hub: {cure}"
            elif isinstance(error, ValueError):
                message = f"Minari has no usable {dataset_id}: {cause}"
            elif os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
                cure = "unset it, or copy the dataset into Minari's local store"
                message = f"cannot download {dataset_id} while HF_HUB_OFFLINE is set: {cure}"
            elif attempt == ATTEMPTS:
                cure = "check the network and run the same command again"
                message = f"cannot download {dataset_id} after {attempt} attempts ({cause}): {cure}"
            else:
                print(f"attempt {attempt} of {ATTEMPTS} failed ({cause})", file=sys.stderr)
                time.sleep(pause * 2 ** (attempt - 1))
                continue
            raise DatasetError(message) from error


@contextmanager
def _store_at(folder: Path) -> Iterator[None]:
    """Point Minari at another store for a while; it knows no other way than the environment."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        yield
    finally:
        del os.environ["MINARI_DATASETS_PATH"]
        if before is not None:
            os.environ["MINARI_DATASETS_PATH"] = before
