"""The flow policy that the agents train and that plays the flow environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from flowmdp.agents.core import checkpoint
from flowmdp.agents.core.networks import Normalizer, frozen_copy
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.spec import FlowSpec


class FlowPolicy(BasePolicy):
    """A velocity field, its moving average, and the observation normaliser.

    Flow observations are [s, x_t, (t), (a_prev, flag)]; flow actions are velocities divided by
    `velocity_scale` and clipped to [-1, 1]. The moving average `ema` is what acts.

    Args:
        observation_space: Of the flow environment.
        action_space: Of the flow environment.
        lr_schedule: Unused; the optimisers belong to the algorithm.
        spec: The flow environment's specification.
        field: The velocity field, called as `VelocityField` is.

    Called as a module, it maps flow observations (batch, flow_obs_dim) to flow actions
    (batch, action_dim), both tensors on its device.
    """

    rebuild: ClassVar[Callable[[type[FlowPolicy], checkpoint.Target, Any], Any]]
    """Set by the module that knows the algorithms."""
    averages: ClassVar[bool] = True
    """Whether a moving average of the field acts, and not the field itself."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        spec: FlowSpec,
        field: nn.Module,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.spec = spec
        self.normalizer = Normalizer(spec.observation_dim)
        self.field = field
        if self.averages:
            self.ema = frozen_copy(field)
        self.origin: dict[str, Any] = {}
        """Algorithm and hyper-parameters, of which `load` makes the policy again."""
        self.borrowed: dict[str, nn.Module] = {}
        """Modules of the agent, by name, without which it cannot act."""

    @property
    def device(self) -> torch.device:
        """Where it computes; not every field has parameters, from which SB3 would tell."""
        return self.normalizer.mean.device

    @property
    def width(self) -> int:
        """Width of an observation."""
        return self.spec.flow_observation_dim

    def save(self, path: checkpoint.Target) -> None:
        """Write the policy alone, as JSON and safetensors; ".zip" is added without a suffix.

        Raises:
            OSError: If it cannot be written.
            ConfigurationError: If it belongs to no agent.
            TrainingDivergedError: If a weight is not finite.
        """
        if not self.origin:
            raise ConfigurationError("this policy is of no agent: make one, and save agent.policy")
        tensors = checkpoint.module_tensors("policy", self)
        for name, module in self.borrowed.items():
            tensors |= checkpoint.module_tensors(name, module)
        checkpoint.write(path, {**self.origin, "spec": dataclasses.asdict(self.spec)}, tensors)

    @classmethod
    def load(cls, path: checkpoint.Target, device: torch.device | str = "auto") -> Self:
        """The policy that `save` wrote, or that of an agent's checkpoint; runs no code from it.

        Raises:
            CheckpointError: If the file is missing, damaged, or of an unknown algorithm.
        """
        policy: Self = cls.rebuild(cls, path, device)
        return policy

    def forward(self, observation: Tensor, deterministic: bool = False) -> Tensor:
        """Flow observations (batch, flow_obs_dim) -> flow actions (batch, action_dim)."""
        return self._predict(observation, deterministic)

    def predict(
        self,
        observation: Any,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Flow actions for flow observations, shape (flow_obs_dim,) or (n, flow_obs_dim).

        The other arguments are there for SB3's signature; the answer does not depend on them.

        Raises:
            ConfigurationError: For observations of another shape, or not finite.
        """
        if isinstance(observation, Tensor):
            observation = observation.detach().cpu()
        try:
            array = np.asarray(observation, np.float32)
        except (TypeError, ValueError):
            raise ConfigurationError(
                f"the observation is a {type(observation).__name__}, no array of numbers: pass "
                "what step() and reset() give first"
            ) from None
        width = self.width
        if array.shape[-1:] != (width,) or array.ndim > 2:
            raise ConfigurationError(
                f"the observation has shape {array.shape}: this policy takes ({width},) or "
                f"(n, {width}) of its environment; the agent's predict or outer_policy() also "
                f"those of the robot, ({self.spec.observation_dim},) or "
                f"(n, {self.spec.observation_dim})"
            )
        if not np.isfinite(array).all():
            raise ConfigurationError("the observation holds NaN or infinity: look at the robot")
        return super().predict(array, state, episode_start, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Flow observations (batch, flow_obs_dim) -> flow actions (batch, action_dim)."""
        spec = self.spec
        assert isinstance(observation, Tensor)
        widths = [spec.observation_dim, spec.action_dim, int(spec.include_time)]
        state, x_t, t, rest = observation.split(
            [*widths, observation.shape[-1] - sum(widths)], dim=-1
        )
        context = torch.cat([self.normalizer(state), rest], dim=-1)
        velocity: Tensor = self.ema(context, x_t, t if spec.include_time else 0.0)
        return (velocity / spec.velocity_scale).clamp(-1, 1)
