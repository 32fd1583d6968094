"""What every agent shares: an SB3 algorithm that learns offline and plays the flow environment."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Generic, Self

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor, nn
from tqdm.auto import tqdm
from typing_extensions import TypeVar

from flowmdp.agents.core import checkpoint
from flowmdp.agents.core.batch import Batch, DeviceDataset, check_fit
from flowmdp.agents.core.config import AgentConfig, show_hyperparameters
from flowmdp.agents.core.graphs import CudaGraphs
from flowmdp.agents.core.inputs import (
    check_device,
    check_environment,
    check_kind,
    check_kinds,
    check_same,
    shown,
    within_memory,
)
from flowmdp.agents.core.log import Means
from flowmdp.agents.core.networks import Descent, Info, VelocityField
from flowmdp.agents.core.one_step import SAMPLING_STEPS
from flowmdp.agents.core.online import Online
from flowmdp.agents.core.own_behavior import OwnField, ResidualField
from flowmdp.agents.core.parts import Part
from flowmdp.agents.core.policy import FlowPolicy
from flowmdp.agents.core.precision import autocast, choose_precision, matmul_precision
from flowmdp.agents.core.randomness import check_seed, concrete, seeded
from flowmdp.agents.core.together import Steps, alone
from flowmdp.arguments import check_integers
from flowmdp.behavior import as_behavior
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.spec import FlowSettings, FlowSpec
from flowmdp.robot import RobotInterface
from flowmdp.transitions import TransitionDataset

Loss = Callable[..., tuple[Tensor, Info]]
"""loss(networks, batch, noise, **weights) -> (scalar to descend, what to log); draws nothing."""

Config = TypeVar("Config", bound=AgentConfig, default=Any)

ALGORITHMS: dict[str, type[FlowAlgorithm[Any]]] = {}
"""Name on the command line -> class; a class enters itself by `class DFDir(..., name="df-dir")`."""


class FlowAlgorithm(Online, Generic[Config]):
    """Base of the agents: data on the device, the learning loop, acting, exact checkpoints.

    One timestep is one gradient step of the policy. `learn` never steps the robot; `env` tells the
    agent what the flow MDP looks like; `learn_online` goes on with robots. A subclass names its
    config, makes networks and parts in `build`, and says in `update` what one gradient step is.

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

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": FlowPolicy}
    config: Config
    default_steps: ClassVar[int] = 20_000
    """Gradient steps of a usual run [ours, at 256x3 on a CPU]."""
    acts_at_mean: ClassVar[bool] = False
    """Whether its paper evaluates it without noise (x_0 = 0) instead of with sampled noise."""
    shows_behavior: ClassVar[bool] = False
    """Whether a run plays the cloned behaviour too, to show what the policy adds."""
    chooses_actions: ClassVar[bool] = True
    """Whether `best_of` is of actions, which the critic can choose among when acting, too."""
    environment: ClassVar[dict[str, Any]] = {}
    """Settings of the flow environment that belong to the default hyper-parameters."""
    paper: ClassVar[dict[str, Any]] = {}
    """Hyper-parameters that make it the paper's own, where defaults and `environment` are ours."""

    @classmethod
    def environment_of(cls, config: Config) -> dict[str, Any]:
        """`environment`, of these hyper-parameters."""
        return cls.environment

    @classmethod
    def check_flow(cls, config: Config, flow: FlowSettings | FlowSpec) -> None:
        """Raise ConfigurationError for a flow environment in which this config cannot learn."""

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        """Enter the algorithm in `ALGORITHMS`, and show its hyper-parameters to help()."""
        super().__init_subclass__(**kwargs)
        cls.name = name or cls.__name__
        if name is not None:
            ALGORITHMS[name] = cls
        show_hyperparameters(cls, FlowAlgorithm.__init__)

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
        self.config = self.config_class.of(named, config)
        check_device(device)
        self.own_behavior = None if behavior is None else as_behavior(behavior)
        if behavior is not None and "behavior_steps" not in self.config_class.names():
            raise ConfigurationError(
                f"{type(self).__name__} has no behaviour flow to replace: leave behavior out"
            )
        if isinstance(env, str):
            steps = self.only_flow_steps or (self.own_behavior and self.own_behavior.flow_steps)
            own = {**self.environment_of(self.config), **({"flow_steps": steps} if steps else {})}
            env = gym.make(env, **(own if "FlowMDP-" in env else {}))
        if env is not None or _init_setup_model:
            env, self.spec, self.robot = self._checked(env)
            self.check_flow(self.config, self.spec)
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
        if self.chooses_actions and (n := getattr(self.config, "best_of", 1)) > 1:
            self.acting = {"best_of": n}
        self._given = self._dataset = dataset
        if _init_setup_model:
            self._setup_model()

    def _checked(self, env: Any) -> tuple[VecEnv, FlowSpec, RobotInterface]:
        """The environment as a VecEnv, its specification, and the robot's spaces, if it tells."""
        check_kind(env)
        env = self._wrap_env(env)
        spec = check_environment(env)
        if env.has_attr("robot"):
            return env, spec, env.get_attr("robot", [0])[0]
        return env, spec, RobotInterface.plain(spec.observation_dim, spec.robot_action_dim)

    def _setup_model(self) -> None:
        """Make generators, networks and optimisers."""
        self.check_flow_steps(self.spec.flow_steps)
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
        self.setup_online()
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
        env, spec, robot = self._checked(env)
        check_same("agent", ConfigurationError, (self.spec, self.robot), (spec, robot))
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

    def sample(self, cloning: bool = False) -> Batch:
        """A uniform batch of transitions, with replacement; `cloning` reads no rewards."""
        return self.data.sample(self.config.batch_size, self.generator, cloning)

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
        field = self.velocity_field()
        return field if self.own_behavior is None else ResidualField(OwnField(self), field)

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

    @property
    def records(self) -> bool:
        """Whether updates become CUDA graphs."""
        on = self.config.cuda_graphs and self.own_behavior is None
        return bool(on and self.device.type == "cuda")

    def graphed(self, update: Callable[[], Info], phase: Hashable) -> Info:
        """One `update`, on a GPU by a CUDA graph; see `CudaGraphs`.

        Args:
            update: Takes a gradient step, returns scalars to log.
            phase: Names it, and everything of the host on which it depends.
        """
        with matmul_precision(self.precision), within_memory():
            if not self.records:
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
        return alone(self, self.pretraining(progress_bar, callback))

    def pretraining(
        self, progress_bar: bool = False, callback: Callable[[], bool] | None = None
    ) -> Steps[bool]:
        """`pretrain` step by step, for `together`."""
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
                    if not (yield from self._fit(part, bar, callback)):
                        return False
        self._check_finite("pretrain", self.pretrain_updates, weights=True)
        for part in self.parts:
            part.finish()
        self.prepare()
        self.prepared = 1
        return True

    def _fit(self, part: Part, bar: Any, callback: Callable[[], bool] | None) -> Steps[bool]:
        """The updates that a part lacks; False when the callback stopped them."""
        while part.updates < part.steps:
            part.refresh()
            info = yield part.update, (part.name, part.phase)
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
        steps = self.learning(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )
        return alone(self, steps)

    def learning(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Steps[Self]:
        """`learn` step by step, for `together`."""
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
            yield from self.pretraining(progress_bar)
        callback.on_training_start(locals(), globals())
        self._clock = time.perf_counter(), self.num_timesteps
        while self.num_timesteps < total_timesteps:
            info = yield self.update, ("policy", self.phase())
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
