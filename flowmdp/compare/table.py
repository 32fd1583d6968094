"""The table of `flowmdp bench`: a TOML file in, a list of checked jobs out.

`flowmdp bench --help` shows the format. Whatever is wrong with a table is found here, before the
first job starts: the checks of a job's options are those of `flowmdp train` itself.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from flowmdp.compare.results import OF_A_MACHINE, Key, Result, key_of
from flowmdp.envs.data.store import dataset_folder
from flowmdp.envs.tasks import get_task
from flowmdp.errors import ConfigurationError, FlowMDPError
from flowmdp.runs.config import FLOW, get_algorithm, make_config

OPTIONS = (
    *("steps", "episodes", "eval_every", "eval_episodes", "save_every", "device"),
    *("quick", "paper", *FLOW),
)
"""Options of `flowmdp train` beside the hyper-parameters that a table may name."""
DATA = ("task", "dataset", "source")
DEVICES = ("auto", "cpu", "cuda")
RECORDED = ("algorithm", "task", "source", "dataset_id", "seed", "steps")
"""Fields of a run's config and result by which it is recognised, beside `flow` and `config`."""


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
        """Dataset, label and seed in one word that can name a file."""
        words = (self.config["dataset_id"], self.label, f"seed{self.config['seed']}")
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
        words = ["flowmdp", "train", algorithm, options.pop("task")]
        for name, value in options.items():
            option = name.replace("_", "-")
            if not isinstance(value, bool):
                values = value if isinstance(value, list) else [value]
                words += [f"--{option}", *map(str, values)]
            elif value != defaults.get(name, False):
                words.append(f"--{option}" if value else f"--no-{option}")
        return words

    def check(self, found: Result, where: str) -> None:
        """Refuse a run or a result that other settings made, under this job's name.

        Results of older versions record only the hyper-parameters that were named then; nothing is
        known of the others.

        Raises:
            ConfigurationError: Naming the first field that differs.
        """
        names = [*RECORDED, *(("episodes",) if "episodes" in self.options else ())]
        pairs = [(name, found.get(name), self.config[name]) for name in names]
        for part in ("flow", "config"):
            there, here = found.get(part, {}), self.config[part]
            named = [name for name in here if name in self.options]
            recorded = [name for name in there if name not in (*OF_A_MACHINE, *named)]
            pairs += [(name, there.get(name), here.get(name)) for name in named + recorded]
        for name, value, wanted in pairs:
            if value != wanted:
                raise ConfigurationError(
                    f"{where} has {name} {value!r}, the table {wanted!r}: give the algorithm "
                    "another name in the table, or remove what is there"
                )


def read_table(path: Path) -> list[Job]:
    """The jobs of a table: seeds outermost, then algorithms, then tasks.

    In this order a table that is half done has every task at its first seeds, and two algorithms
    that share a behaviour flow seldom train it at the same time.

    Raises:
        ConfigurationError: For anything that cannot be run as written, with the file and the place.
    """
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no TOML file: {error}") from error
    try:
        return _jobs(table)
    except FlowMDPError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _jobs(table: dict[str, Any]) -> list[Job]:
    _check_names("the table", table, ("run", "tasks", "algorithms"))
    run = _section(table, "run", dict)
    seeds = run.pop("seeds", [0])
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
        raise ConfigurationError(f"[run] seeds is {seeds!r}: write numbers, as in seeds = [1, 2]")
    tasks = [_task(entry) for entry in _section(table, "tasks", list)]
    algorithms = _section(table, "algorithms", dict)
    algorithms = {label: _algorithm(label, entry) for label, entry in algorithms.items()}
    for section, entries in (("[[tasks]]", tasks), ("[algorithms.NAME]", algorithms)):
        if not entries:
            raise ConfigurationError(f"there is no {section}: add at least one")
    known = {label: _known(options["algorithm"]) for label, options in algorithms.items()}
    run = _options("[run]", run, [name for names in known.values() for name in names])
    jobs: dict[str, Job] = {}
    for seed, (label, own), task in product(seeds, algorithms.items(), tasks):
        shared = {name: value for name, value in run.items() if name in known[label]}
        start = {"algorithm": own["algorithm"], **task, "seed": seed}
        job = _job(label, start | shared | own)
        if job.name in jobs:
            raise ConfigurationError(
                f"two jobs are called {job.name}: name each seed, dataset and algorithm once, and "
                "labels so that they differ in their letters"
            )
        jobs[job.name] = job
    return list(jobs.values())


def _job(label: str, options: dict[str, Any]) -> Job:
    """A job whose options `flowmdp train` accepts, as far as that shows without the data."""
    try:
        return Job(label, options, make_config(**options))
    except FlowMDPError as error:
        raise ConfigurationError(f"[algorithms.{label}] on {options['task']}: {error}") from error


def _known(algorithm: str) -> tuple[str, ...]:
    """The options that a table may give an algorithm."""
    return *OPTIONS, *(field.name for field in fields(get_algorithm(algorithm).config_class))


def _section(table: dict[str, Any], name: str, kind: type) -> Any:
    """A part of the table, empty where it is absent."""
    section = table.get(name, kind())
    if not isinstance(section, kind):
        form = "[[tasks]]" if kind is list else f"[{name}]"
        raise ConfigurationError(f"{name!r} is a {type(section).__name__}: write {form} above it")
    return section


def _check_names(where: str, section: Any, known: Collection[str]) -> None:
    if not isinstance(section, dict):
        raise ConfigurationError(f"{where} is {section!r}: write a table of names and values")
    for name in section:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
            raise ConfigurationError(f"{where} has the unknown key {name!r}: {hint}")


def _options(where: str, section: Any, known: Collection[str]) -> dict[str, Any]:
    """Options of `flowmdp train`; `make_config` checks the others and all ranges.

    TOML has no null: "None" is None, as when typed.
    """
    _check_names(where, section, known)
    for name, value in section.items():
        if name in (*DATA, "algorithm") and not isinstance(value, str):
            raise ConfigurationError(f"{where} {name} is {value!r}: write a word in quotes")
        if name in ("quick", "paper") and not isinstance(value, bool):
            raise ConfigurationError(f"{where} {name} is {value!r}: write true or false")
        if name == "device" and value not in DEVICES:
            choices = ", ".join(DEVICES)
            raise ConfigurationError(f"{where} device is {value!r}: choose one of {choices}")
    return {name: None if value == "None" else value for name, value in section.items()}


def _task(entry: Any) -> dict[str, Any]:
    """The options that name the data."""
    options = _options("[[tasks]]", entry, DATA)
    if "task" not in options:
        raise ConfigurationError('[[tasks]] names no task: write task = "hopper-medium"')
    task = get_task(options["task"])
    source = task.source(options.get("source"))
    dataset_folder(options.get("dataset") or task.dataset(source))  # refuses a malformed id
    return options


def _algorithm(label: str, entry: Any) -> dict[str, Any]:
    """Options of one algorithm, which is the label's if the table does not say."""
    algorithm = _options(f"[algorithms.{label}]", entry, entry).get("algorithm", label)
    known = ("algorithm", *_known(algorithm))
    return {"algorithm": algorithm, **_options(f"[algorithms.{label}]", entry, known)}
