"""The table of `flowmdp bench`: a TOML file in, a list of checked jobs out.

`flowmdp bench --help` shows the format. Whatever is wrong with a table is found here, before the
first job starts: the checks of a job's options are those of `flowmdp train` itself.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from flowmdp.cli.options import Device, Train, flat
from flowmdp.envs.data.store import dataset_folder
from flowmdp.envs.tasks import get_task
from flowmdp.errors import ConfigurationError, FlowMDPError
from flowmdp.runs.config import default_arguments, get_algorithm, make_config

NUMBERS = ("steps", "flow_steps", "episodes", "eval_every", "eval_episodes", "save_every")
OPTIONS = (*NUMBERS, "device")
"""Options of `flowmdp train` that a table may name, for all jobs or for one algorithm."""
RECORDED = ("task", "source", "dataset_id", "algorithm", "seed", "arguments", "steps", "flow_steps")
"""Fields of config.json and result.json by which a run is recognised as a job's."""


@dataclass(frozen=True)
class Job:
    """One run of a table.

    Attributes:
        label: The algorithm's name in the table and in the report.
        seed: The run's seed.
        dataset_id: Minari id of the data.
        options: What the table says about the run; arguments of `Train`.
        expected: What config.json and result.json of this job say: field -> value.
        defaults: Hyper-parameters that the table does not name, as result.json records them.
    """

    label: str
    seed: int
    dataset_id: str
    options: dict[str, Any]
    expected: dict[str, Any]
    defaults: dict[str, Any]

    @property
    def name(self) -> str:
        """Dataset, label and seed in one word that can name a file."""
        words = (self.dataset_id, self.label, f"seed{self.seed}")
        return "_".join(re.sub(r"[^\w.+=-]+", "-", word) for word in words)

    @property
    def command(self) -> list[str]:
        """The words of `flowmdp train ...` that begin this run, without its --out."""
        options = {name: value for name, value in self.options.items() if name not in SPECIAL}
        words = ["flowmdp", "train", self.options["algorithm"], self.options["task"]]
        for name, value in options.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        pairs = flat(self.options["set"])
        return [*words, "--set", *pairs] if pairs else words


SPECIAL = ("algorithm", "task", "set")
"""Arguments of `Train` that are not written as --name value."""


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
    seeds = _seeds(run.pop("seeds", [0]))
    shared = _options("[run]", run, (*OPTIONS, "set"))
    arguments = _arguments("[run]", shared.pop("set", {}))
    tasks = [_task(entry) for entry in _section(table, "tasks", list)]
    algorithms = {
        label: _algorithm(label, entry, arguments)
        for label, entry in _section(table, "algorithms", dict).items()
    }
    for section, entries in (("[[tasks]]", tasks), ("[algorithms.NAME]", algorithms)):
        if not entries:
            raise ConfigurationError(f"there is no {section}: add at least one")
    _check_distinct("dataset", [dataset_id for dataset_id, _ in tasks])
    jobs = [
        _job(label, seed, dataset_id, {**task, "seed": seed, **shared, **algorithm})
        for seed in seeds
        for label, algorithm in algorithms.items()
        for dataset_id, task in tasks
    ]
    _check_distinct("file name", [job.name for job in jobs])
    return jobs


def _job(label: str, seed: int, dataset_id: str, options: dict[str, Any]) -> Job:
    """A job whose options `flowmdp train` accepts, as far as that shows without the data."""
    try:
        config = make_config(Train(**options))
    except FlowMDPError as error:
        raise ConfigurationError(f"[algorithms.{label}] on {options['task']}: {error}") from error
    named = ("episodes",) if "episodes" in options else ()
    expected = {name: config[name] for name in (*RECORDED, *named)}
    defaults = default_arguments(get_algorithm(config["algorithm"]))
    unnamed = {name: value for name, value in defaults.items() if name not in config["arguments"]}
    return Job(label, seed, dataset_id, options, expected, unnamed)


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
    unknown = [name for name in section if name not in known]
    if unknown:
        raise ConfigurationError(
            f"{where} has the unknown key {unknown[0]!r}: it takes {', '.join(known)}"
        )


def _check_distinct(what: str, values: Iterable[Any]) -> None:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise ConfigurationError(f"the {what} {value} occurs twice: each may stand once")
        seen.add(value)


def _seeds(seeds: Any) -> list[int]:
    """Distinct numbers of at least 0."""
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
        raise ConfigurationError(f"[run] seeds is {seeds!r}: write numbers, as in seeds = [1, 2]")
    _check_distinct("seed", seeds)
    return seeds


def _options(where: str, section: Any, known: Collection[str]) -> dict[str, Any]:
    """Options of `flowmdp train` with their types checked; ranges are for `make_config`."""
    _check_names(where, section, known)
    for name, value in section.items():
        if name in NUMBERS and type(value) is not int:
            raise ConfigurationError(f"{where} {name} is {value!r}: write a whole number")
        if name not in NUMBERS and name != "set" and not isinstance(value, str):
            raise ConfigurationError(f"{where} {name} is {value!r}: write a word in quotes")
    if section.get("device", "auto") not in get_args(Device):
        raise ConfigurationError(
            f"{where} device is {section['device']!r}: choose one of {', '.join(get_args(Device))}"
        )
    return dict(section)


def _task(entry: Any) -> tuple[str, dict[str, Any]]:
    """Dataset id, and the options that name the data."""
    options = _options("[[tasks]]", entry, ("task", "dataset", "source"))
    if "task" not in options:
        raise ConfigurationError('[[tasks]] names no task: write task = "hopper-medium"')
    task, source = get_task(options["task"]), options.get("source")
    source = task.source(source)
    dataset_id = options.get("dataset") or task.dataset(source)
    dataset_folder(dataset_id)  # refuses a malformed id
    return dataset_id, options


def _algorithm(label: str, entry: Any, shared: dict[str, Any]) -> dict[str, Any]:
    """Options of one algorithm; `set` as the command takes it, with what all algorithms share."""
    where = f"[algorithms.{label}]"
    options = _options(where, entry, ("algorithm", *OPTIONS, "set"))
    arguments = shared | _arguments(where, options.get("set", {}))
    pairs = tuple(f"{name}={_literal(value)}" for name, value in arguments.items())
    return {"algorithm": label, **options, "set": (pairs,)}


def _arguments(where: str, arguments: Any) -> dict[str, Any]:
    """The arguments that a `set` names, their types checked."""
    if not isinstance(arguments, dict):
        raise ConfigurationError(
            f"{where} set is {arguments!r}: write a table, as in set = {{ rho = 0.3 }}"
        )
    for name, value in arguments.items():
        if not isinstance(value, bool | int | float | str | list):
            raise ConfigurationError(f"{where} set: {name} cannot be a {type(value).__name__}")
    return dict(arguments)


def _literal(value: Any) -> str:
    """A value of the table as --set reads it; a string as it stands, so that "None" is None."""
    if isinstance(value, list):
        return f"[{','.join(repr(entry) for entry in value)}]"  # no spaces to quote in a shell
    return value if isinstance(value, str) else repr(value)
