"""What every agent shares: an SB3 algorithm that learns offline and plays the flow environment."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import textwrap
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, ClassVar, Generic, Self, get_type_hints

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger, get_system_info
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor, nn
from tqdm.auto import tqdm
from typing_extensions import TypeVar

from flowmdp.agents.core import checkpoint
from flowmdp.agents.core.acting import OuterPolicy, State
from flowmdp.agents.core.batch import Batch, DeviceDataset, check_fit
from flowmdp.agents.core.config import AgentConfig, documented
from flowmdp.agents.core.critics import Critic
from flowmdp.agents.core.graphs import CudaGraphs
from flowmdp.agents.core.inputs import (
    check_device,
    check_environment,
    check_kind,
    check_kinds,
    rows,
    shown,
    spec_difference,
    within_memory,
)
from flowmdp.agents.core.means import Means
from flowmdp.agents.core.networks import Descent, Info, VelocityField
from flowmdp.agents.core.one_step import SAMPLING_STEPS
from flowmdp.agents.core.own_behavior import OwnField, ResidualField, check_recorded
from flowmdp.agents.core.parts import Part
from flowmdp.agents.core.policy import FlowPolicy
from flowmdp.agents.core.precision import autocast, choose_precision, matmul_precision
from flowmdp.agents.core.randomness import check_seed, concrete, seeded
from flowmdp.arguments import check_integers, check_numbers
from flowmdp.behavior import as_behavior
from flowmdp.errors import CheckpointError, ConfigurationError, TrainingDivergedError
from flowmdp.mdp.solver import integrate
from flowmdp.mdp.spec import FlowSpec
from flowmdp.robot import RobotInterface
from flowmdp.transitions import TransitionDataset

Array = NDArray[np.float32]
Loss = Callable[..., tuple[Tensor, Info]]
"""loss(networks, batch, noise, **weights) -> (scalar to descend, what to log); draws nothing."""

Config = TypeVar("Config", bound=AgentConfig, default=Any)

ALGORITHMS: dict[str, type[FlowAlgorithm[Any]]] = {}
"""Name on the command line -> class; a class enters itself by `class DFDir(..., name="df-dir")`."""


class FlowAlgorithm(BaseAlgorithm, Generic[Config]):
    """Base of the agents: data on the device, the learning loop, acting, exact checkpoints.

    One timestep of `learn` is one gradient step of the policy. Learning never steps the robot;
    `env` tells the agent what the flow MDP looks like. A subclass names its config, makes networks
    and parts in `build`, and says in `update` what one gradient step is.

    Args:
        policy: "MlpPolicy" or a `FlowPolicy` class.
        env: A flow environment (`FlowMDPEnv`, a VecEnv of one, or a registered id, which is made
            with the settings `environment`).
        config: All hyper-parameters; None takes the defaults.
        dataset: Transitions to learn from; None takes the environment's.
        behavior: A flow policy of your own in the place of the cloned behaviour, see
            `flowmdp.behavior.as_behavior`: nothing is cloned, and a policy that would start as a
            copy of the clone learns what to add to it. Checkpoints name it, and do not hold it.
        policy_kwargs: SB3's way to say `net_arch`, or any other hyper-parameter.
        tensorboard_log: Folder for TensorBoard files.
        verbose: 1 prints the log to the terminal.
        seed: Of the networks, the batches and the noise; None draws one, which `agent.seed` and
            checkpoints keep. No global generator is touched.
        device: "auto", "cpu" or "cuda".
        **hyperparameters: Of the config, by name.

    Raises:
        ConfigurationError: If an argument is unknown or out of range, or `env` is no flow
            environment.
        DatasetError: If the dataset does not fit the environment.
    """

    config_class: ClassVar[type[Any]] = AgentConfig
    name: ClassVar[str]
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": FlowPolicy}
    policy: FlowPolicy
    seed: int
    robot: RobotInterface
    """The robot's own spaces, in which `outer_policy` acts."""
    critic: Critic
    """Set by the algorithms that have one."""
    default_steps: ClassVar[int] = 20_000
    """Gradient steps of a usual run [ours, at 256x3 on a CPU]."""
    only_flow_steps: ClassVar[int | None] = None
    """The flow steps that the algorithm needs; None where any number will do."""
    acts_with: ClassVar[tuple[str, ...]] = ("policy",)
    """The registered modules that decide an action: what `agent.policy.save` writes."""
    acts_at_mean: ClassVar[bool] = False
    """Whether its paper evaluates it without noise (x_0 = 0) instead of with sampled noise."""
    shows_behavior: ClassVar[bool] = False
    """Whether a run plays the cloned behaviour too, to show what the policy adds."""
    environment: ClassVar[dict[str, Any]] = {}
    """Settings of the flow environment that belong to the default hyper-parameters."""
    paper: ClassVar[dict[str, Any]] = {}
    """Hyper-parameters that make it the paper's own, where defaults and `environment` are ours."""

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        """Enter the algorithm in `ALGORITHMS`, and show its hyper-parameters to help()."""
        super().__init_subclass__(**kwargs)
        cls.name = name or cls.__name__
        if name is not None:
            ALGORITHMS[name] = cls
        own = inspect.signature(FlowAlgorithm.__init__).parameters.values()
        keyword, first = inspect.Parameter.KEYWORD_ONLY, ("policy", "env", "config")
        hints, texts = get_type_hints(cls.config_class), documented(cls.config_class)
        named = [
            inspect.Parameter(
                field, keyword, default=getattr(cls.config_class, field), annotation=hints[field]
            )
            for field in texts
        ]
        others = [one for one in own if one.kind is keyword and not one.name.startswith("_")]
        cls.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*(one for one in own if one.name in first), *named, *others]
        )
        lines = [
            textwrap.fill(f"{field}: {text}", 96, initial_indent=" " * 4, subsequent_indent=" " * 8)
            for field, text in texts.items()
        ]
        described = inspect.cleandoc(cls.__doc__ or "")
        cls.__doc__ = "\n".join([described, "", "Hyper-parameters:", *lines, ""])

    def __init__(
        self,
        policy: str | type[FlowPolicy],
        env: Any,
        config: Config | None = None,
        *,
        dataset: TransitionDataset | None = None,
        behavior: Any = None,
        policy_kwargs: dict[str, Any] | None = None,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        **hyperparameters: Any,
    ) -> None:
        if not isinstance(config, self.config_class | None):
            raise ConfigurationError(
                f"config is {shown(config)}: pass a {self.config_class.__name__}, or name "
                "hyper-parameters, as in learning_rate=1e-3"
            )
        check_kinds(
            dataset=dataset,
            policy_kwargs=policy_kwargs,
            tensorboard_log=tensorboard_log,
            verbose="None" if verbose is None else verbose,
        )
        named = {**(policy_kwargs or {}), **hyperparameters}
        self.config: Config = self.config_class.of(named, config)
        check_device(device)
        self.own_behavior = None if behavior is None else as_behavior(behavior)
        if behavior is not None and "behavior_steps" not in self.config_class.names():
            raise ConfigurationError(
                f"{type(self).__name__} has no behaviour flow to replace: leave behavior out"
            )
        if isinstance(env, str):
            env = gym.make(env, **(self._settings() if "FlowMDP-" in env else {}))
        if env is not None or _init_setup_model:
            env, self.spec = self._checked(env)
        chosen = self.policy_aliases.get(policy) if isinstance(policy, str) else policy
        if not (isinstance(chosen, type) and issubclass(chosen, FlowPolicy)):
            names = ", ".join(self.policy_aliases)
            raise ConfigurationError(
                f"policy is {shown(policy)}: take {names}, or a FlowPolicy class"
            )
        super().__init__(
            policy,
            env,
            getattr(self.config, "learning_rate", 0.0),
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=concrete(seed),
            support_multi_env=True,
            supported_action_spaces=(spaces.Box,),
        )
        self.precision = choose_precision(self.config.precision, self.device)
        self._given = self._dataset = dataset
        if self.env is not None:
            self.robot = _robot(self.env, self.spec)
        if _init_setup_model:
            self._setup_model()

    def _settings(self) -> dict[str, Any]:
        """Of an environment that is made from its id."""
        own = self.own_behavior and self.own_behavior.flow_steps
        steps = self.only_flow_steps or own
        return {**self.environment, **({"flow_steps": steps} if steps else {})}

    def _checked(self, env: Any) -> tuple[VecEnv, FlowSpec]:
        """The environment as a VecEnv, and its specification."""
        check_kind(env)
        env = self._wrap_env(env)
        return env, check_environment(env)

    def _setup_model(self) -> None:
        """Make generators, networks and optimisers."""
        if self.only_flow_steps not in (None, self.spec.flow_steps):
            raise ConfigurationError(
                f"{type(self).__name__} acts in flow_steps={self.only_flow_steps}, not "
                f"{self.spec.flow_steps}: make the environment with flow_steps="
                f"{self.only_flow_steps} (--flow-steps {self.only_flow_steps})"
            )
        if self.own_behavior is not None:
            self.own_behavior.check(self.spec.observation_dim, self.spec.action_dim)
            if self.only_flow_steps is None:
                self.own_behavior.check_steps(self.spec.flow_steps)
        self.generator = torch.Generator(self.device)
        self.act_generator = torch.Generator(self.device)
        self._graphs: CudaGraphs | None = None
        self._data: DeviceDataset | None = None
        self._reward_scale: float | None = None
        self.parts: tuple[Part, ...] = ()
        self.prepared = 0
        self.means = Means()
        self.saved = checkpoint.Registry()
        self.saved.generators |= {"learn": self.generator, "act": self.act_generator}
        for name in ("num_timesteps", "_n_updates", "prepared"):
            self.saved.count(name, self, name)
        with seeded(self.seed, self.device), within_memory():
            self.policy = self.policy_class(  # type: ignore[assignment]
                self.observation_space,
                self.action_space,
                lambda _: 0.0,  # the optimisers are the algorithm's
                spec=self.spec,
                field=self.make_field(),
            ).to(self.device)
            self.saved.modules["policy"] = self.policy
            self.build()
        self.policy.origin = {
            "algorithm": self.name,
            "config": dataclasses.asdict(self.config),
            "behavior": self._behavior_record(),
        }
        self.policy.borrowed = {
            name: self.saved.modules[name]
            for name in self.acts_with
            if name != "policy" and name in self.saved.modules
        }
        self.set_random_seed(self.seed)

    def _behavior_record(self) -> dict[str, Any] | None:
        """What a checkpoint keeps of a behaviour of the user's own."""
        if self.own_behavior is None:
            return None
        widths = self.spec.observation_dim, self.spec.action_dim
        return {"name": self.own_behavior.name, "probe": self.own_behavior.probe(*widths)}

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed batches, noise, the action space and the environment's next reset.

        SB3 seeds Python's, NumPy's and torch's global generators too; they stay as they are here.

        Args:
            seed: In [0, 2**32); None changes nothing.
        """
        check_seed(seed)
        if seed is None:
            return
        for name, generator in self.saved.generators.items():
            generator.manual_seed(int(seed) + (name == "act"))
        self.action_space.seed(int(seed))
        if self.env is not None:
            self.env.seed(int(seed))

    # -- what an algorithm says -------------------------------------------------------------

    def build(self) -> None:
        """Make parts, networks and optimisers, and register them in `saved`."""

    def make_field(self) -> nn.Module:
        """The policy's network."""
        return self.velocity_field()

    def prepare(self) -> None:
        """What happens once, between pre-training and the policy's first step."""

    def update(self) -> Info:
        """One gradient step; returns scalars to log."""
        raise TypeError("FlowAlgorithm is abstract: use FlowBC, DFDir, DFDiv or a baseline")

    def phase(self) -> Hashable:
        """What the next update does that others do not, where they are not all alike."""
        return None

    def diagnostics(self) -> dict[str, float]:
        """Scalars that are computed only when the log is written."""
        return {}

    def behavior_field(self) -> nn.Module:
        """The cloned behaviour u_v.

        Raises:
            ConfigurationError: If the algorithm clones none.
        """
        raise ConfigurationError(f"{type(self).__name__} has no behaviour flow")

    # -- what it says it with ---------------------------------------------------------------

    @property
    def dataset(self) -> TransitionDataset:
        """The transitions the agent learns from.

        Raises:
            ConfigurationError: If neither the agent nor its environment has any.
        """
        if self._dataset is None:
            if self.env is None:
                raise ConfigurationError("no data to learn from: load the agent with env=")
            try:
                (self._dataset,) = self.env.get_attr("dataset", indices=[0])
            except (EOFError, ConnectionError) as error:
                raise ConfigurationError(
                    "the environment's process ended when it was asked for its dataset (above): "
                    "pass dataset= to the agent"
                ) from error
        return self._dataset

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Learn from, and play, another flow environment of the same specification.

        The agent takes its dataset, unless it was itself given one. What has been fitted stays:
        before the first update the normaliser and the rewards' scale are taken from the new data,
        later both stay what the networks know.

        Args:
            env: The flow environment; a VecEnv may have another number of environments.
            force_reset: For SB3's signature only; learning takes no step of `env`.

        Raises:
            ConfigurationError: If it is no flow environment, or of another specification.
        """
        env, spec = self._checked(env)
        if difference := spec_difference(self.spec, spec):
            raise ConfigurationError(
                f"the agent is of another environment: {difference}; make it with the settings "
                "agent.spec names, or make a new agent"
            )
        robot = _robot(env, spec)
        if difference := self.robot.difference(robot):
            raise ConfigurationError(
                f"the robot has {difference} as the agent's has: wrap it as that was wrapped"
            )
        self.env, self.n_envs, self._last_obs = env, env.num_envs, None
        self.robot, self._vec_normalize_env = robot, unwrap_vec_normalize(env)
        self._dataset, self._data = self._given, None
        if not (self.pretrain_updates or self._n_updates or self.prepared):
            self.policy.normalizer.fitted.fill_(False)
            self._reward_scale = None
        for part in self.parts:
            part.forget_data()
        if self._graphs is not None:
            self._graphs.clear()

    @property
    def data(self) -> DeviceDataset:
        """The dataset on the device; placed there, and the normaliser fitted, at first use."""
        if self._data is None:
            check_fit(self.dataset, self.spec)
            normalizer = self.policy.normalizer
            if not normalizer.fitted:
                normalizer.fit(torch.as_tensor(self.dataset.observations, device=self.device))
            gamma = getattr(self.config, "gamma", None)
            self._data = DeviceDataset(
                self.dataset, self.spec, normalizer, gamma, self.device, self._reward_scale
            )
            self._reward_scale = self._data.reward_scale
        return self._data

    def sample(self) -> Batch:
        """A uniform batch of transitions, with replacement."""
        return self.data.sample(self.config.batch_size, self.generator)

    def noise_like(self, actions: Tensor) -> Tensor:
        """x_0 ~ N(0, I) from the agent's own generator, of the shape of `actions`."""
        return torch.randn(actions.shape, generator=self.generator, device=self.device)

    def starts_like(self, actions: Tensor) -> Tensor:
        """x_0 as the flow environment draws it, N(0, noise_scale^2 I), shaped as `actions`."""
        return self.spec.noise_scale * self.noise_like(actions)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Matrix products in the agent's precision."""
        return autocast(self.precision, self.device)

    def velocity_field(self) -> VelocityField:
        """A new u(s, x_t, t)."""
        widths, arch = (self.spec.context_dim, self.spec.action_dim), self.config.net_arch
        field = VelocityField(*widths, arch, include_time=self.spec.include_time)
        return field.to(self.device)

    def starting_field(self) -> nn.Module:
        """A new field for a policy that `start_from_behavior` makes its start."""
        field, own = self.velocity_field(), self.own_behavior
        return field if own is None else ResidualField(OwnField(self, own), field)

    def start_from_behavior(self, behavior: nn.Module) -> None:
        """Make the policy a copy of its behaviour flow; it is that already around an own one."""
        if self.own_behavior is None:
            for module in (self.policy.field, self.policy.ema):
                module.load_state_dict(behavior.state_dict())

    @property
    def sampling_steps(self) -> int:
        """Euler steps of a behaviour flow that is played as one step."""
        return (self.own_behavior and self.own_behavior.flow_steps) or SAMPLING_STEPS

    def descent(self, name: str, module: nn.Module, learning_rate: float) -> Descent:
        """An optimiser for networks beside the policy, registered under a name."""
        return self._registered(name, Descent(module, learning_rate, 10.0))

    def policy_descent(self) -> Descent:
        """The policy's optimiser, registered as "field"; it moves the average that acts."""
        config: Any = self.config
        policy = self.policy
        descent = Descent(policy.field, config.learning_rate, 1.0, policy.ema, config.ema_rate)
        return self._registered("field", descent)

    def _registered(self, name: str, descent: Descent) -> Descent:
        self.saved.optimizers[name] = descent.adam
        return descent

    def minimize(
        self,
        descent: Descent,
        loss: Loss,
        networks: Any,
        batch: Any,
        noise: Any = None,
        **weights: Any,
    ) -> Info:
        """One gradient step down a loss; what the loss logs, and the gradient's norm."""
        with self.autocast():
            value, info = loss(networks, batch, noise, **weights)
        return info | {"grad_norm": descent.step(value)}

    def graphed(self, update: Callable[[], Info], phase: Hashable) -> Info:
        """One `update`, on a GPU by a CUDA graph; see `CudaGraphs`.

        Args:
            update: Takes a gradient step, returns scalars to log.
            phase: Names it, and everything of the host on which it depends.
        """
        with matmul_precision(self.precision), within_memory():
            graphs = self.config.cuda_graphs and self.own_behavior is None
            if self.device.type != "cuda" or not graphs:
                return update()
            if self._graphs is None:
                self._graphs = CudaGraphs(self.saved.generators.values())
            return self._graphs(update, phase)

    # -- learning ---------------------------------------------------------------------------

    @property
    def pretrain_steps(self) -> int:
        """Updates that `pretrain` takes in all."""
        return sum(part.steps for part in self.parts)

    @property
    def pretrain_updates(self) -> int:
        """Updates that `pretrain` has taken."""
        return sum(part.updates for part in self.parts)

    def pretrain(
        self, progress_bar: bool = False, callback: Callable[[], bool] | None = None
    ) -> bool:
        """Fit the parts, one after another; go on where an interrupted call stopped.

        Args:
            progress_bar: Show one.
            callback: Called after every update; returning False stops.

        Returns:
            Whether everything is fitted.

        Raises:
            TrainingDivergedError: If a number is not finite.
        """
        check_kinds(callback=callback)
        if self.prepared:
            return True
        if self.pretrain_updates < self.pretrain_steps:
            len(self.data)  # load and check the data before the bar appears
            if not hasattr(self, "_logger"):
                self._logger = configure_logger(self.verbose, self.tensorboard_log, "pretrain")
            total, started = self.pretrain_steps, self.pretrain_updates
            with tqdm(
                total=total, initial=started, desc="pre-training", disable=not progress_bar
            ) as bar:
                for part in self.parts:
                    if not self._fit(part, bar, callback):
                        return False
        self._check_finite("pretrain", self.pretrain_updates, weights=True)
        for part in self.parts:
            part.finish()
        self.prepare()
        self.prepared = 1
        return True

    def _fit(self, part: Part, bar: Any, callback: Callable[[], bool] | None) -> bool:
        """The updates that a part lacks; False when the callback stopped them."""
        while part.updates < part.steps:
            part.refresh()
            info = self.graphed(part.update, (part.name, part.phase))
            part.updates += 1
            self._note(info, "pretrain", self.pretrain_updates)
            bar.update()
            if self.pretrain_updates % 1000 == 0 or part.updates == part.steps:
                self._check_finite("pretrain", self.pretrain_updates)
                self._dump("pretrain", self.pretrain_updates)
            if callback is not None and not callback():
                return False
        return True

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Take `total_timesteps` gradient steps on the dataset (pre-training first where needed).

        Args:
            total_timesteps: Gradient steps of the policy.
            callback: SB3 callbacks; one call per gradient step, none while `pretrain` runs before.
            log_interval: Gradient steps between two log lines; 0 logs nothing.
            tb_log_name: Name of the run for TensorBoard.
            reset_num_timesteps: False continues the count and learns `total_timesteps` more.
            progress_bar: Show a progress bar.

        Raises:
            ConfigurationError: If `total_timesteps` is no integer of at least 0, or without data.
            TrainingDivergedError: If a loss, a gradient or a weight is not finite. On a CPU it is
                noticed at once, on a GPU when a line is logged and at the end.
        """
        check_integers(0, total_timesteps=total_timesteps, log_interval=log_interval or 0)
        check_kinds(callback=callback, tb_log_name=tb_log_name)
        if total_timesteps > 0:
            len(self.data)  # load and check the data before anything is set up
        if self._graphs is not None:
            self._graphs.clear()  # the caller may have changed numbers that are recorded in them
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if reset_num_timesteps:
            self.means.clear()
        if self.num_timesteps < total_timesteps:
            self.pretrain(progress_bar)
        callback.on_training_start(locals(), globals())
        self._clock = time.perf_counter(), self.num_timesteps
        while self.num_timesteps < total_timesteps:
            info = self.graphed(self.update, ("policy", self.phase()))
            self.num_timesteps += 1
            self._n_updates += 1
            self._note(info, "train", self.num_timesteps)
            if log_interval and self.num_timesteps % log_interval == 0:
                self.dump_logs()
            callback.update_locals(locals())
            if not callback.on_step():
                break
        self._check_finite("train", self.num_timesteps, weights=True)
        if not log_interval:
            self.means.clear()
        callback.on_training_end()
        return self

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        """As SB3's, but that the environment is not reset: learning takes no step of it."""
        if reset_num_timesteps:
            self.num_timesteps = 0
        self._num_timesteps_at_start = self.num_timesteps
        self._total_timesteps = self.num_timesteps + total_timesteps
        self.start_time = time.time_ns()
        if not self._custom_logger:
            folder = None if self.tensorboard_log is None else str(self.tensorboard_log)
            self._logger = configure_logger(self.verbose, folder, tb_log_name, reset_num_timesteps)
        return self._total_timesteps, self._init_callback(callback, progress_bar)

    def _note(self, info: Info, prefix: str, step: int) -> None:
        """Count what an update logs; on a CPU, look at once whether it is finite."""
        self.means.add(info)
        if self.device.type == "cpu":
            self._check_finite(prefix, step)

    def _check_finite(self, prefix: str, step: int, weights: bool = False) -> None:
        """Raise TrainingDivergedError if a logged number, or a weight, is not finite."""
        name = self.means.not_finite()
        place = name and f"{prefix}/{name}"
        if weights and not place:
            place = checkpoint.first_not_finite(self.saved.weights())
        if place:
            self.means.clear()
            raise TrainingDivergedError(
                f"training diverged at step {step} ({place} is not finite): take a smaller "
                "learning rate; what was saved before stays"
            )

    def dump_logs(self) -> None:
        """Write a line of the log now: what the updates since the last line say."""
        if not hasattr(self, "_logger"):
            return  # before the first update there is nothing to say
        if self.means.count:
            self._check_finite("train", self.num_timesteps)
            start, first = self._clock
            rate = (self.num_timesteps - first) / (time.perf_counter() - start)
            self.logger.record("time/updates_per_second", rate)
            for key, value in self.diagnostics().items():
                self.logger.record(f"train/{key}", value)
        self._dump("train", self.num_timesteps)

    def _dump(self, prefix: str, step: int) -> None:
        """Write the means since the last line to the logger."""
        for key, mean in self.means.take().items():
            self.logger.record(f"{prefix}/{key}", mean)
        self.logger.dump(step)

    # -- acting -----------------------------------------------------------------------------

    def predict(
        self,
        observation: Any,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """The action for a flow observation, or for a robot's; their widths tell them apart.

        Args:
            observation: A flow observation, (flow_obs_dim,), gets a flow action, in [-1, 1]; a
                robot's, in its own space or flat, gets the whole chain's action, in the robot's own
                units. Both may be batched.
            state: See `OuterPolicy.predict`.
            episode_start: See `OuterPolicy.predict`.
            deterministic: For a robot's observations: start the chain at zero noise. Without effect
                on the flow environment, which draws x_0: the velocity field is deterministic.

        Returns:
            Actions, and the new state.
        """
        nested = isinstance(observation, Mapping | tuple)
        if nested or np.shape(observation)[-1:] != (self.spec.flow_observation_dim,):
            return self.outer_policy().predict(observation, state, episode_start, deterministic)
        return self.policy.predict(observation, state, episode_start, deterministic)

    @torch.no_grad()
    def chain(
        self,
        observations: Array,
        noise: Array | None = None,
        previous: Array | None = None,
        n_steps: int | None = None,
        solver: str = "euler",
        field: nn.Module | None = None,
    ) -> Array:
        """The points of whole chains, noise first, the action before clipping last.

        Args:
            observations: The robot's, shape (n, observation_dim).
            noise: x_0, shape (n, action_dim); None draws what the flow environment would.
            previous: Previous actions and flags, shape (n, action_dim + 1), where the flow state
                includes them; None means the start of an episode.
            n_steps: Flow steps, None for the environment's.
            solver: "euler", "midpoint" or "heun".
            field: The velocity field to follow, None for the acting one.

        Returns:
            Shape (n_steps + 1, n, action_dim), float32.

        Raises:
            ConfigurationError: If an agent of one step is asked for more, or for a solver.
        """
        only, spec, policy = self.only_flow_steps, self.spec, self.policy
        if only is not None and (n_steps not in (None, only) or solver != "euler"):
            raise ConfigurationError(
                f"{type(self).__name__} acts in {only} step: leave out flow steps and solver"
            )
        states, device = (
            rows("observations", observations, spec.observation_dim, self.device),
            self.device,
        )
        shape = len(states), spec.action_dim
        if noise is None:
            x_0 = torch.randn(shape, generator=self.act_generator, device=device)
            x_0 = spec.noise_scale * x_0
        else:
            x_0 = rows("noise", noise, spec.action_dim, device, len(states))
        context = policy.normalizer(states)
        if spec.include_previous_action:
            seen = np.zeros((len(x_0), shape[1] + 1)) if previous is None else previous
            flagged = rows("previous", seen, spec.action_dim + 1, device, len(states))
            context = torch.cat([context, flagged], 1)
        steps, asked = spec.flow_steps if n_steps is None else n_steps, list[Tensor]()
        acting = policy.ema if field is None else field

        def velocity(x_t: Tensor, t: float) -> Tensor:
            asked.append(x_t)
            result: Tensor = acting(context, x_t, t)
            return result

        x_1 = integrate(velocity, x_0, steps, solver)
        evaluations = len(asked) // steps  # a second-order solver asks twice per step
        points: Array = torch.stack([*asked[::evaluations], x_1]).cpu().numpy()
        return points

    def act(
        self,
        observations: Array,
        n_steps: int | None = None,
        solver: str = "euler",
        noise: Array | None = None,
        previous: Array | None = None,
        field: nn.Module | None = None,
        best_of: int = 1,
    ) -> Array:
        """The robot's actions by whole chains, shape (n, action_dim), in [-1, 1].

        Arguments and errors are those of `chain`, and `best_of`, at least 1: so many chains for
        every observation, of whose actions the critic's favourite is taken; noise then has n *
        best_of rows.
        """
        check_integers(1, best_of=best_of)
        if best_of > 1:
            observations = np.repeat(observations, best_of, axis=0)
            previous = None if previous is None else np.repeat(previous, best_of, axis=0)
        points = self.chain(observations, noise, previous, n_steps, solver, field)
        actions: Array = points[-1].clip(-1, 1)
        if best_of == 1:
            return actions
        values = self.q_values(observations, actions).reshape(-1, best_of)
        chains = actions.reshape(-1, best_of, self.spec.action_dim)
        best: Array = chains[np.arange(len(values)), values.argmax(1)]
        return best

    @torch.no_grad()
    def q_values(self, observations: Array, actions: Array) -> Array:
        """The critic's Q(s, a) in scaled reward units, shape (n,); rows are state-action pairs.

        Raises:
            ConfigurationError: If the algorithm has no critic.
        """
        if not hasattr(self, "critic"):
            raise ConfigurationError(
                f"{type(self).__name__} has no critic to choose by: leave best_of out"
            )
        spec, device = self.spec, self.device
        states = rows("observations", observations, spec.observation_dim, device)
        chosen = rows("actions", actions, spec.action_dim, device, len(states))
        values: Array = self.critic.values(self.policy.normalizer(states), chosen).cpu().numpy()
        return values

    def set_noise_scale(self, noise_scale: float) -> None:
        """Act from noise of another standard deviation than the one trained with; 0 for none.

        Raises:
            ConfigurationError: If it is negative or not finite.
        """
        self.spec = self.policy.spec = dataclasses.replace(self.spec, noise_scale=noise_scale)

    def outer_policy(self, **options: Any) -> OuterPolicy:
        """The agent as a policy for the bare robot; see `OuterPolicy` for the options."""
        return OuterPolicy(self, self.policy.ema, **options)

    def behavior_policy(self, **options: Any) -> OuterPolicy:
        """The cloned behaviour as a policy for the bare robot.

        Raises:
            ConfigurationError: If the algorithm clones none.
        """
        return OuterPolicy(self, self.behavior_field(), **options)

    # -- checkpoints ------------------------------------------------------------------------

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
        checkpoint.write(path, manifest, self.saved.tensors())

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
        agent = cls(
            "MlpPolicy",
            env,
            cls.config_class.of(hyperparameters, config),
            dataset=dataset,
            behavior=behavior,
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
        self.saved.restore(tensors, manifest["counters"])

    def _take_spec(self, manifest: dict[str, Any]) -> None:
        """Take the file's specification, which must be that of the environment if there is one."""
        spec = FlowSpec(**manifest["spec"])
        widths = spec.observation_dim, spec.action_dim
        check_recorded(manifest.get("behavior"), self.own_behavior, *widths)
        robot = RobotInterface.plain(*widths)
        if "robot" in manifest:
            robot = RobotInterface.from_json(manifest["robot"])
            if (robot.observation_dim, robot.action_dim) != widths:
                raise CheckpointError(
                    f"its robot has observations and actions of width {robot.observation_dim} and "
                    f"{robot.action_dim}, its specification of {widths}: {checkpoint.CURE}"
                )
        if self.env is None:
            self.spec, self.n_envs, self.robot = spec, 1, robot
            self.observation_space = spec.space()
            self.action_space = spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        elif difference := spec_difference(spec, self.spec):
            raise CheckpointError(
                f"the checkpoint is of another environment: {difference}; make it with the "
                "settings load_agent(FILE).spec names, or train a new agent on this one"
            )
        elif difference := robot.difference(self.robot):
            raise CheckpointError(
                f"the environment's robot has {difference} as the checkpoint has: wrap it as it "
                "was wrapped for training"
            )


def _robot(env: VecEnv, spec: FlowSpec) -> RobotInterface:
    """The robot's spaces; those of `spec` for a flow environment that does not tell."""
    if env.has_attr("robot"):
        robot: RobotInterface = env.get_attr("robot", [0])[0]
        return robot
    return RobotInterface.plain(spec.observation_dim, spec.action_dim)


def load_agent(path: checkpoint.Target | checkpoint.Checkpoint, **kwargs: Any) -> Any:
    """Load a checkpoint with the class that saved it; arguments as in `FlowAlgorithm.load`."""
    content = path if isinstance(path, checkpoint.Checkpoint) else checkpoint.read(path)
    return _class_of(content).load(content, **kwargs)


def _class_of(content: checkpoint.Checkpoint) -> type[FlowAlgorithm[Any]]:
    """The algorithm that wrote a file."""
    name, stack = content.manifest.get("algorithm"), FlowAlgorithm.__subclasses__()
    while stack:
        cls = stack.pop()
        if cls.name == name:
            return cls
        stack += cls.__subclasses__()
    raise CheckpointError(
        f"{content.name} holds an agent of the unknown class {name!r}: import the module that "
        "defines it, or name a file that agent.save wrote"
    )


def _check_size(config: AgentConfig, content: checkpoint.Checkpoint) -> None:
    """See `checkpoint.check_size`."""
    spec = FlowSpec(**content.manifest["spec"])
    widths = (spec.flow_observation_dim, *config.net_arch, spec.action_dim)
    checkpoint.check_size(widths, content.tensors)


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
        for name in cls.acts_with:
            checkpoint.restore_module(name, agent.saved.modules[name], content.tensors)
    return agent.policy


FlowPolicy.rebuild = staticmethod(_load_policy)
