"""The outcomes of many runs: one line of JSON each, one file per table; and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from flowmdp.errors import ConfigurationError
from flowmdp.files import read_json, read_lines, replace_file
from flowmdp.schemas import Result, Row, fault

Fields = dict[str, Any]
"""Of a `Result`."""

SETTINGS = ("algorithm", "task", "source", "dataset_id", "seed", "steps", "episodes", "quick")
"""Fields that say what a run was asked for, beside `flow` and `config`."""
OF_A_MACHINE = ("precision", "cuda_graphs")
"""Hyper-parameters that two runs of the same may differ in."""


class Dataset(NamedTuple):
    """What makes two runs comparable: the robot, its origin and the data."""

    task: str
    source: str
    dataset_id: str


Key = tuple[Dataset, str, int]
"""Dataset, label and seed: what a table has once."""
Grouped = dict[Dataset, dict[str, list[Fields]]]
"""Dataset -> label -> results in the order of their seeds."""


def key_of(result: Fields) -> Key:
    """What a table has once; rows are in its order."""
    dataset = Dataset(result["task"], result["source"], result["dataset_id"])
    return dataset, result["label"], result["seed"]


def read_results(*files: Path) -> dict[Key, Fields]:
    """Every result in some files, with its `label` and the `file` it came from.

    Args:
        *files: A run's result.json (*.json), or a table's results, one per line; a table that is
            not there has none yet.

    Raises:
        CheckpointError: When a file is damaged.
        ConfigurationError: When one is no result, or two are of the same run.
    """
    found: dict[Key, Fields] = {}
    places: dict[Key, str] = {}
    for file in files:
        single = file.suffix == ".json"
        for number, row in enumerate([read_json(file)] if single else read_lines(file), 1):
            where = str(file) if single else f"{file}, line {number}"
            if wrong := fault(Result if single else Row, row):
                raise ConfigurationError(
                    f"{where} is no result of `flowmdp train` ({wrong}): take it out"
                )
            result = {"label": row["algorithm"], **row, "file": str(file)}
            key = key_of(result)
            if key in found:
                raise ConfigurationError(
                    f"{places[key]} and {where} are both {result['label']} with seed "
                    f"{result['seed']} on {result['dataset_id']}: keep one of them"
                )
            found[key], places[key] = result, where
    return found


def load_results(*paths: Path, only: Sequence[str] = (), acting: str = "published") -> Grouped:
    """Every result of some files and folders, by dataset and label in alphabetical order.

    Args:
        *paths: Files for `read_results`; or folders: of tables (*.jsonl directly in them), and of
            runs at any depth.
        only: Labels, wildcards included; none takes all.
        acting: How the policies play: "published", "sampled", "noiseless" or "both".

    Raises:
        CheckpointError: When a file is damaged.
        ConfigurationError: When nothing is there or left, one is no result, two are of the same
            run, or one was not evaluated that way.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise ConfigurationError(f"{path} does not exist: name a file or a folder of results")
        inside = [path]
        if path.is_dir():
            inside = [*sorted(path.glob("*.jsonl")), *sorted(path.rglob("result.json"))]
        if not inside:
            raise ConfigurationError(
                f"{path} holds no results: name what `flowmdp train` or `flowmdp bench` wrote"
            )
        files.update((file.resolve(), file) for file in inside)
    found: list[Fields] = []
    for result in read_results(*files.values()).values():
        if not only or any(fnmatchcase(result["label"], label) for label in only):
            found += _as_acting(result, acting)
    if not found:
        why = f"no label is {' or '.join(only)}" if only else "the files are empty"
        raise ConfigurationError(f"there is nothing to compare: {why}")
    grouped: Grouped = {}
    for result in sorted(found, key=key_of):
        dataset, label, _ = key_of(result)
        grouped.setdefault(dataset, {}).setdefault(label, []).append(result)
    return grouped


def settings_of(run: Fields) -> dict[str, Any]:
    """The settings and hyper-parameters that a run's config or result records.

    Those of older versions record only the hyper-parameters that their command named.
    """
    own = {name: run[name] for name in SETTINGS if name in run}
    return {**own, **run.get("flow", {}), **run.get("config", {})}


def disagreements(runs: list[Fields]) -> list[str]:
    """Names of the settings on which the runs of one label disagree, as far as they record them."""
    recorded = [settings_of(run) for run in runs]
    values = {name: [one[name] for one in recorded if name in one] for name in _names(recorded)}
    mixed = [name for name, found in values.items() if any(one != found[0] for one in found)]
    return [name for name in mixed if name not in (*OF_A_MACHINE, "seed")]


def write_csv(grouped: Grouped, path: Path) -> int:
    """Write one row per run with all scalar fields, nested ones as `behavior.mean_return`.

    Returns:
        The number of rows.
    """
    runs = (run for labels in grouped.values() for runs in labels.values() for run in runs)
    rows = [dict(_scalars(run)) for run in runs]

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _names(rows))
            writer.writeheader()
            writer.writerows(rows)

    replace_file(path, write)
    return len(rows)


def _as_acting(result: Fields, way: str) -> list[Fields]:
    """The result as its policy plays another way, the behaviour too.

    "published" leaves it as it is; "both" has, where that is from noise, `<label> noiseless` beside
    it. Evaluations during training were played in the published way only, and are left out.
    """
    if way == "published":
        return [result]
    if way == "both":
        (still,) = _as_acting(result, "noiseless")
        other = [{**still, "label": f"{result['label']} noiseless"}]
        return [result, *(other if still.get("returns") != result.get("returns") else [])]
    if not result.get(way):
        raise ConfigurationError(f"{result['file']} was not evaluated {way}: leave --acting out")
    behavior = result.get("behavior") or {}
    behavior = {**behavior, **behavior[way]} if behavior.get(way) else None
    during = dict.fromkeys(("best_evaluation", "last_evaluations", "curve"))
    return [{**result, **result[way], **during, "behavior": behavior}]


def _names(rows: list[Fields]) -> list[str]:
    """All that occur, in the order in which they do."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _scalars(fields: Fields, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All fields that are not lists, those of nested objects after a dot."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            yield prefix + name, value
