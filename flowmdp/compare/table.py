"""The table of `flowmdp bench`: a TOML file in, a list of checked jobs out.

`flowmdp bench --help` shows the format. Whatever is wrong with a table is found here, before the
first job starts: the checks of a job's options are those of `flowmdp train` itself.
"""

from __future__ import annotations

import re
import reprlib
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from flowmdp.compare.results import OF_A_MACHINE, Fields, Key, key_of, settings_of
from flowmdp.envs.data.store import dataset_folder
from flowmdp.envs.tasks import get_task
from flowmdp.errors import ConfigurationError, FlowMDPError
from flowmdp.runs.config import FLOW, get_algorithm, make_config

OPTIONS = (
    *("steps", "episodes", "eval_every", "eval_episodes", "save_every", "device"),
    *("quick", "paper", "behavior_from", *FLOW),
)
"""Options of `flowmdp train` beside the hyper-parameters that a table may name."""
WORD = (str, "a word in quotes")
FORMS = {
    **{"run": (dict, "[run] above it"), "tasks": (list, "[[tasks]] above each")},
    "algorithms": (dict, "[algorithms.NAME] above each"),
    **dict.fromkeys(("algorithm", "task", "env", "dataset", "source", "behavior_from"), WORD),
    **dict.fromkeys(("quick", "paper"), (bool, "true or false")),
}
"""Name -> its type, and how it is written; `make_config` checks the others and all ranges."""
MOST_JOBS = 10_000
"""In one table."""


@dataclass(frozen=True)
class Job:
    """One run of a table.

    Attributes:
        label: The algorithm's name in the table and in the report.
        options: What the table says about the run: options of `flowmdp train` by name.
        config: What its config.json will hold.
    """

    label: str
    options: dict[str, Any]
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """Dataset, label and seed in one word that can name a file.

        The task comes first where it reports success: such tasks share a dataset.
        """
        task = self.config["task"]
        words = [self.config["dataset_id"], self.label, f"seed{self.config['seed']}"]
        words = [task, *words] if get_task(task).success else words
        return "_".join(re.sub(r"[^\w.+=-]+", "-", word) for word in words)

    @property
    def key(self) -> Key:
        """Dataset, label and seed, by which its row is found."""
        return key_of({**self.config, "label": self.label})

    @property
    def command(self) -> list[str]:
        """The words of `flowmdp train ...` that begin this run, without its --out."""
        options = dict(self.options)
        algorithm = options.pop("algorithm")
        defaults = {"include_time": True, **vars(get_algorithm(algorithm).config_class())}
        words = ["flowmdp", "train", algorithm]
        words += [options.pop("task")] if "task" in options else []
        for name, value in options.items():
            option = name.replace("_", "-")
            if not isinstance(value, bool):
                values = value if isinstance(value, list) else [value]
                words += [f"--{option}", *map(str, values)]
            elif value != defaults.get(name, False):
                words.append(f"--{option}" if value else f"--no-{option}")
        return words

    def check(self, found: Fields, where: str) -> None:
        """Refuse a run or a result that other settings made, under this job's name.

        Raises:
            ConfigurationError: Naming the first setting that differs, of those that the table names
                or that are recorded.
        """
        here, there = settings_of(self.config), settings_of(found)
        for name in {**here, **there}:
            known = name in self.options or (name in there and name not in OF_A_MACHINE)
            if known and there.get(name) != here.get(name):
                raise ConfigurationError(
                    f"{where} has {name} {there.get(name)!r}, the table {here.get(name)!r}: give "
                    "the algorithm another name in the table, or remove what is there"
                )


def read_table(path: Path) -> list[Job]:
    """The jobs of a table: seeds outermost, then algorithms, then tasks.

    In this order a table that is half done has every task at its first seeds, and two algorithms
    that share a behaviour flow seldom train it at the same time.

    Raises:
        ConfigurationError: For anything that cannot be run as written, with the file and the place.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path} does not exist: name a table, a TOML file")
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except RecursionError:
        raise ConfigurationError(f"{path} is no table: it is nested too deeply") from None
    except ValueError as error:
        raise ConfigurationError(f"{path} is no TOML file: {error}") from error
    try:
        return _jobs(table)
    except FlowMDPError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _jobs(table: dict[str, Any]) -> list[Job]:
    _options("the table", table, ("run", "tasks", "algorithms"))
    for section, name in (("[[tasks]]", "tasks"), ("[algorithms.NAME]", "algorithms")):
        if not table.get(name):
            raise ConfigurationError(f"there is no {section}: add at least one")
    run = dict(table.get("run", {}))
    seeds = run.pop("seeds", [0])
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
        raise ConfigurationError(
            f"[run] seeds is {reprlib.repr(seeds)}: write numbers, as in seeds = [1, 2]"
        )
    if (count := len(seeds) * len(table["tasks"]) * len(table["algorithms"])) > MOST_JOBS:
        raise ConfigurationError(
            f"there are {count:,} jobs: a table holds {MOST_JOBS:,} at most, write several"
        )
    tasks = [
        _options("[[tasks]]", entry, ("task", "env", "dataset", "source"))
        for entry in table["tasks"]
    ]
    if not all(task.get("task") or task.get("env") for task in tasks):
        raise ConfigurationError('[[tasks]] names no task: write task = "hopper-medium"')
    known, algorithms = {}, {}
    for label, entry in table["algorithms"].items():
        where = f"[algorithms.{label}]"
        algorithm = _options(where, entry, entry).get("algorithm", label)
        known[label] = [*OPTIONS, *get_algorithm(algorithm).config_class.names()]
        own = _options(where, entry, ("algorithm", *known[label]))
        algorithms[label] = {"algorithm": algorithm, **own}
    run = _options("[run]", run, [name for names in known.values() for name in names])
    jobs: dict[str, Job] = {}
    for seed, (label, own), task in product(seeds, algorithms.items(), tasks):
        shared = {name: value for name, value in run.items() if name in known[label]}
        job = _job(label, {"algorithm": own["algorithm"], **task, "seed": seed, **shared, **own})
        if job.name in jobs:
            raise ConfigurationError(
                f"two jobs are called {job.name}: name each seed, dataset and algorithm once, and "
                "labels so that they differ in their letters"
            )
        jobs[job.name] = job
    return list(jobs.values())


def _job(label: str, options: dict[str, Any]) -> Job:
    """A job whose options `flowmdp train` accepts, as far as that shows without the data."""
    where = options.get("task") or options.get("env")
    try:
        config = make_config(**options)
        dataset_folder(config["dataset_id"] or get_task(config["task"]).dataset(config["source"]))
    except FlowMDPError as error:
        raise ConfigurationError(f"[algorithms.{label}] on {where}: {error}") from error
    return Job(label, options, config)


def _options(where: str, section: Any, known: Collection[str]) -> dict[str, Any]:
    """A section of the table, whose names are known and whose values have the right form.

    TOML has no null: "None" is None, as when typed.
    """
    if not isinstance(section, dict):
        raise ConfigurationError(
            f"{where} is {reprlib.repr(section)}: write a table of names and values"
        )
    for name, value in section.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
            raise ConfigurationError(f"{where} has the unknown key {name!r}: {hint}")
        if value == [] and name not in FORMS:
            raise ConfigurationError(f"{where} {name} is empty: write a value, or leave it out")
        kind, form = FORMS.get(name, (object, ""))
        if not isinstance(value, kind):
            raise ConfigurationError(f"{where} {name} is {reprlib.repr(value)}: write {form}")
    return {name: None if value == "None" else value for name, value in section.items()}
