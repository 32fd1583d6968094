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
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger, get_system_info
from torch import Tensor, nn
from tqdm.auto import tqdm
from typing_extensions import TypeVar

from flowmdp.agents.core import checkpoint
from flowmdp.agents.core.acting import OuterPolicy, State
from flowmdp.agents.core.batch import Batch, DeviceDataset, check_fit
from flowmdp.agents.core.config import AgentConfig, documented
from flowmdp.agents.core.critics import Critic
from flowmdp.agents.core.graphs import CudaGraphs
from flowmdp.agents.core.networks import Descent, Info, VelocityField
from flowmdp.agents.core.parts import Part
from flowmdp.agents.core.policy import FlowPolicy
from flowmdp.agents.core.precision import autocast, choose_precision, matmul_precision
from flowmdp.arguments import check_integers
from flowmdp.errors import CheckpointError, ConfigurationError
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
        policy_kwargs: SB3's way to say `net_arch`.
        tensorboard_log: Folder for TensorBoard files.
        verbose: 1 prints the log to the terminal.
        seed: Of the networks, the batches and the noise.
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
    robot: RobotInterface
    """The robot's own spaces, in which `outer_policy` acts."""
    critic: Critic
    """Set by the algorithms that have one."""
    default_steps: ClassVar[int] = 20_000
    """Gradient steps of a usual run [ours, at 256x3 on a CPU]."""
    only_flow_steps: ClassVar[int | None] = None
    """The flow steps that the algorithm needs; None where any number will do."""
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
                f"config is {config!r}: pass a {self.config_class.__name__}, or name "
                "hyper-parameters, as in learning_rate=1e-3"
            )
        named = {**(policy_kwargs or {}), **hyperparameters}
        self.config: Config = self.config_class.of(named, config)
        check_seed(seed)
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            raise ConfigurationError(
                f"device is {device!r}, but torch sees no GPU: take auto or cpu"
            )
        if isinstance(env, str):
            env = gym.make(env, **(self._settings() if "FlowMDP-" in env else {}))
        super().__init__(
            policy,
            env,
            getattr(self.config, "learning_rate", 0.0),
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            support_multi_env=True,
            supported_action_spaces=(spaces.Box,),
        )
        self.precision = choose_precision(self.config.precision, self.device)
        self._dataset = dataset
        if self.env is not None:
            self.spec = FlowSpec.of(self.env)
            self.robot = _robot(self.env, self.spec)
        if _init_setup_model:
            self._setup_model()

    @classmethod
    def _settings(cls) -> dict[str, Any]:
        """Of an environment that is made from its id."""
        steps = {} if cls.only_flow_steps is None else {"flow_steps": cls.only_flow_steps}
        return {**cls.environment, **steps}

    def _setup_model(self) -> None:
        """Make generators, networks and optimisers."""
        if self.only_flow_steps not in (None, self.spec.flow_steps):
            raise ConfigurationError(
                f"{type(self).__name__} acts in flow_steps={self.only_flow_steps}, not "
                f"{self.spec.flow_steps}: make the environment with flow_steps="
                f"{self.only_flow_steps} (--flow-steps {self.only_flow_steps})"
            )
        seed = self.seed or 0
        self.set_random_seed(seed)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.act_generator = torch.Generator(self.device).manual_seed(seed + 1)
        self._graphs: CudaGraphs | None = None
        self._data: DeviceDataset | None = None
        self.parts: tuple[Part, ...] = ()
        self.prepared = 0
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space,
            self.action_space,
            lambda _: 0.0,  # the optimisers are the algorithm's
            spec=self.spec,
            field=self.make_field(),
        ).to(self.device)
        self.saved = checkpoint.Registry()
        self.saved.modules["policy"] = self.policy
        self.saved.generators |= {"learn": self.generator, "act": self.act_generator}
        for name in ("num_timesteps", "_n_updates", "prepared"):
            self.saved.count(name, self, name)
        self.build()

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
            self._dataset = self.env.get_attr("dataset")[0]
        return self._dataset

    @property
    def data(self) -> DeviceDataset:
        """The dataset on the device; placed there, and the normaliser fitted, at first use."""
        if self._data is None:
            check_fit(self.dataset, self.spec)
            normalizer = self.policy.normalizer
            if not normalizer.fitted:
                normalizer.fit(torch.as_tensor(self.dataset.observations, device=self.device))
            gamma = getattr(self.config, "gamma", None)
            self._data = DeviceDataset(self.dataset, self.spec, normalizer, gamma, self.device)
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
        with matmul_precision(self.precision):
            if self.device.type != "cuda" or not self.config.cuda_graphs:
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
        """
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
        for part in self.parts:
            part.finish()
        self.prepare()
        self.prepared = 1
        return True

    def _fit(self, part: Part, bar: Any, callback: Callable[[], bool] | None) -> bool:
        """The updates that a part lacks; False when the callback stopped them."""
        infos: list[Info] = []
        while part.updates < part.steps:
            part.refresh()
            infos.append(self.graphed(part.update, (part.name, part.phase)))
            part.updates += 1
            bar.update()
            if self.pretrain_updates % 1000 == 0 or part.updates == part.steps:
                self._dump(infos, "pretrain", self.pretrain_updates)
                infos.clear()
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
        """
        check_integers(0, total_timesteps=total_timesteps)
        if total_timesteps > 0:
            len(self.data)  # load and check the data before anything is set up
        if self._graphs is not None:
            self._graphs.clear()  # the caller may have changed numbers that are recorded in them
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if self.num_timesteps < total_timesteps:
            self.pretrain(progress_bar)
        callback.on_training_start(locals(), globals())
        infos: list[Info] = []
        start, first = time.perf_counter(), self.num_timesteps
        while self.num_timesteps < total_timesteps:
            infos.append(self.graphed(self.update, ("policy", self.phase())))
            self.num_timesteps += 1
            self._n_updates += 1
            if not log_interval:
                infos.clear()
            elif self.num_timesteps % log_interval == 0:
                rate = (self.num_timesteps - first) / (time.perf_counter() - start)
                self.logger.record("time/updates_per_second", rate)
                for key, value in self.diagnostics().items():
                    self.logger.record(f"train/{key}", value)
                self._dump(infos, "train", self.num_timesteps)
                infos.clear()
            callback.update_locals(locals())
            if not callback.on_step():
                break
        callback.on_training_end()
        return self

    def _dump(self, infos: list[Info], prefix: str, step: int) -> None:
        """Write the mean of `infos` to the logger."""
        for key in infos[0]:
            mean = torch.stack([info[key] for info in infos]).mean()
            self.logger.record(f"{prefix}/{key}", mean.item())
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
        shape, device = (len(observations), spec.action_dim), self.device
        if noise is None:
            x_0 = torch.randn(shape, generator=self.act_generator, device=device)
            x_0 = spec.noise_scale * x_0
        else:
            x_0 = torch.as_tensor(noise, dtype=torch.float32, device=device)
        context = policy.normalizer(torch.as_tensor(observations, device=device).float())
        if spec.include_previous_action:
            seen = np.zeros((len(x_0), shape[1] + 1)) if previous is None else previous
            flagged = torch.as_tensor(seen, dtype=torch.float32, device=device)
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
        states = torch.as_tensor(observations, dtype=torch.float32, device=self.device)
        chosen = torch.as_tensor(actions, device=self.device)
        values: Array = self.critic.values(self.policy.normalizer(states), chosen).cpu().numpy()
        return values

    def set_noise_scale(self, noise_scale: float) -> None:
        """Act from noise of another standard deviation than the one trained with; 0 for none.

        Raises:
            ConfigurationError: If it is negative or not finite.
        """
        self.spec = dataclasses.replace(self.spec, noise_scale=noise_scale)

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
            for name, state in given.items():
                owners[name].load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            raise ConfigurationError(
                f"the parameters do not fit this agent ({str(error).splitlines()[-1].strip()}): "
                "take those of an agent with the same hyper-parameters"
            ) from error
        self.prepared = 1  # what was fitted before must not be fitted again
        for part in self.parts:
            part.updates = part.steps

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
        manifest = {
            "algorithm": self.name,
            "dataset": None if self._dataset is None else self._dataset.id,
            "spec": dataclasses.asdict(self.spec),
            "robot": self.robot.to_json(),
            "config": dataclasses.asdict(self.config),
            "seed": self.seed,
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
            custom_objects: For SB3's signature only; must be empty, nothing is unpickled.
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
        if custom_objects:
            raise ConfigurationError(
                "a checkpoint holds no objects to replace: leave custom_objects out and override "
                "hyper-parameters by name, as in load(path, learning_rate=1e-4)"
            )
        if print_system_info:
            get_system_info()
        content = path if isinstance(path, checkpoint.Checkpoint) else checkpoint.read(path)
        manifest = content.manifest
        if manifest.get("algorithm") != cls.name:
            raise CheckpointError(
                f"{content.name} holds a {manifest.get('algorithm')}, not a {cls.name}: "
                "load it with its own class or with load_agent"
            )
        with checkpoint.refusing_damage(content.name):
            config, stored_seed = cls.config_class.of(manifest["config"]), manifest["seed"]
            check_seed(stored_seed)
        agent = cls(
            "MlpPolicy",
            env,
            cls.config_class.of(hyperparameters, config),
            dataset=dataset,
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
        spec = FlowSpec(**manifest["spec"])
        if self.env is None:
            self.spec, self.n_envs = spec, 1
            plain = RobotInterface.plain(spec.observation_dim, spec.action_dim)
            self.robot = (
                RobotInterface.from_json(manifest["robot"]) if "robot" in manifest else plain
            )
            self.observation_space = spec.space()
            self.action_space = spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        elif self.spec != spec:
            ours, theirs = dataclasses.asdict(self.spec), dataclasses.asdict(spec)
            difference = ", ".join(
                f"{name} is {theirs[name]!r} there and {ours[name]!r} here"
                for name in ours
                if theirs[name] != ours[name]
            )
            raise CheckpointError(
                f"the checkpoint is of another environment: {difference}; make it with the "
                "settings load_agent(FILE).spec names, or train a new agent on this one"
            )
        self._setup_model()
        self.saved.restore(tensors, manifest["counters"])


def _robot(env: Any, spec: FlowSpec) -> RobotInterface:
    """The robot's spaces; those of `spec` for a flow environment that does not tell."""
    try:
        robot: RobotInterface = env.get_attr("robot", [0])[0]
    except AttributeError:
        robot = RobotInterface.plain(spec.observation_dim, spec.action_dim)
    return robot


def check_seed(seed: Any) -> None:
    """Raise ConfigurationError unless NumPy and torch take the seed, or it is None."""
    if seed is not None:
        check_integers(0, seed=seed)
        if seed >= 2**32:
            raise ConfigurationError(f"seed is {seed}: NumPy needs it to be below 2**32")


def load_agent(path: checkpoint.Target, **kwargs: Any) -> Any:
    """Load a checkpoint with the class that saved it; arguments as in `FlowAlgorithm.load`."""
    content = checkpoint.read(path)
    name, stack = content.manifest.get("algorithm"), FlowAlgorithm.__subclasses__()
    while stack:
        cls = stack.pop()
        if cls.name == name:
            return cls.load(content, **kwargs)
        stack += cls.__subclasses__()
    raise CheckpointError(
        f"{content.name} holds an agent of the unknown class {name!r}: import the module that "
        "defines it, or name a file that agent.save wrote"
    )
