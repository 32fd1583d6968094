"""Minari's local store: where datasets lie, which of them are whole, what their metadata say.

The store is the folder named by MINARI_DATASETS_PATH, or ~/.minari/datasets. A dataset `a/b/c-v0`
is the folder a/b/c-v0/data with metadata.json beside its episodes. Names that begin with a dot
(our folders of datasets under construction) belong to no dataset; Minari does not list them.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from flowmdp.errors import DatasetError

DATASET_ID = re.compile(r"(?:[-_\w]+/)*[-_\w]+-v\d+")
REQUIRED_METADATA = ("dataset_id", "total_episodes", "total_steps", "data_format", "minari_version")


def store_root() -> Path:
    """Folder of Minari's local store; it need not exist."""
    path = os.environ.get("MINARI_DATASETS_PATH")
    return Path(path) if path else Path.home() / ".minari" / "datasets"


def dataset_folder(dataset_id: str) -> Path:
    """Folder of a dataset, which need not exist.

    Raises:
        DatasetError: When the id is not of Minari's form `name/space/name-v0`.
    """
    if not DATASET_ID.fullmatch(dataset_id):
        raise DatasetError(
            f"malformed dataset id {dataset_id!r}: Minari ids look like flowmdp/hopper/medium-v0"
        )
    return store_root() / dataset_id


def is_present(dataset_id: str) -> bool:
    """Whether something lies where the dataset belongs; `read_metadata` tells if it is whole."""
    return (dataset_folder(dataset_id) / "data").exists()


def read_metadata(dataset_id: str) -> dict[str, Any]:
    """Metadata of a dataset of the local store, as they stand in its metadata.json.

    Raises:
        DatasetError: When the dataset is absent, half-written, or lies under a foreign id.
    """
    folder = dataset_folder(dataset_id)
    data = folder / "data"
    if not data.exists():
        raise DatasetError(
            f"dataset {dataset_id} is not in the local store {store_root()}: `flowmdp data list` "
            "shows what is there, `flowmdp tasks` what gets the rest"
        )
    try:
        metadata = json.loads((data / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise broken(
            dataset_id, f"metadata.json cannot be read ({type(error).__name__})"
        ) from error
    if not isinstance(metadata, dict):
        raise broken(dataset_id, "metadata.json is not a JSON object")
    missing = [key for key in REQUIRED_METADATA if key not in metadata]
    if missing:
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


def list_datasets() -> dict[str, dict[str, Any] | None]:
    """Every dataset of the local store: id -> metadata, or None where it is not whole, sorted."""
    root = store_root()
    found: dict[str, dict[str, Any] | None] = {}
    for folder, subfolders, _ in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if "data" not in subfolders:
            continue
        subfolders.clear()
        dataset_id = Path(folder).relative_to(root).as_posix()
        try:
            found[dataset_id] = read_metadata(dataset_id)
        except DatasetError:
            found[dataset_id] = None
    return dict(sorted(found.items()))
