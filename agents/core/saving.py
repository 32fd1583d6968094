"""An agent's state: its weights as Stable-Baselines3 hands them around, and checkpoints.

`agents/core/checkpoint.py` is the file; this says what of an agent is in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import get_system_info
from torch import Tensor

from flowmdp.agents.core import checkpoint
from flowmdp.agents.core.config import AgentConfig
from flowmdp.agents.core.inputs import check_kinds, check_same
from flowmdp.agents.core.own_behavior import check_recorded
from flowmdp.agents.core.parts import Part
from flowmdp.agents.core.policy import FlowPolicy
from flowmdp.agents.core.randomness import check_seed
from flowmdp.arguments import check_numbers
from flowmdp.behavior import BehaviorFlow
from flowmdp.errors import CheckpointError, ConfigurationError
from flowmdp.mdp.spec import FlowSpec
from flowmdp.robot import RobotInterface
from flowmdp.transitions import TransitionDataset

ROBOTS = "robots/"
"""How the names of what brings robots back begin."""


class Saving(BaseAlgorithm):
    """What of an agent a checkpoint holds, and how the agent is made again from it."""

    config_class: ClassVar[type[Any]] = AgentConfig
    name: ClassVar[str] = ""
    acts_with: ClassVar[tuple[str, ...]] = ("policy",)
    """The registered modules that decide an action: what `agent.policy.save` writes."""
    config: Any
    spec: FlowSpec
    robot: RobotInterface
    seed: int
    own_behavior: BehaviorFlow | None
    parts: tuple[Part, ...]
    saved: checkpoint.Registry
    prepared: int
    _dataset: TransitionDataset | None
    _reward_scale: float | None
    _episodes: dict[str, NDArray[Any]]
    """Where robots were when they were left, see `Online`."""

    def _where(self) -> dict[str, NDArray[Any]]:
        """Where robots are."""
        return self._episodes

    def _behavior_record(self) -> dict[str, Any] | None:
        """What a checkpoint keeps of a behaviour of the user's own."""
        if self.own_behavior is None:
            return None
        widths = self.spec.observation_dim, self.spec.action_dim
        return {"name": self.own_behavior.name, "probe": self.own_behavior.probe(*widths)}

    def unread(self) -> dict[str, str]:
        """What a checkpoint leaves out once all parts are fitted, see `Part.spent`."""
        return {
            name: instead
            for part in self.parts
            for name, instead in {**part.spent, **part.idle()}.items()
        }

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """State of every module and optimiser by name, as SB3's; modules and optimisers differ."""
        modules = {name: module.state_dict() for name, module in self.saved.modules.items()}
        optimizers = self.saved.optimizers.items()
        return modules | {f"optimizer.{name}": one.state_dict() for name, one in optimizers}

    def set_parameters(
        self,
        load_path_or_dict: Any,
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Take weights that `get_parameters` gave; learning goes on from them.

        With `exact_match=False`, parts that are not given are still fitted when learning begins,
        and the policy then starts from them, unless all modules are given.

        Args:
            load_path_or_dict: Name -> state, or a checkpoint of this algorithm.
            exact_match: Whether every module and optimiser must be there.
            device: For SB3's signature only; weights go where the agent is.

        Raises:
            ConfigurationError: If names or shapes are not the agent's.
            CheckpointError: If it is a file that cannot be used.
        """
        given = load_path_or_dict
        if not isinstance(given, dict):
            given = self.load(given, device=self.device).get_parameters()
        owners: dict[str, Any] = {**self.saved.modules}
        owners |= {f"optimizer.{name}": one for name, one in self.saved.optimizers.items()}
        wrong = set(given) - set(owners) or (set(owners) - set(given) if exact_match else set())
        if wrong:
            raise ConfigurationError(
                f"parameters for {min(wrong)!r} are missing or not of this agent, which has "
                f"{', '.join(owners)}: take those of a {type(self).__name__}, or exact_match=False"
            )
        try:
            for name in given.keys() & self.saved.modules.keys():
                if wrong_one := checkpoint.first_not_finite(dict(given[name])):
                    raise ValueError(f"{name}/{wrong_one} holds NaN or infinity")
            for name, state in given.items():
                owners[name].load_state_dict(state)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(
                f"the parameters do not fit this agent ({str(error).splitlines()[-1].strip()}): "
                "take those of an agent with the same hyper-parameters"
            ) from error
        for part in self.parts:  # what was fitted before must not be fitted again
            if set(part.cached) <= set(given):
                part.updates = part.steps
        if set(self.saved.modules) <= set(given):
            self.prepared = 1

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
            TrainingDivergedError: If a weight is not finite; likewise.
        """
        if exclude or include:
            raise ConfigurationError("a checkpoint is always whole: leave exclude and include out")
        manifest = {
            "algorithm": self.name,
            "dataset": None if self._dataset is None else self._dataset.id,
            "spec": dataclasses.asdict(self.spec),
            "robot": self.robot.to_json(),
            "config": dataclasses.asdict(self.config),
            "behavior": self._behavior_record(),
            "seed": self.seed,
            "reward_scale": self._reward_scale,
            "counters": self.saved.counts(),
        }
        unread = self.unread() if self.prepared else {}
        tensors = checkpoint.without(self.saved.tensors(), unread)
        tensors |= {f"{ROBOTS}{name}": torch.tensor(x) for name, x in self._where().items()}
        checkpoint.write(path, manifest, tensors)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        path: checkpoint.Target | checkpoint.Checkpoint,
        env: Any = None,
        device: torch.device | str = "auto",
        dataset: TransitionDataset | None = None,
        behavior: Any = None,
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        **hyperparameters: Any,
    ) -> Self:
        """Make the agent again from a checkpoint; no code from the file is run.

        Args:
            path: The checkpoint.
            env: The flow environment, needed to learn on unless `dataset` is given.
            device: "auto", "cpu" or "cuda".
            dataset: Transitions to learn from; None takes the environment's.
            behavior: The flow policy of your own around which the agent was trained.
            custom_objects: Hyper-parameters by name, as below; nothing else can be replaced, since
                nothing is unpickled.
            print_system_info: Print the versions of this system, as SB3 does.
            force_reset: For SB3's signature only; learning takes no step of `env`.
            tensorboard_log: Folder for TensorBoard files.
            verbose: 1 prints the log to the terminal.
            seed: None keeps the file's.
            **hyperparameters: Override those of the file, by name.

        Raises:
            ConfigurationError: If an argument is unknown or out of range.
            CheckpointError: If the file is missing, damaged, of another algorithm, or made for
                another environment than `env`.
        """
        check_kinds(custom_objects=custom_objects)
        hyperparameters = {**(custom_objects or {}), **hyperparameters}
        if print_system_info:
            get_system_info()
        content = path if isinstance(path, checkpoint.Checkpoint) else checkpoint.read(path)
        manifest = content.manifest
        if manifest.get("algorithm") != cls.name:
            raise CheckpointError(
                f"{content.name} holds a {manifest.get('algorithm')}, not a {cls.name}: "
                "load it with its own class or with load_agent"
            )
        if "counters" not in manifest:
            raise CheckpointError(
                f"{content.name} holds a policy alone: load it with FlowPolicy.load, or take a "
                "file that agent.save wrote; else train again"
            )
        with checkpoint.refusing_damage(content.name):
            config, stored_seed = cls.config_class.of(manifest["config"]), manifest["seed"]
            check_seed(stored_seed)
            _check_size(config, content)
        make: Any = cls  # an algorithm; this class cannot be made
        given = {"dataset": dataset, "behavior": behavior}  # not every algorithm takes them
        agent: Self = make(
            "MlpPolicy",
            env,
            cls.config_class.of(hyperparameters, config),
            **{name: one for name, one in given.items() if one is not None},
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            seed=stored_seed if seed is None else seed,
            device=device,
            _init_setup_model=False,
        )
        with checkpoint.refusing_damage(content.name):
            agent._restore(manifest, content.tensors)
        return agent

    def _restore(self, manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take the state that `save` wrote."""
        self._take_spec(manifest)
        self._setup_model()
        if (scale := manifest.get("reward_scale")) is not None:
            check_numbers("(0, inf)", reward_scale=scale)
            self._reward_scale = scale
        self.saved.restore(checkpoint.filled(tensors, self.unread()), manifest["counters"])
        self._episodes = {
            name.removeprefix(ROBOTS): tensor.numpy()
            for name, tensor in tensors.items()
            if name.startswith(ROBOTS)
        }

    def _take_spec(self, manifest: dict[str, Any]) -> None:
        """Take the file's specification, which must be that of the environment if there is one."""
        spec = FlowSpec(**manifest["spec"])
        widths = spec.observation_dim, spec.action_dim
        check_recorded(manifest.get("behavior"), self.own_behavior, *widths)
        robot = RobotInterface.plain(spec.observation_dim, spec.robot_action_dim)
        if "robot" in manifest:
            robot = RobotInterface.from_json(manifest["robot"])
            own = spec.observation_dim, spec.robot_action_dim
            if (robot.observation_dim, robot.action_dim) != own:
                raise CheckpointError(
                    f"its robot has observations and actions of width {robot.observation_dim} and "
                    f"{robot.action_dim}, its specification of {own}: {checkpoint.CURE}"
                )
        if self.env is None:
            self._live_in(spec, robot)
        else:
            check_same("checkpoint", CheckpointError, (spec, robot), (self.spec, self.robot))

    def _live_in(self, spec: FlowSpec, robot: RobotInterface) -> None:
        """Be an agent of such an environment, which is not there."""
        self.spec, self.n_envs, self.robot = spec, 1, robot
        self.observation_space = spec.space()
        self.action_space = spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)


