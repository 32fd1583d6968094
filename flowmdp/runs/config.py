"""What a run consists of: its configuration, and the data, environment and agent it stands for."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.metadata
import platform
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from flowmdp.agents import ALGORITHMS
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.config import AgentConfig
from flowmdp.agents.core.inputs import check_device
from flowmdp.arguments import check_choice, check_integers
from flowmdp.behavior import as_behavior, import_name
from flowmdp.chunks import Chunks, check_fits
from flowmdp.env import FlowMDPEnv
from flowmdp.envs.data import load_dataset
from flowmdp.envs.robots.outer import make_robot
from flowmdp.envs.tasks import TASKS, Source, Task, get_task
from flowmdp.errors import ConfigurationError, DatasetError
from flowmdp.mdp.spec import FlowSettings
from flowmdp.transitions import TransitionDataset

QUICK = {"steps": 2_000, "behavior_steps": 10_000, "critic_steps": 5_000}
"""What --quick puts in the place of the defaults; the data stays whole."""
PACKAGES = ("flowmdp", "gymnasium", "minari", "mujoco", "numpy", "stable-baselines3", "torch")
FLOW = (
    *("flow_steps", "noise_scale", "velocity_scale", "include_time", "include_previous_action"),
    "chunk",
)
"""Settings of the flow environment that a run may choose."""
Device = Literal["auto", "cpu", "cuda"]
AT_LEAST = {"steps": 0, "seed": 0, "episodes": 1, "eval_every": 1, "eval_episodes": 1}
AT_LEAST |= {"save_every": 1}
MOST = 2**53 - 1
"""The largest count that every reader of JSON takes for what it is."""


def base_config(algorithm: str, paper: bool = False, quick: bool = False) -> AgentConfig:
    """The hyper-parameters from which a run's own depart.

    Raises:
        ConfigurationError: For an unknown algorithm, or one without a setting of its paper.
    """
    cls = get_algorithm(algorithm)
    if paper and not cls.paper:
        raise ConfigurationError(f"--paper: {algorithm} has no other setting; leave it out")
    brief = {name: n for name, n in QUICK.items() if quick and name in cls.config_class.names()}
    base: AgentConfig = cls.config_class.of({**(cls.paper if paper else {}), **brief})
    return base


def make_config(
    algorithm: str,
    task: str | None = None,
    *,
    env: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    dataset: str | None = None,
    source: Source | None = None,
    behavior_from: str | None = None,
    device: Device = "auto",
    quick: bool = False,
    paper: bool = False,
    episodes: int = 20,
    eval_every: int | None = None,
    eval_episodes: int = 5,
    save_every: int | None = None,
    flow_steps: int | None = None,
    noise_scale: float | None = None,
    velocity_scale: float | None = None,
    include_time: bool = True,
    include_previous_action: bool = False,
    chunk: int = 1,
    **others: Any,
) -> dict[str, Any]:
    """The configuration of a new run, checked as far as that is possible without the data.

    Args:
        algorithm: Name of the algorithm, or "package.module:Class" of one of your own.
        task: Name of the task; `flowmdp tasks` lists them.
        env: In place of a task: the id of any Gymnasium environment, also package:Id-v0; name its
            recordings with --dataset.
        steps: Gradient steps of the policy; the algorithm's own number when not given.
        seed: Seed of networks, batches, noise and evaluation.
        dataset: Id of any dataset of Minari's local store, instead of the task's own.
        source: Where data and robot come from; the task's default when not given.
        behavior_from: A flow policy of your own, package.module:name, in the place of the clone.
        device: auto takes the GPU when there is one.
        quick: The whole job in small: the full dataset, few updates; a look, not a result.
        paper: Start from the setting of the algorithm's paper instead of the defaults, where these
            are ours.
        episodes: Episodes of each evaluation at the end: of both flows, with noise and without.
        eval_every: Policy steps between evaluations during training; a tenth of the steps when not
            given.
        eval_episodes: Episodes of each evaluation during training.
        save_every: Policy steps between checkpoints; a tenth of the steps when not given.
        flow_steps: Euler steps from noise to action; 10 when not given, 1 where the algorithm
            needs one.
        noise_scale: Standard deviation of the noise that chains start from; the algorithm's own
            when not given.
        velocity_scale: Velocity of a flow action of 1; 6.5 when not given.
        include_time: Whether the policy sees the flow time.
        include_previous_action: Whether the policy sees the action before.
        chunk: Actions of the robot that one chain of the flow plans, executed open loop.
        **others: Hyper-parameters by name; the algorithm's defaults for those that are absent.

    Returns:
        JSON-able; "flow" and "config" hold every setting and hyper-parameter.

    Raises:
        ConfigurationError: For an unknown algorithm or name, a number out of range, or settings of
            the flow that the algorithm or the task cannot have.
        UnknownTaskError: For an unknown task or source.
    """
    cls, base = get_algorithm(algorithm), base_config(algorithm, paper, quick)
    task, row = _robot(task, env)
    if flow_steps is None:
        own_steps = behavior_from and as_behavior(behavior_from).flow_steps
        flow_steps = cls.only_flow_steps or own_steps or None
    flow = {
        "flow_steps": flow_steps,
        "noise_scale": noise_scale,
        "velocity_scale": velocity_scale,
        "include_time": include_time,
        "include_previous_action": include_previous_action,
        "chunk": chunk,
    }
    hyperparameters = cls.config_class.of(others, base)
    own = {} if paper else cls.environment_of(hyperparameters)
    given = {name: value for name, value in flow.items() if value is not None}
    checked = FlowSettings.of({**own, **given})
    cls.check_flow_steps(checked.flow_steps)
    cls.check_flow(hyperparameters, checked)
    check_fits(chunk, row.horizon)
    chosen = row.source(source)
    default_steps = QUICK["steps"] if quick else cls.default_steps
    config = {
        "algorithm": algorithm,
        "task": task,
        "source": chosen,
        "dataset_id": dataset or row.datasets.get(chosen),
        "behavior_from": behavior_from,
        "seed": seed,
        "steps": default_steps if steps is None else steps,
        "flow": {name: getattr(checked, name) for name in flow},
        "config": jsonable(hyperparameters),
        "episodes": episodes,
        "eval_every": eval_every,
        "eval_episodes": eval_episodes,
        "save_every": save_every,
        "device": device,
        "quick": quick,
        "command": shlex.join(["flowmdp", *sys.argv[1:]]),
        "versions": versions(),
    }
    check_config(config)
    return config


def _robot(task: str | None, env: str | None) -> tuple[str, Task]:
    """The name of the robot's task, and the task."""
    if (task is None) == (env is None):
        raise ConfigurationError(
            "name a task, or --env and the id of a robot's environment"
            if task is None
            else f"--env {env} takes the place of a task: leave {task} out"
        )
    if env in TASKS:
        raise ConfigurationError(f"--env {env}: that is a task, leave --env out")
    name = str(task or env)
    return name, get_task(name)


