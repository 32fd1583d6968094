"""What a caller hands to an agent beside hyper-parameters, checked."""

from __future__ import annotations

import dataclasses
import os
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorActionWrapper, VectorEnv, VectorObservationWrapper
from gymnasium.wrappers import (
    AtariPreprocessing,
    FrameStackObservation,
    MaxAndSkipObservation,
    RepeatAction,
)
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize
from torch import Tensor

from flowmdp.errors import ConfigurationError, FlowMDPError
from flowmdp.mdp.spec import FlowSpec
from flowmdp.robot import RobotInterface
from flowmdp.transitions import TransitionDataset

CHANGING: tuple[type[Any], ...] = (
    gym.ObservationWrapper,
    gym.ActionWrapper,
    FrameStackObservation,
    MaxAndSkipObservation,
    RepeatAction,
    AtariPreprocessing,
    VectorObservationWrapper,
    VectorActionWrapper,
)
"""Wrappers that change what an agent sees or does; those of rewards, limits, videos do not."""


def shown(value: Any) -> str:
    """A value in a message: one short line."""
    return reprlib.repr(value).split("\n")[0]


def check_kind(env: Any) -> None:
    """Raise ConfigurationError unless `env` is something SB3 makes a VecEnv of."""
    if isinstance(env, VectorEnv):
        raise ConfigurationError(
            f"env is a {type(env).__name__}: pass flowmdp.sb3.FlowVecEnv(env), made with "
            "autoreset_mode='SameStep'"
        )
    if not isinstance(env, gym.Env | VecEnv):
        raise ConfigurationError(
            f"env is {shown(env)}: pass a flow environment, as gym.make('FlowMDP-<task>-v0') or "
            "FlowMDPEnv(your_env)"
        )


def check_environment(env: VecEnv) -> FlowSpec:
    """The specification of a flow environment that nothing has changed on its way to the agent.

    Agents learn from recorded data, in the flow environment's own observations and actions. Behind
    a wrapper that changes either, they would play something else.

    Raises:
        ConfigurationError: If it is no flow environment, or wrapped so.
    """
    spec = FlowSpec.of(env)
    check_unwrapped(env, spec.space(), spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32))
    return spec


def check_unwrapped(
    env: VecEnv, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> None:
    """Raise ConfigurationError for wrappers that change what an agent sees or does, or spaces."""
    layer: Any = env
    while isinstance(layer, VecEnvWrapper):
        if isinstance(layer, VecFrameStack) or (isinstance(layer, VecNormalize) and layer.norm_obs):
            _refuse(type(layer).__name__)
        layer = layer.venv
    if any(any(env.env_is_wrapped(kind)) for kind in CHANGING):
        _refuse(str(env.env_method("__str__", indices=[0])[0]))
    for name, found, own in (
        ("observation", env.observation_space, observation_space),
        ("action", env.action_space, action_space),
    ):
        if found != own:
            _refuse(f"the {name} space is {found}, not {own}".replace("\n", " "))


def _refuse(what: str) -> NoReturn:
    raise ConfigurationError(
        f"the flow environment is wrapped so that observations or actions are not those of the "
        f"data ({what}): leave that out (agents normalise by themselves), or wrap the robot "
        "inside, FlowMDPEnv(Wrapper(robot)), and record the data with it"
    )


Made = tuple[FlowSpec, RobotInterface]
"""What two environments must share for an agent of the one to live in the other."""


def check_same(what: str, error: type[FlowMDPError], theirs: Made, ours: Made) -> None:
    """Raise an error unless an agent or checkpoint and an environment are of the same kind."""
    there, here = map(dataclasses.asdict, (theirs[0], ours[0]))
    if differing := [name for name in here if there[name] != here[name]]:
        listed = (f"{name} is {there[name]!r} there and {here[name]!r} here" for name in differing)
        raise error(
            f"the {what} is of another environment: {', '.join(listed)}; make it with the settings "
            "that its spec names, or train a new agent on this one"
        )
    if difference := theirs[1].difference(ours[1]):
        raise error(
            f"the environment's robot has {difference} as the {what} has: wrap it as it was "
            "wrapped for training"
        )


def check_kinds(**values: Any) -> None:
    """Raise ConfigurationError where an argument is of a type that nothing here can use."""
    for name, value in values.items():
        kinds, wanted = KINDS[name]
        entries = [value]
        if isinstance(value, list) and name == "callback":
            kinds, entries = BaseCallback, value  # SB3 wraps a function only where it stands alone
        if any(one is not None and not isinstance(one, kinds) for one in entries):
            raise ConfigurationError(f"{name} is {shown(value)}: it must be {wanted}")


KINDS: dict[str, tuple[Any, str]] = {
    "dataset": (TransitionDataset, "a flowmdp TransitionDataset"),
    "policy_kwargs": (dict, "a dictionary of hyper-parameters, as {'net_arch': [256, 256]}"),
    "custom_objects": (dict, "a dictionary of hyper-parameters, as {'learning_rate': 1e-4}"),
    "tensorboard_log": (str | os.PathLike, "a folder"),
    "verbose": (int, "0, 1 or 2"),
    "tb_log_name": (str, "a name"),
    "callback": (BaseCallback | Callable, "a callback of SB3, a list of them, a function"),
}


def check_device(device: Any) -> None:
    """Raise ConfigurationError unless torch can compute, and draw, on the device; "auto" may be."""
    if isinstance(device, str) and device == "auto":
        return
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(f"device is {device!r}, but torch sees no GPU: take auto or cpu")
    try:
        torch.Generator(torch.empty(0, device=torch.device(device)).device)
    except (RuntimeError, TypeError):
        raise ConfigurationError(f"device is {device!r}: choose auto, cpu or cuda") from None


def rows(
    name: str, value: Any, width: int, device: torch.device, count: int | None = None
) -> Tensor:
    """`value` as a float32 tensor of shape (n, width), where n is `count` if that is given.

    Raises:
        ConfigurationError: If it has another shape, or holds NaN or infinity.
    """
    try:
        tensor = torch.as_tensor(value, dtype=torch.float32, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigurationError(
            f"{name} is {shown(value)}: pass numbers, shape (n, {width})"
        ) from None
    if tensor.ndim != 2 or tensor.shape[1] != width or count not in (None, len(tensor)):
        expected = f"({'n' if count is None else count}, {width})"
        raise ConfigurationError(
            f"{name} has shape {tuple(tensor.shape)}: it must be {expected}, one row per chain"
        )
    if not tensor.isfinite().all():
        raise ConfigurationError(f"there is NaN or infinity in the {name}")
    return tensor


@contextmanager
def within_memory() -> Iterator[None]:
    """Turn an allocator's error into a ConfigurationError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        if isinstance(error, RuntimeError) and "memory" not in reason:
            raise
        raise ConfigurationError(
            f"networks and batches do not fit the memory ({reason}): take a smaller net_arch or "
            "batch_size"
        ) from error