def load_agent(path: checkpoint.Target | checkpoint.Checkpoint, **kwargs: Any) -> Any:
    """Load a checkpoint with the class that saved it; arguments as in `Saving.load`."""
    content = path if isinstance(path, checkpoint.Checkpoint) else checkpoint.read(path)
    return _class_of(content).load(content, **kwargs)


def _check_size(config: Any, content: checkpoint.Checkpoint) -> None:
    """See `checkpoint.check_size`."""
    spec = FlowSpec(**content.manifest["spec"])
    widths = (spec.flow_observation_dim, *config.net_arch, spec.action_dim)
    checkpoint.check_size(widths, content.tensors)


def _class_of(content: checkpoint.Checkpoint) -> type[Any]:
    """The algorithm that wrote a file."""
    name, stack = content.manifest.get("algorithm"), Saving.__subclasses__()
    while stack:
        cls = stack.pop()
        if cls.name == name:
            return cls
        stack += cls.__subclasses__()
    raise CheckpointError(
        f"{content.name} holds an agent of the unknown class {name!r}: import the module that "
        "defines it, or name a file that agent.save wrote"
    )


def _load_policy(
    policy_class: type[FlowPolicy], path: checkpoint.Target, device: torch.device | str
) -> FlowPolicy:
    """See `FlowPolicy.load`."""
    content = checkpoint.read(path)
    cls, manifest = _class_of(content), content.manifest
    if manifest.get("behavior"):
        raise CheckpointError(
            f"{content.name} holds a policy around a behaviour of your own: save the whole agent, "
            "and load it with behavior="
        )
    with checkpoint.refusing_damage(content.name):
        config = cls.config_class.of(manifest["config"])
        _check_size(config, content)
    agent = cls(policy_class, None, config, device=device, _init_setup_model=False)
    with checkpoint.refusing_damage(content.name):
        agent._take_spec(manifest)
        agent._setup_model()
        tensors = checkpoint.filled(content.tensors, agent.unread())
        for name in cls.acts_with:
            checkpoint.restore_module(name, agent.saved.modules[name], tensors)
    policy: FlowPolicy = agent.policy
    return policy


FlowPolicy.rebuild = staticmethod(_load_policy)
