"""Exact checkpoints for SB3 algorithms, without pickle."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import get_system_info
from torch import Tensor, nn

from flowmdp.agents.core import checkpoint
from flowmdp.arguments import check_integers
from flowmdp.errors import CheckpointError, ConfigurationError
from flowmdp.mdp.spec import FlowSpec
from flowmdp.transitions import TransitionDataset

NOT_STORED = {"dataset", "device", "tensorboard_log", "verbose"}
"""Arguments of the constructor that belong to who loads a checkpoint, never to the file."""


class CheckpointedAlgorithm(BaseAlgorithm):
    """Replaces SB3's pickled `save` and `load` by JSON and safetensors.

    A subclass says what is to be kept: its constructor's arguments, modules, optimisers, counters,
    and two random generators.
    """

    spec: FlowSpec
    optimizers: dict[str, torch.optim.Optimizer]
    generator: torch.Generator
    act_generator: torch.Generator
    _dataset: TransitionDataset | None

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able; what it takes to make the agent again."""
        raise TypeError(f"{type(self).__name__} must say its hyper-parameters")

    @classmethod
    def arguments(cls) -> dict[str, Any]:
        """Name -> default of the constructor's arguments after `policy` and `env`, of all bases."""
        defaults: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            if issubclass(base, CheckpointedAlgorithm) and "__init__" in vars(base):
                parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
                defaults |= {one.name: one.default for one in parameters}
        others = {"self", "policy", "env", "args", "kwargs"}
        return {
            name: default
            for name, default in defaults.items()
            if name not in others and not name.startswith("_")
        }

    def _modules(self) -> dict[str, nn.Module]:
        """Everything with weights that a checkpoint holds."""
        raise TypeError(f"{type(self).__name__} must name its modules")

    def _generators(self) -> dict[str, torch.Generator]:
        """Random generators whose states a checkpoint holds."""
        return {"learn": self.generator, "act": self.act_generator}

    def _counters(self) -> dict[str, int]:
        """Attributes that count steps."""
        return {"num_timesteps": self.num_timesteps, "_n_updates": self._n_updates}

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return list(self._modules()), []

    def save(
        self,
        path: checkpoint.Target,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Write a checkpoint from which training resumes exactly.

        Args:
            path: ".zip" is added where there is no suffix.
            exclude: For SB3's signature only; must be empty.
            include: For SB3's signature only; must be empty.

        Raises:
            OSError: If it cannot be written; a checkpoint that was there before stays whole.
        """
        if exclude or include:
            raise ConfigurationError("a checkpoint is always whole: leave exclude and include out")
        space = self.observation_space
        tensors = {
            "space/low": torch.as_tensor(space.low),  # type: ignore[attr-defined]
            "space/high": torch.as_tensor(space.high),  # type: ignore[attr-defined]
        }
        for name, generator in self._generators().items():
            tensors[f"generator/{name}"] = generator.get_state()
        tensors |= checkpoint.flatten_modules(self._modules())
        for name, optimizer in self.optimizers.items():
            tensors |= checkpoint.flatten_optimizer(name, optimizer)
        manifest = {
            "algorithm": type(self).__name__,
            "dataset": None if self._dataset is None else self._dataset.id,
            "spec": dataclasses.asdict(self.spec),
            "hyperparameters": self.hyperparameters(),
            "counters": self._counters(),
        }
        checkpoint.write(path, manifest, tensors)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        path: checkpoint.Target,
        env: Any = None,
        device: torch.device | str = "auto",
        dataset: TransitionDataset | None = None,
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Make the agent again from a checkpoint; no code from the file is run.

        Args:
            path: The checkpoint.
            env: The flow environment, needed to learn on unless `dataset` is given.
            device: "auto", "cpu" or "cuda".
            dataset: Transitions to learn from; None takes the environment's.
            custom_objects: For SB3's signature only; must be empty, nothing is unpickled.
            print_system_info: Print the versions of this system, as SB3 does.
            force_reset: For SB3's signature only; learning takes no step of `env`.
            **kwargs: Override hyper-parameters, or give other arguments of the constructor.

        Raises:
            ConfigurationError: If an argument is unknown or out of range.
            CheckpointError: If the file is missing, damaged, of another algorithm, or made for
                another environment than `env`.
        """
        if custom_objects:
            raise ConfigurationError(
                "a checkpoint holds no objects to replace: leave custom_objects out and override "
                "hyper-parameters by name, as in load(path, learning_rate=1e-4)"
            )
        unknown = set(kwargs) - cls.arguments().keys()
        if unknown:
            names = ", ".join(sorted(cls.arguments()))
            raise ConfigurationError(f"load has no argument {min(unknown)!r}: choose among {names}")
        if print_system_info:
            get_system_info()
        manifest, tensors = checkpoint.read(path)
        if manifest.get("algorithm") != cls.__name__:
            raise CheckpointError(
                f"{path} holds a {manifest.get('algorithm')}, not a {cls.__name__}: "
                "load it with its own class or with load_agent"
            )
        own: dict[str, Any] = {"dataset": dataset, "device": device, "_init_setup_model": False}
        with checkpoint.refusing_damage(path):  # the file's arguments first, without the caller's
            stored = manifest["hyperparameters"]
            foreign = set(stored) - (cls.arguments().keys() - NOT_STORED)
            if foreign:
                raise ValueError(f"{min(foreign)!r} is no hyper-parameter")
            cls("MlpPolicy", None, **own, **stored)
        agent = cls("MlpPolicy", env, **own, **(stored | kwargs))
        with checkpoint.refusing_damage(path):
            agent._restore(manifest, tensors)
        return agent

    def _restore(self, manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take the state that `save` wrote."""
        spec = FlowSpec(**manifest["spec"])
        if self.env is None:
            low, high = tensors["space/low"].numpy(), tensors["space/high"].numpy()
            if not low.shape == high.shape == (spec.flow_observation_dim,):
                raise ValueError("its spec and its space are of different widths")
            self.spec, self.n_envs = spec, 1
            self.observation_space = spaces.Box(low, high, dtype=np.float32)
            self.action_space = spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        elif self.spec != spec:
            names = [f.name for f in dataclasses.fields(spec)]
            other = [n for n in names if getattr(spec, n) != getattr(self.spec, n)]
            difference = ", ".join(
                f"{n} is {getattr(spec, n)!r} there and {getattr(self.spec, n)!r} here"
                for n in other
            )
            raise CheckpointError(
                f"the checkpoint is of another environment: {difference}; make it with the "
                "settings load_agent(FILE).spec names, or train a new agent on this one"
            )
        self._setup_model()
        checkpoint.restore_modules(self._modules(), tensors)
        for name, optimizer in self.optimizers.items():
            checkpoint.restore_optimizer(name, optimizer, tensors)
        for name, generator in self._generators().items():
            generator.set_state(tensors[f"generator/{name}"])
        for name, value in manifest["counters"].items():
            if name not in self._counters():
                raise ValueError(f"{name!r} is no counter")
            check_integers(0, **{name: value})
            setattr(self, name, value)


def load_agent(path: checkpoint.Target, **kwargs: Any) -> Any:
    """Load a checkpoint with the class that saved it; arguments as in `FlowAlgorithm.load`."""
    name = checkpoint.read(path)[0].get("algorithm")
    stack = list(CheckpointedAlgorithm.__subclasses__())
    while stack:
        cls = stack.pop()
        if cls.__name__ == name:
            return cls.load(path, **kwargs)
        stack += cls.__subclasses__()
    raise CheckpointError(
        f"{path} holds an agent of the unknown class {name!r}: import the module that defines it, "
        "or name a file that agent.save wrote"
    )
