"""Recorded behaviour: load, build, list and describe the datasets of Minari's local store."""

from flowmdp.envs.data.describe import dataset_info
from flowmdp.envs.data.load import load_dataset, load_minari, reached_goal
from flowmdp.envs.data.sources.build import build_dataset
from flowmdp.envs.data.store import list_datasets

__all__ = [
    "build_dataset",
    "dataset_info",
    "list_datasets",
    "load_dataset",
    "load_minari",
    "reached_goal",
]
