"""What a run consists of: its configuration, and the data, environment and agent it stands for."""

from __future__ import annotations

import ast
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch

from flowmdp.agents import ALGORITHMS
from flowmdp.agents.core.actor_critic import ActorCritic
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.cli.options import Train, flat
from flowmdp.compare.results import OF_A_SEED_OR_MACHINE
from flowmdp.env import FlowMDPEnv
from flowmdp.envs.data import load_dataset
from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.tasks import get_task
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.spec import FlowSettings
from flowmdp.transitions import TransitionDataset

FLOW_STEPS = 10
"""Of algorithms that accept any number."""
QUICK = {"steps": 2_000, "behavior_steps": 10_000, "critic_steps": 5_000}
"""What --quick puts in the place of the defaults; the data stays whole."""
PACKAGES = ("flowmdp", "gymnasium", "minari", "mujoco", "numpy", "stable-baselines3", "torch")
OWN_OPTIONS = {"policy", "env", "dataset", "seed", "device", "verbose", "tensorboard_log"}
ENVIRONMENT = ("include_previous_action", "include_time", "noise_scale", "velocity_scale")
"""Settings of the flow environment that --set accepts beside the algorithm's arguments."""


def make_config(options: Train) -> dict[str, Any]:
    """The configuration of a new run, checked as far as that is possible without the data.

    Raises:
        ConfigurationError: For an unknown algorithm, an argument it does not know, or a number out
            of range.
        UnknownTaskError: For an unknown task or source.
    """
    if options.algorithm is None or options.task is None:
        raise ConfigurationError(
            "name an algorithm and a task, for instance `flowmdp train df-div hopper-medium`, "
            "or continue a run with --resume DIR"
        )
    algorithm = get_algorithm(options.algorithm)
    source = get_task(options.task).source(options.source)
    if options.paper and not algorithm.paper:
        raise ConfigurationError(f"--paper: {options.algorithm} has no other setting; leave it out")
    start = algorithm.paper if options.paper else algorithm.environment
    known = constructor_arguments(algorithm)
    if options.quick:
        start = {**start, **{name: n for name, n in QUICK.items() if name in known}}
    arguments = {**start, **parse_arguments(flat(options.set), algorithm)}
    steps = QUICK["steps"] if options.quick else algorithm.default_steps
    flow_steps = algorithm.only_flow_steps or FLOW_STEPS
    config = {
        "algorithm": options.algorithm,
        "task": options.task,
        "source": source,
        "dataset_id": options.dataset or get_task(options.task).datasets.get(source),
        "seed": options.seed,
        "steps": steps if options.steps is None else options.steps,
        "flow_steps": flow_steps if options.flow_steps is None else options.flow_steps,
        "arguments": arguments,
        "episodes": options.episodes,
        "eval_every": options.eval_every,
        "eval_episodes": options.eval_episodes,
        "save_every": options.save_every,
        "device": options.device,
        "quick": options.quick,
        "command": shlex.join(["flowmdp", *sys.argv[1:]]),
        "versions": versions(),
    }
    check_config(config)
    return config


def check_config(config: dict[str, Any]) -> None:
    """Check the numbers and the device.

    Raises:
        ConfigurationError: When one of them cannot be used.
    """
    at_least = {"steps": 0, "seed": 0, "episodes": 1, "eval_every": 1, "eval_episodes": 1}
    for name, least in {**at_least, "save_every": 1, "flow_steps": 1}.items():
        value = config[name]
        if value is not None and value < least:
            option = "--" + name.replace("_", "-")
            raise ConfigurationError(f"{option} is {value}: it must be at least {least}")
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
        names = ", ".join(ALGORITHMS)
        raise ConfigurationError(f"unknown algorithm {name!r}: choose one of {names}")
    return cast(type[FlowAlgorithm], ALGORITHMS[name])


def algorithm_name(agent: FlowAlgorithm) -> str:
    """The name under which the command knows an agent's class; the class's own for others."""
    for name, algorithm in ALGORITHMS.items():
        if type(agent) is algorithm:
            return name
    return type(agent).__name__


def constructor_arguments(algorithm: type[FlowAlgorithm]) -> set[str]:
    """Names of the constructor's arguments that --set accepts, through all base classes."""
    return (algorithm.arguments().keys() - OWN_OPTIONS | {"net_arch"}) - {"policy_kwargs"}


def default_arguments(algorithm: type[FlowAlgorithm]) -> dict[str, Any]:
    """What its hyper-parameters are if nobody names them, but for what the machine decides."""
    own = OWN_OPTIONS | {"policy_kwargs"} | set(OF_A_SEED_OR_MACHINE)
    if issubclass(algorithm, ActorCritic) and not algorithm.clones:
        own |= {"behavior_steps"}
    return {name: value for name, value in algorithm.arguments().items() if name not in own}


def parse_arguments(pairs: Sequence[str], algorithm: type[FlowAlgorithm]) -> dict[str, Any]:
    """`rho=0.3 critic=td net_arch=[512,512]` as a dictionary; values are literals or words.

    Raises:
        ConfigurationError: For a pair without "=", or a name the algorithm does not know.
    """
    known = constructor_arguments(algorithm) | set(ENVIRONMENT)
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {pair}: write NAME=VALUE, for instance rho=0.3")
        if name not in known:
            names = ", ".join(sorted(known))
            raise ConfigurationError(f"--set {name}: no such argument; there are {names}")
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    return arguments


def make_data(config: dict[str, Any]) -> TransitionDataset:
    """The run's transitions; the task's own dataset is built here when it is absent."""
    default = get_task(config["task"]).datasets.get(config["source"])
    dataset_id = config["dataset_id"]
    return load_dataset(
        config["task"], config["source"], None if dataset_id == default else dataset_id
    )


def make_env(config: dict[str, Any], dataset: TransitionDataset) -> FlowMDPEnv:
    """The flow environment that tells the agent what it learns."""
    settings = {name: v for name, v in config["arguments"].items() if name in ENVIRONMENT}
    return FlowMDPEnv(
        make_outer(config["task"], config["source"]),
        dataset=dataset,
        task=config["task"],
        source=config["source"],
        flow_steps=config["flow_steps"],
        **settings,
    )


def make_agent(config: dict[str, Any], env: FlowMDPEnv) -> FlowAlgorithm:
    """A new agent.

    Raises:
        ConfigurationError: When its constructor refuses an argument.
    """
    settings = {field.name for field in fields(FlowSettings)} & set(ENVIRONMENT)
    arguments = {name: v for name, v in config["arguments"].items() if name not in settings}
    if "net_arch" in arguments:
        arguments["policy_kwargs"] = {"net_arch": arguments.pop("net_arch")}
    try:
        return get_algorithm(config["algorithm"])(
            "MlpPolicy", env, seed=config["seed"], device=config["device"], **arguments
        )
    except (TypeError, AssertionError) as error:
        raise ConfigurationError(f"--set: {config['algorithm']} refuses it: {error}") from error


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a folder, not installed
            found[package] = "unknown"
    return found


def checkpoint_file(run_folder: Path) -> Path:
    """The checkpoint in a run's folder, or the file itself."""
    return run_folder / "checkpoint.zip" if run_folder.is_dir() else run_folder
