"""What a run consists of: its configuration, and the data, environment and agent it stands for."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import platform
import shlex
import sys
from typing import Any, Literal

import torch

from flowmdp.agents import ALGORITHMS
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.config import AgentConfig
from flowmdp.arguments import check_integers
from flowmdp.env import FlowMDPEnv
from flowmdp.envs.data import load_dataset
from flowmdp.envs.robots.outer import make_robot
from flowmdp.envs.tasks import Source, get_task
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.spec import FlowSettings
from flowmdp.transitions import TransitionDataset

QUICK = {"steps": 2_000, "behavior_steps": 10_000, "critic_steps": 5_000}
"""What --quick puts in the place of the defaults; the data stays whole."""
PACKAGES = ("flowmdp", "gymnasium", "minari", "mujoco", "numpy", "stable-baselines3", "torch")
FLOW = ("flow_steps", "noise_scale", "velocity_scale", "include_time", "include_previous_action")
"""Settings of the flow environment that a run may choose."""
Device = Literal["auto", "cpu", "cuda"]
AT_LEAST = {"steps": 0, "seed": 0, "episodes": 1, "eval_every": 1, "eval_episodes": 1}
AT_LEAST |= {"save_every": 1}


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
    task: str,
    *,
    steps: int | None = None,
    seed: int = 0,
    dataset: str | None = None,
    source: Source | None = None,
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
    **others: Any,
) -> dict[str, Any]:
    """The configuration of a new run, checked as far as that is possible without the data.

    Args:
        algorithm: Name of the algorithm.
        task: Name of the task; `flowmdp tasks` lists them.
        steps: Gradient steps of the policy; the algorithm's own number when not given.
        seed: Seed of networks, batches, noise and evaluation.
        dataset: Id of any dataset of Minari's local store, instead of the task's own.
        source: Where data and robot come from; the task's default when not given.
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
        **others: Hyper-parameters by name; the algorithm's defaults for those that are absent.

    Returns:
        JSON-able; "flow" and "config" hold every setting and hyper-parameter.

    Raises:
        ConfigurationError: For an unknown algorithm or name, or a number out of range.
        UnknownTaskError: For an unknown task or source.
    """
    cls, base = get_algorithm(algorithm), base_config(algorithm, paper, quick)
    flow = {
        "flow_steps": cls.only_flow_steps if flow_steps is None else flow_steps,
        "noise_scale": noise_scale,
        "velocity_scale": velocity_scale,
        "include_time": include_time,
        "include_previous_action": include_previous_action,
    }
    own = {} if paper else cls.environment
    given = {name: value for name, value in flow.items() if value is not None}
    checked = FlowSettings.of({**own, **given})
    chosen = get_task(task).source(source)
    default_steps = QUICK["steps"] if quick else cls.default_steps
    config = {
        "algorithm": algorithm,
        "task": task,
        "source": chosen,
        "dataset_id": dataset or get_task(task).datasets.get(chosen),
        "seed": seed,
        "steps": default_steps if steps is None else steps,
        "flow": {name: getattr(checked, name) for name in flow},
        "config": jsonable(cls.config_class.of(others, base)),
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


def jsonable(config: AgentConfig) -> dict[str, Any]:
    """The hyper-parameters as JSON gives them back."""
    values = dataclasses.asdict(config)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def check_config(config: dict[str, Any]) -> None:
    """Raise ConfigurationError for a number out of range, or a GPU that is not there."""
    for name, least in AT_LEAST.items():
        if config[name] is not None:
            check_integers(least, **{f"--{name.replace('_', '-')}": config[name]})
    check_device(config["device"])


def check_device(device: str) -> None:
    """Raise ConfigurationError for a GPU that is not there; SB3 would silently take the CPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("--device cuda: torch sees no GPU; leave it at auto or take cpu")


def get_algorithm(name: str) -> type[FlowAlgorithm]:
    """The algorithm's class.

    Raises:
        ConfigurationError: When there is none of that name.
    """
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigurationError(
            f"unknown algorithm {name!r}: {hint}There are {', '.join(ALGORITHMS)}"
        )
    return ALGORITHMS[name]


def make_data(config: dict[str, Any]) -> TransitionDataset:
    """The run's transitions; the task's own dataset is built here when it is absent."""
    default = get_task(config["task"]).datasets.get(config["source"])
    dataset_id = config["dataset_id"]
    return load_dataset(
        config["task"], config["source"], None if dataset_id == default else dataset_id
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
        "MlpPolicy", env, seed=config["seed"], device=config["device"], **config["config"]
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a folder, not installed
            found[package] = "unknown"
    return found
