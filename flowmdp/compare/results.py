"""The outcomes of many runs: read from files, ordered by dataset and label, written as CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

from flowmdp.errors import ConfigurationError
from flowmdp.files import read_json, replace_file

Result = dict[str, Any]

NEEDED = ("task", "source", "dataset_id", "algorithm", "seed", "mean_return", "data")
OF_A_RUN = ("config.json", "history.json")
"""What else `flowmdp train` leaves beside result.json."""
SETTINGS = ("algorithm", "steps", "flow_steps", "episodes", "quick", "arguments")
"""Fields that runs of one label on one dataset ought to agree on."""
OF_A_SEED_OR_MACHINE = ("seed", "precision", "compile", "cuda_graphs")
"""Hyper-parameters that they need not agree on."""


class Dataset(NamedTuple):
    """What makes two runs comparable: the robot, its origin and the data."""

    task: str
    source: str
    dataset_id: str


Grouped = dict[Dataset, dict[str, list[Result]]]
"""Dataset -> label -> results in the order of their seeds."""


def load_results(*paths: Path) -> list[Result]:
    """Every result below some folders, with its `label` and the `file` it came from.

    Args:
        *paths: Folders, or files.

    Raises:
        ConfigurationError: When there is none, one is no result, or two are of the same run.
        CheckpointError: When a file is damaged.
    """
    files = {file.resolve(): file for path in paths for file in _files(path)}
    results = [_load(file) for file in files.values()]
    seen: dict[Any, str] = {}
    for result in results:
        key = (dataset_of(result), result["label"], result["seed"])
        if key in seen:
            raise ConfigurationError(
                f"{seen[key]} and {result['file']} are both {result['label']} with seed "
                f"{result['seed']} on {result['dataset_id']}: keep one of them"
            )
        seen[key] = result["file"]
    return results


def _files(path: Path) -> list[Path]:
    """The results at or below a path."""
    if not path.exists():
        raise ConfigurationError(f"{path} does not exist: name a folder of results")
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    files = [file for file in files if file.name not in OF_A_RUN]
    if not files:
        raise ConfigurationError(
            f"{path} holds no results: name a folder of `flowmdp train` or `flowmdp bench`"
        )
    return files


def _load(file: Path) -> Result:
    result = read_json(file)
    missing = [name for name in NEEDED if name not in result]
    if missing:
        raise ConfigurationError(
            f"{file} is no result of `flowmdp train` (it lacks {missing[0]}): move it elsewhere"
        )
    return {"label": result["algorithm"], **result, "file": str(file)}


def as_acting(result: Result, way: str) -> Result:
    """The result with the returns, the behaviour's too, of another way of acting.

    Evaluations during training were played in the published way only, and are left out.

    Args:
        result: Of `flowmdp train`.
        way: "sampled" or "noiseless"; "published" leaves the result as it is.

    Raises:
        ConfigurationError: When the run was not evaluated that way.
    """
    if way == "published":
        return result
    if way not in result:
        raise ConfigurationError(f"{result['file']} was not evaluated {way}: leave --acting out")
    behavior = result.get("behavior")
    if behavior:
        behavior = {**behavior, **behavior[way]} if way in behavior else None
    during = dict.fromkeys(("best_evaluation", "last_evaluations"))
    return {**result, **result[way], **during, "behavior": behavior}


def both_ways(result: Result) -> list[Result]:
    """The result as published and, where that is from noise, `<label> noiseless` beside it.

    Raises:
        ConfigurationError: When the run was not evaluated without noise.
    """
    noiseless = as_acting(result, "noiseless")
    if noiseless["returns"] == result["returns"]:
        return [result]
    return [result, {**noiseless, "label": f"{result['label']} noiseless"}]


def dataset_of(result: Result) -> Dataset:
    """The dataset a run belongs to."""
    return Dataset(result["task"], result["source"], result["dataset_id"])


def group(results: list[Result]) -> Grouped:
    """The results by dataset and label, both in alphabetical order."""
    grouped: Grouped = {}
    for result in sorted(results, key=lambda one: (dataset_of(one), one["label"], one["seed"])):
        grouped.setdefault(dataset_of(result), {}).setdefault(result["label"], []).append(result)
    return grouped


def mixed_settings(runs: list[Result]) -> list[str]:
    """Names of the settings and hyper-parameters on which runs of one label disagree."""
    mixed = [name for name in SETTINGS if any(run.get(name) != runs[0].get(name) for run in runs)]
    recorded = [run["hyperparameters"] for run in runs if "hyperparameters" in run]
    for name in recorded[0] if recorded else ():
        differ = any(one.get(name) != recorded[0][name] for one in recorded)
        if differ and name not in OF_A_SEED_OR_MACHINE:
            mixed.append(name)
    return mixed


def write_csv(results: list[Result], path: Path) -> None:
    """One row per run with all scalar fields; nested ones as `behavior.mean_return`."""
    rows = [_scalars(result) for result in results]
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    replace_file(path, write)


def _scalars(fields: Result, prefix: str = "") -> dict[str, Any]:
    """All fields that are not lists, those of nested objects after a dot."""
    row: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            row |= _scalars(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            row[prefix + name] = value
    return row
