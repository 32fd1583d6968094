"""The flow policy that the agents train and that plays the flow environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from flowmdp.agents.networks import Normalizer, VelocityField, frozen_copy
from flowmdp.arguments import check_flags, check_integers, check_numbers
from flowmdp.errors import ConfigurationError
from flowmdp.solver import integrate


@dataclass(frozen=True)
class FlowSpec:
    """What an agent must know of a flow environment; stored in every checkpoint.

    Attributes:
        observation_dim: Width of the outer observation s.
        action_dim: Width of an action.
        flow_steps: Flow steps per action.
        velocity_scale: Velocity of flow action 1.
        noise_scale: Standard deviation of the noise x_0 from which chains start.
        include_time: Whether the flow observation holds t.
        include_previous_action: Whether it holds the previous action and its flag.
        task: Name of the task, None for an environment of the user's own.
        source: Data source of the task.

    Raises:
        ConfigurationError: If one of them is of another type or out of range.
    """

    observation_dim: int
    action_dim: int
    flow_steps: int
    velocity_scale: float
    include_time: bool = True
    include_previous_action: bool = False
    noise_scale: float = 1.0
    task: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        """Check what a checkpoint may have brought."""
        check_integers(
            1,
            observation_dim=self.observation_dim,
            action_dim=self.action_dim,
            flow_steps=self.flow_steps,
        )
        check_numbers("(0, inf)", velocity_scale=self.velocity_scale)
        check_numbers("[0, inf)", noise_scale=self.noise_scale)
        check_flags(
            include_time=self.include_time, include_previous_action=self.include_previous_action
        )
        for name in ("task", "source"):
            if not isinstance(getattr(self, name), str | None):
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}: it must be a name")

    @property
    def context_dim(self) -> int:
        """Width of what the velocity is conditioned on: s, and [a_prev, flag] where included."""
        extra = self.action_dim + 1 if self.include_previous_action else 0
        return self.observation_dim + extra

    @property
    def flow_observation_dim(self) -> int:
        """Width of the flow environment's observation: context, x_t, and t where included."""
        return self.context_dim + self.action_dim + int(self.include_time)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `gym.make`, beside the task's id, that make the flow environment again."""
        told_by_the_task = ("observation_dim", "action_dim", "task")
        return {name: v for name, v in asdict(self).items() if name not in told_by_the_task}

    @classmethod
    def of(cls, env: VecEnv) -> FlowSpec:
        """Read the specification off a flow environment.

        Raises:
            ConfigurationError: If `env` is no flow environment.
        """

        def attribute(name: str) -> Any:
            return env.get_attr(name)[0]

        try:
            return cls(
                observation_dim=int(np.prod(attribute("outer_observation_space").shape)),
                action_dim=int(np.prod(attribute("outer_action_space").shape)),
                flow_steps=int(attribute("flow_steps")),
                velocity_scale=float(attribute("velocity_scale")),
                include_time=bool(attribute("include_time")),
                noise_scale=float(attribute("noise_scale")),
                include_previous_action=bool(attribute("include_previous_action")),
                task=attribute("task"),
                source=attribute("source"),
            )
        except AttributeError as error:
            raise ConfigurationError(
                "the agent needs a flow environment: pass gym.make('FlowMDP-<task>-v0') "
                f"or FlowMDPEnv(your_env) ({error})"
            ) from None


class FlowPolicy(BasePolicy):
    """A velocity field, its moving average, and the observation normaliser.

    Flow observations are [s, x_t, (t), (a_prev, flag)]; flow actions are velocities divided by
    `velocity_scale` and clipped to [-1, 1]. The moving average `ema` is what acts.

    Args:
        observation_space: Of the flow environment.
        action_space: Of the flow environment.
        lr_schedule: Unused; the optimisers belong to the algorithm.
        spec: The flow environment's specification.
        net_arch: Hidden widths of the velocity field.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        spec: FlowSpec,
        net_arch: Sequence[int] = (256, 256, 256),
    ) -> None:
        super().__init__(observation_space, action_space)
        self.spec = spec
        self.normalizer = Normalizer(spec.observation_dim)
        self.field = self.make_field(net_arch)
        self.ema = frozen_copy(self.field)

    def make_field(self, net_arch: Sequence[int]) -> nn.Module:
        """The velocity field: called with contexts, points and flow times as `VelocityField` is."""
        spec = self.spec
        return VelocityField(
            spec.context_dim, spec.action_dim, net_arch, include_time=spec.include_time
        )

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

    @torch.no_grad()
    def chain(
        self,
        field: nn.Module,
        observations: NDArray[Any],
        noise: Tensor,
        previous: NDArray[Any] | None = None,
        n_steps: int | None = None,
        solver: str = "euler",
    ) -> NDArray[np.float32]:
        """The points of whole chains, noise first, the action before clipping last.

        Args:
            field: The velocity field to follow.
            observations: Outer observations, shape (n, observation_dim).
            noise: x_0, shape (n, action_dim).
            previous: Previous actions and flags, shape (n, action_dim + 1), where the flow state
                includes them; None means the start of an episode.
            n_steps: Flow steps, None for the environment's.
            solver: "euler", "midpoint" or "heun".

        Returns:
            Shape (n_steps + 1, n, action_dim), float32.
        """
        steps = self.spec.flow_steps if n_steps is None else n_steps
        context = self.normalizer(torch.as_tensor(observations, device=noise.device).float())
        if self.spec.include_previous_action:
            if previous is None:
                previous = np.zeros((len(noise), self.spec.action_dim + 1), np.float32)
            extra = torch.as_tensor(previous, dtype=torch.float32, device=noise.device)
            context = torch.cat([context, extra], 1)
        asked: list[Tensor] = []

        def velocity(x_t: Tensor, t: float) -> Tensor:
            asked.append(x_t)
            result: Tensor = field(context, x_t, t)
            return result

        x_1 = integrate(velocity, noise, steps, solver)
        evaluations = len(asked) // steps  # a second-order solver asks twice per step
        return torch.stack([*asked[::evaluations], x_1]).cpu().numpy()
