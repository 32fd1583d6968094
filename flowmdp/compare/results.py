"""The outcomes of many runs: one line of JSON each, one file per table; and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flowmdp.errors import ConfigurationError
from flowmdp.files import read_json, read_lines, replace_file

Result = dict[str, Any]

NEEDED = ("task", "source", "dataset_id", "algorithm", "seed", "mean_return", "data")
SETTINGS = ("algorithm", "steps", "episodes", "quick")
"""Fields that runs of one label on one dataset ought to agree on, beside `flow` and `config`."""
OF_A_MACHINE = ("precision", "cuda_graphs")
"""Hyper-parameters that they need not agree on."""


class Dataset(NamedTuple):
    """What makes two runs comparable: the robot, its origin and the data."""

    task: str
    source: str
    dataset_id: str


Key = tuple[Dataset, str, int]
"""Dataset, label and seed: what a table has once."""
Grouped = dict[Dataset, dict[str, list[Result]]]
"""Dataset -> label -> results in the order of their seeds."""


def dataset_of(result: Result) -> Dataset:
    """The dataset a run belongs to."""
    return Dataset(result["task"], result["source"], result["dataset_id"])


def key_of(result: Result) -> Key:
    """What a table has once; rows are in its order."""
    return dataset_of(result), result["label"], result["seed"]


def read_results(path: Path) -> dict[Key, Result]:
    """The rows of a table's results, by what there is once; none where there is no such file.

    Raises:
        CheckpointError: When a line is damaged.
        ConfigurationError: When one is no result, or two are of the same run.
    """
    found: dict[Key, Result] = {}
    for number, row in enumerate(read_lines(path), 1):
        where = f"{path}, line {number}"
        _check(row, where, (*NEEDED, "label"))
        if key_of(row) in found:
            raise ConfigurationError(
                f"{where} repeats {row['label']} with seed {row['seed']} on {row['dataset_id']}: "
                "remove one of the lines"
            )
        found[key_of(row)] = row
    return found


def load_results(*paths: Path) -> list[Result]:
    """Every result of some tables and runs, with its `label` and the `file` it came from.

    Args:
        *paths: A table's results; a run's result.json; or folders: of tables (*.jsonl directly in
            them), and of runs at any depth.

    Raises:
        ConfigurationError: When there is none, one is no result, or two are of the same run.
        CheckpointError: When a file is damaged.
    """
    found: dict[Key, Result] = {}
    for file in {file.resolve(): file for path in paths for file in _files(path)}.values():
        if file.suffix == ".jsonl":
            rows = list(read_results(file).values())
        else:
            rows = [read_json(file)]
            _check(rows[0], str(file), NEEDED)
        for row in rows:
            result = {"label": row["algorithm"], **row, "file": str(file)}
            other = found.setdefault(key_of(result), result)
            if other is not result:
                raise ConfigurationError(
                    f"{other['file']} and {file} are both {result['label']} with seed "
                    f"{result['seed']} on {result['dataset_id']}: keep one of them"
                )
    return list(found.values())


def _files(path: Path) -> list[Path]:
    """The files with results at or below a path."""
    if not path.exists():
        raise ConfigurationError(f"{path} does not exist: name a file or a folder of results")
    folder = path.is_dir()
    files = (
        [*sorted(path.glob("*.jsonl")), *sorted(path.rglob("result.json"))] if folder else [path]
    )
    if not files:
        raise ConfigurationError(
            f"{path} holds no results: name what `flowmdp train` or `flowmdp bench` wrote"
        )
    return files


def _check(result: Result, where: str, names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in result]
    if missing:
        raise ConfigurationError(
            f"{where} is no result of `flowmdp train` (it lacks {missing[0]}): take it out"
        )


def as_acting(result: Result, way: str) -> list[Result]:
    """The result as its policy plays another way, the behaviour too.

    Evaluations during training were played in the published way only, and are left out.

    Args:
        result: Of `flowmdp train`.
        way: "sampled" or "noiseless"; "published" leaves the result as it is; "both" has, where
            that is from noise, `<label> noiseless` beside it.

    Raises:
        ConfigurationError: When the run was not evaluated that way.
    """
    if way == "published":
        return [result]
    if way == "both":
        (still,) = as_acting(result, "noiseless")
        other = [{**still, "label": f"{result['label']} noiseless"}]
        return [result, *(other if still["returns"] != result["returns"] else [])]
    if way not in result:
        raise ConfigurationError(f"{result['file']} was not evaluated {way}: leave --acting out")
    behavior = result.get("behavior")
    if behavior:
        behavior = {**behavior, **behavior[way]} if way in behavior else None
    during = dict.fromkeys(("best_evaluation", "last_evaluations"))
    return [{**result, **result[way], **during, "behavior": behavior}]


def group(results: list[Result]) -> Grouped:
    """The results by dataset and label, both in alphabetical order."""
    grouped: Grouped = {}
    for result in sorted(results, key=key_of):
        grouped.setdefault(dataset_of(result), {}).setdefault(result["label"], []).append(result)
    return grouped


def mixed_settings(runs: list[Result]) -> list[str]:
    """Names of the settings and hyper-parameters on which runs of one label disagree.

    Results of older versions record only the hyper-parameters that their command named: what one
    of two runs does not record is no disagreement.
    """
    mixed = [name for name in SETTINGS if any(run.get(name) != runs[0].get(name) for run in runs)]
    for part in ("flow", "config"):
        recorded = [run.get(part, {}) for run in runs]
        for name in dict.fromkeys(name for one in recorded for name in one):
            values = [one[name] for one in recorded if name in one]
            if name not in OF_A_MACHINE and any(value != values[0] for value in values):
                mixed.append(name)
    return mixed


def write_csv(results: list[Result], path: Path) -> None:
    """One row per run with all scalar fields; nested ones as `behavior.mean_return`."""
    rows = [dict(_scalars(result)) for result in results]
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    replace_file(path, write)


def _scalars(fields: Result, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All fields that are not lists, those of nested objects after a dot."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            yield prefix + name, value
