"""What every agent shares: an SB3 algorithm that learns offline and plays the flow environment."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import Tensor, nn

from flowmdp.agents.core.acting import OuterPolicy, State
from flowmdp.agents.core.batch import Batch, DeviceDataset, check_fit
from flowmdp.agents.core.critics import Info
from flowmdp.agents.core.graphs import CudaGraphs
from flowmdp.agents.core.policy import FlowPolicy
from flowmdp.agents.core.precision import autocast, choose_precision, matmul_precision
from flowmdp.agents.core.saving import CheckpointedAlgorithm
from flowmdp.arguments import check_flags, check_integers, check_numbers
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.path import get_path
from flowmdp.mdp.spec import FlowSpec
from flowmdp.transitions import TransitionDataset

Array = NDArray[np.float32]


class FlowAlgorithm(CheckpointedAlgorithm):
    """Base of the agents: data on the device, the learning loop, acting, exact checkpoints.

    One timestep of `learn` is one gradient step of the policy. The outer environment is never
    stepped by learning; `env` tells the agent what the flow MDP looks like.

    Args:
        policy: "MlpPolicy" or a `FlowPolicy` class.
        env: A flow environment (`FlowMDPEnv`, a VecEnv of one, or a registered id, which is made
            with the settings `environment`).
        learning_rate: Adam's, of the policy.
        dataset: Transitions to learn from; None takes the environment's.
        batch_size: Transitions per gradient step.
        gamma: Discount per outer step.
        ema_rate: Weight of the new parameters in the moving average that acts.
        path: "linear" or "trigonometric", on which flows are matched to the data.
        precision: "float32", "bfloat16" (hidden layers' products in bfloat16, weights and output
            layers in float32), "tfloat32" (a GPU's TensorFloat-32 for the products of updates), or
            "auto": what is fastest on the hardware.
        compile: Compile the losses with `torch.compile`; the first steps take a minute longer.
        cuda_graphs: On a GPU, record updates as CUDA graphs and replay them, which is several times
            as fast. A subclass whose update asks something of the host needs False.
        policy_kwargs: `net_arch`: hidden widths, [256, 256, 256] if not given.
        tensorboard_log: Folder for TensorBoard files.
        verbose: 1 prints the log to the terminal.
        seed: Of the networks, the batches and the noise.
        device: "auto", "cpu" or "cuda".

    Raises:
        ConfigurationError: If an argument is out of range, or `env` is no flow environment.
        DatasetError: If the dataset does not fit the environment.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": FlowPolicy}
    policy: FlowPolicy
    learning_rate: float
    default_steps: ClassVar[int] = 20_000
    """Gradient steps of a usual run [ours, at 256x3 on a CPU]."""
    only_flow_steps: ClassVar[int | None] = None
    """The flow steps that the algorithm needs; None where any number will do."""
    acts_at_mean: ClassVar[bool] = False
    """Whether its paper evaluates it without noise (x_0 = 0) instead of with sampled noise."""
    environment: ClassVar[dict[str, Any]] = {}
    """Settings of the flow environment that belong to the default arguments."""
    paper: ClassVar[dict[str, Any]] = {}
    """Arguments that make it the paper's own, where defaults and `environment` are ours."""

    def __init__(
        self,
        policy: str | type[FlowPolicy],
        env: Any,
        learning_rate: float,
        *,
        dataset: TransitionDataset | None = None,
        batch_size: int = 256,
        gamma: float = 0.99,
        ema_rate: float = 0.005,
        path: str = "linear",
        precision: str = "auto",
        compile: bool = False,
        cuda_graphs: bool = True,
        policy_kwargs: dict[str, Any] | None = None,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        if isinstance(env, str):
            env = gym.make(env, **(self.environment if "FlowMDP-" in env else {}))
        super().__init__(
            policy,
            env,
            learning_rate,
            policy_kwargs=policy_kwargs,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            support_multi_env=True,
            supported_action_spaces=(spaces.Box,),
        )
        check_numbers("[0, inf)", learning_rate=learning_rate)
        check_integers(1, batch_size=batch_size)
        check_numbers("[0, 1)", gamma=gamma)
        check_numbers("[0, 1]", ema_rate=ema_rate)
        check_flags(compile=compile, cuda_graphs=cuda_graphs)
        if seed is not None:
            check_integers(0, seed=seed)
            if seed >= 2**32:
                raise ConfigurationError(f"seed is {seed}: NumPy needs it to be below 2**32")
        check_widths(self.policy_kwargs.get("net_arch", []))
        get_path(path)  # known, or ConfigurationError
        self.batch_size, self.gamma, self.ema_rate = batch_size, gamma, ema_rate
        self.path = path
        self.precision = choose_precision(precision, self.device)
        self.compile, self.cuda_graphs = compile, cuda_graphs
        self._dataset = dataset
        if self.env is not None:
            self.spec = FlowSpec.of(self.env)
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        """Make generators, networks and optimisers; subclasses add theirs."""
        if self.only_flow_steps not in (None, self.spec.flow_steps):
            raise ConfigurationError(
                f"{type(self).__name__} acts in flow_steps={self.only_flow_steps}, not "
                f"{self.spec.flow_steps}: make the environment with that number"
            )
        seed = 0 if self.seed is None else self.seed
        self.set_random_seed(seed)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.act_generator = torch.Generator(self.device).manual_seed(seed + 1)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._graphs: CudaGraphs | None = None
        self._data: DeviceDataset | None = None
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space,
            self.action_space,
            lambda _: self.learning_rate,
            spec=self.spec,
            **self.policy_kwargs,
        ).to(self.device)

    # -- data, noise, acceleration ----------------------------------------------------------

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
            self._data = DeviceDataset(self.dataset, self.spec, normalizer, self.gamma, self.device)
        return self._data

    @property
    def net_arch(self) -> list[int]:
        """Hidden widths of every network."""
        return list(self.policy_kwargs.get("net_arch", [256, 256, 256]))

    def sample(self) -> Batch:
        """A uniform batch of transitions, with replacement."""
        return self.data.sample(self.batch_size, self.generator)

    def noise_like(self, actions: Tensor) -> Tensor:
        """x_0 ~ N(0, I) from the agent's own generator, of the shape of `actions`."""
        return torch.randn(actions.shape, generator=self.generator, device=self.device)

    def starts_like(self, actions: Tensor) -> Tensor:
        """x_0 as the flow environment draws it, N(0, noise_scale^2 I), shaped as `actions`."""
        return self.spec.noise_scale * self.noise_like(actions)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Matrix products in the agent's precision."""
        return autocast(self.precision, self.device)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, through `torch.compile` when the agent was made with compile=True."""
        if not self.compile:
            return function
        if function not in self._compiled:
            self._compiled[function] = torch.compile(function, dynamic=False)
        return self._compiled[function]

    def graphed(self, update: Callable[[], Info], phase: Hashable) -> Info:
        """One `update`, on a GPU by a CUDA graph; see `CudaGraphs`.

        Args:
            update: Takes a gradient step, returns scalars to log.
            phase: Names it, and everything of the host on which it depends.
        """
        with matmul_precision(self.precision):
            if self.device.type != "cuda" or not self.cuda_graphs:
                return update()
            if self._graphs is None:
                self._graphs = CudaGraphs(self._generators().values())
            return self._graphs(update, phase)

    # -- learning ---------------------------------------------------------------------------

    def _update(self) -> Info:
        """One gradient step; returns scalars to log."""
        raise TypeError("FlowAlgorithm is abstract: use FlowBC, DFDir, DFDiv or a baseline")

    def _phase(self) -> Hashable:
        """What the next update does that others do not, where they are not all alike."""
        return None

    def _diagnostics(self) -> dict[str, float]:
        """Scalars that are computed only when the log is written."""
        return {}

    def pretrain(
        self, progress_bar: bool = False, callback: Callable[[], bool] | None = None
    ) -> bool:
        """Fit what must stand before the policy learns; FlowBC needs nothing.

        Args:
            progress_bar: Show one.
            callback: Called after every step; returning False stops.

        Returns:
            Whether everything is fitted.
        """
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
            ConfigurationError: If `total_timesteps` is negative or there is no data.
        """
        if total_timesteps < 0:
            raise ConfigurationError(
                f"total_timesteps is {total_timesteps}: it must not be negative"
            )
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
            infos.append(self.graphed(self._update, ("policy", self._phase())))
            self.num_timesteps += 1
            self._n_updates += 1
            if log_interval and self.num_timesteps % log_interval == 0:
                rate = (self.num_timesteps - first) / (time.perf_counter() - start)
                self.logger.record("time/updates_per_second", rate)
                self._dump(infos, "train", self.num_timesteps)
                infos.clear()
            callback.update_locals(locals())
            if not callback.on_step():
                break
        callback.on_training_end()
        return self

    def _dump(self, infos: list[Info], prefix: str, step: int) -> None:
        """Write the mean of `infos`, and the diagnostics, to the logger."""
        for key in infos[0]:
            mean = torch.stack([info[key] for info in infos]).mean()
            self.logger.record(f"{prefix}/{key}", mean.item())
        if prefix == "train":
            for key, value in self._diagnostics().items():
                self.logger.record(f"{prefix}/{key}", value)
        self.logger.dump(step)

    # -- acting -----------------------------------------------------------------------------

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """The action for a flow observation, or for an outer one; their widths tell them apart.

        Args:
            observation: A flow observation, (flow_obs_dim,), gets a flow action; an outer
                observation, (observation_dim,), gets the whole chain's action. Both may be batched.
            state: See `OuterPolicy.predict`.
            episode_start: See `OuterPolicy.predict`.
            deterministic: For outer observations: start the chain at zero noise. Without effect on
                the flow environment, which draws x_0: the velocity field is deterministic.

        Returns:
            Actions in [-1, 1], and the new state.
        """
        if np.asarray(observation).shape[-1:] == (self.spec.observation_dim,):
            return self.outer_policy().predict(observation, state, episode_start, deterministic)
        return self.policy.predict(observation, state, episode_start, deterministic)

    def chain(
        self,
        observations: Array,
        noise: Array | None = None,
        previous: Array | None = None,
        n_steps: int | None = None,
        solver: str = "euler",
        field: nn.Module | None = None,
    ) -> Array:
        """Points of whole chains, shape (n_steps + 1, n, action_dim); see `FlowPolicy.chain`.

        Args:
            observations: Outer observations, shape (n, observation_dim).
            noise: x_0, shape (n, action_dim); None draws what the flow environment would.
            previous: Previous actions and flags, where the flow state includes them.
            n_steps: Flow steps, None for the environment's.
            solver: "euler", "midpoint" or "heun".
            field: The velocity field, None for the acting one.

        Raises:
            ConfigurationError: If an agent of one step is asked for more, or for a solver.
        """
        only = self.only_flow_steps
        if only is not None and (n_steps not in (None, only) or solver != "euler"):
            raise ConfigurationError(
                f"{type(self).__name__} acts in {only} step: leave out flow steps and solver"
            )
        if noise is None:
            shape = (len(observations), self.spec.action_dim)
            x_0 = torch.randn(shape, generator=self.act_generator, device=self.device)
            x_0 = self.spec.noise_scale * x_0
        else:
            x_0 = torch.as_tensor(noise, dtype=torch.float32, device=self.device)
        field = self.policy.ema if field is None else field
        return self.policy.chain(field, observations, x_0, previous, n_steps, solver)

    def act(
        self,
        observations: Array,
        n_steps: int | None = None,
        solver: str = "euler",
        noise: Array | None = None,
        previous: Array | None = None,
        field: nn.Module | None = None,
    ) -> Array:
        """Outer actions in [-1, 1], shape (n, action_dim), by whole chains; see `chain`."""
        actions: Array = self.chain(observations, noise, previous, n_steps, solver, field)[-1]
        return actions.clip(-1, 1)

    def set_noise_scale(self, noise_scale: float) -> None:
        """Act from noise of another standard deviation than the one trained with; 0 for none.

        Raises:
            ConfigurationError: If it is negative or not finite.
        """
        self.spec = dataclasses.replace(self.spec, noise_scale=noise_scale)

    def outer_policy(self, **options: Any) -> OuterPolicy:
        """The agent as a policy for the bare outer environment.

        Args:
            **options: See `OuterPolicy`.
        """
        return OuterPolicy(self, self.policy.ema, **options)

    def behavior_policy(self, **options: Any) -> OuterPolicy:
        """The cloned behaviour as a policy for the bare outer environment.

        Args:
            **options: See `OuterPolicy`.

        Raises:
            ConfigurationError: If the algorithm clones none.
        """
        raise ConfigurationError(f"{type(self).__name__} has no behaviour flow")

    # -- what a checkpoint holds --------------------------------------------------------------

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able."""
        return {
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "gamma": self.gamma,
            "ema_rate": self.ema_rate,
            "path": self.path,
            "precision": self.precision,
            "compile": self.compile,
            "cuda_graphs": self.cuda_graphs,
            "policy_kwargs": self.policy_kwargs,
            "seed": self.seed,
        }

    def _modules(self) -> dict[str, nn.Module]:
        """Everything with weights that a checkpoint holds."""
        return {"policy": self.policy}


def check_widths(net_arch: Any) -> None:
    """Raise ConfigurationError unless these are widths of hidden layers."""
    if not isinstance(net_arch, list | tuple):
        raise ConfigurationError(f"net_arch is {net_arch!r}: list the widths, as in [256, 256]")
    for width in net_arch:
        check_integers(1, **{"a width in net_arch": width})
