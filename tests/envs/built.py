"""A small built dataset of hopper-medium, and what a build leaves in the store."""

from __future__ import annotations

import hashlib
from pathlib import Path

from flowmdp.envs.data.sources.build import build_dataset
from flowmdp.envs.data.store import dataset_folder

TASK, ID = "hopper-medium", "flowmdp/hopper/medium-v0"


def build(steps: int = 300, **options: object) -> str:
    return build_dataset(TASK, steps=steps, progress=False, **options)  # type: ignore[arg-type]


def digests(dataset_id: str = ID) -> dict[str, str]:
    data = dataset_folder(dataset_id) / "data"
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(data.iterdir())}


def leftovers(store: Path) -> list[str]:
    return [path.name for path in store.glob(".*") if path.is_dir()]