def imports(config: dict[str, Any]) -> list[str]:
    """What a run imports beside this package, by the names that its folder gives."""
    names = (config.get(field) for field in ("task", "algorithm", "behavior_from"))
    return [name for name in names if name and ":" in name]


def check_trust(where: Path, names: list[str], trust: bool) -> None:
    """Raise ConfigurationError for a run of foreign code, unless the user trusts it."""
    if names and not trust:
        raise ConfigurationError(
            f"{where} imports {', '.join(names)}: if you trust that, add --trust"
        )


def jsonable(config: AgentConfig) -> dict[str, Any]:
    """The hyper-parameters as JSON gives them back."""
    values = dataclasses.asdict(config)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def check_config(config: dict[str, Any]) -> None:
    """Raise ConfigurationError for a number out of range, or a GPU that is not there."""
    for name, least in AT_LEAST.items():
        if config[name] is not None:
            check_integers(least, MOST, **{f"--{name.replace('_', '-')}": config[name]})
    check_choice(get_args(Device), device=config["device"])
    check_device(config["device"])


def get_algorithm(name: str) -> type[FlowAlgorithm]:
    """The algorithm's class; "package.module:Class" is imported.

    Raises:
        ConfigurationError: When there is none of that name.
    """
    if ":" in name:
        found = import_name(name)
        if not (isinstance(found, type) and issubclass(found, FlowAlgorithm)):
            raise ConfigurationError(f"{name} is no subclass of FlowAlgorithm: name one that is")
        return found
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigurationError(
            f"unknown algorithm {name!r}: {hint}There are {', '.join(ALGORITHMS)}"
        )
    return ALGORITHMS[name]


def name_of(algorithm: str) -> str:
    """The name that checkpoints of an algorithm have; "package.module:Class" is imported."""
    return get_algorithm(algorithm).name if ":" in algorithm else algorithm


def make_data(config: dict[str, Any]) -> TransitionDataset:
    """The run's transitions; the task's own dataset is built here when it is absent.

    A note on stderr says how many episodes are too short for the run's chunks.

    Raises:
        DatasetError: As `load_dataset`, and when all episodes are too short.
    """
    default = get_task(config["task"]).datasets.get(config["source"])
    dataset_id, chunk = config["dataset_id"], FlowSettings.of(config["flow"]).chunk
    data = load_dataset(
        config["task"], config["source"], None if dataset_id == default else dataset_id
    )
    short, episodes = Chunks(data, chunk).short
    if short:
        print(
            f"note: dataset {data.id}: {short:,} of {episodes:,} episodes are shorter than "
            f"chunk={chunk}: no chunk begins in them",
            file=sys.stderr,
        )
    return data


def fingerprint(data: TransitionDataset) -> str:
    """Of every number in a dataset: the size, and the start of a hash."""
    digest = hashlib.sha256()
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        if isinstance(value, np.ndarray):
            digest.update(f"{field.name} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
    return f"{len(data)} transitions, sha256 {digest.hexdigest()[:16]}"


def check_data(config: dict[str, Any], data: TransitionDataset, where: Path) -> None:
    """Raise DatasetError when the data are no longer those that the run began with.

    Folders of older versions do not say what these were.
    """
    if config.get("fingerprint", now := fingerprint(data)) != now:
        raise DatasetError(
            f"{data.id} has changed since the run began (it has {now}, {where} says "
            f"{config['fingerprint']}): put the old data back, or start a new run"
        )


def make_env(config: dict[str, Any], dataset: TransitionDataset) -> FlowMDPEnv:
    """The flow environment that tells the agent what it learns."""
    return FlowMDPEnv(
        make_robot(config["task"], config["source"]),
        dataset=dataset,
        task=config["task"],
        source=config["source"],
        **config["flow"],
    )


def make_agent(config: dict[str, Any], env: FlowMDPEnv) -> FlowAlgorithm:
    """A new agent."""
    return get_algorithm(config["algorithm"])(
        "MlpPolicy",
        env,
        seed=config["seed"],
        device=config["device"],
        behavior=config.get("behavior_from"),
        **config["config"],
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


@cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a folder, not installed
        return "unknown"
