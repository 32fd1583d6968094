"""Rewards of the flow MDP, in NumPy: what a flow step costs and what an executed action is worth.

The models that two of the rewards need are plain callables on batches, so that they may come from
torch, JAX or a table. The divergences are those of `flowmdp.agents.core.divergences`, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from flowmdp.errors import ConfigurationError

Float = NDArray[np.float32]

Critic = Callable[[Float, Float], Float]
"""critic(observations (n, obs_dim), actions (n, action_dim)) -> values (n,), in advantage units."""

Behavior = Callable[[Float, Float, Float], Float]
"""behavior(observations (n, obs_dim), x_t (n, action_dim), t (n, 1)) -> (n, action_dim)."""

Divergence = Callable[[Float, Float], Float]
"""divergence(velocity (n, action_dim), reference (n, action_dim)) -> (n,), zero where equal."""

KL_STD = 0.5
"""Standard deviation of the velocities that `gaussian_kl` compares. [ours, untuned]"""


@dataclass(frozen=True)
class RewardKind:
    """What a reward is made of.

    Attributes:
        models: Names of the models it needs, "critic" and "behavior".
        states: The value of `states` it is restricted to, or None.
    """

    models: tuple[str, ...] = ()
    states: str | None = None


REWARDS: dict[str, RewardKind] = {
    "return": RewardKind(states="env"),
    "direction": RewardKind(models=("critic",)),
    "divergence": RewardKind(models=("critic", "behavior")),
    "data": RewardKind(states="dataset"),
}


def squared(velocity: Float, reference: Float) -> Float:
    """||u - u_v||^2: summed over a chain, a budget on how far actions are transported."""
    total: Float = np.square(velocity - reference).sum(-1)
    return total


def smooth_norm(velocity: Float, reference: Float, eps: float = 1e-2) -> Float:
    """sqrt(||u - u_v||^2 + eps^2) - eps: the norm, smooth where both agree."""
    norm: Float = np.sqrt(squared(velocity, reference) + eps**2)
    return norm - eps


def cosine(velocity: Float, reference: Float, eps: float = 1e-6) -> Float:
    """1 - cos(u, u_v), in [0, 2]: the direction alone; 1 where one of the two is zero."""
    lengths: Float = np.linalg.norm(velocity, axis=-1).clip(eps)
    lengths = lengths * np.linalg.norm(reference, axis=-1).clip(eps)
    product: Float = (velocity * reference).sum(-1)
    return 1 - product / lengths


def gaussian_kl(velocity: Float, reference: Float, std: float = KL_STD) -> Float:
    """KL between two Gaussians of standard deviation std, ||u - u_v||^2 / (2 std^2)."""
    return squared(velocity, reference) / (2 * std**2)


DIVERGENCES: dict[str, Divergence] = {
    "squared": squared,
    "smooth_norm": smooth_norm,
    "cosine": cosine,
    "gaussian_kl": gaussian_kl,
}


def divergence_reward(
    velocity: Float, reference: Float, divergence: Divergence, rho: float, flow_steps: int
) -> Float:
    """-rho D(u, u_v) / flow_steps, shape (n,) (Decision Flow, section 4.3)."""
    return -np.float32(rho / flow_steps) * divergence(velocity, reference)


def data_reward(
    velocity: Float, x_t: Float, x_1: Float, t: Float | np.float32, flow_steps: int
) -> Float:
    """-||u - (x_1 - x_t) / (1 - t)||^2 / flow_steps, shape (n,) [ours].

    The target is the velocity of the straight path from where the chain is to the dataset action
    x_1. On the path it is x_1 - x_0, and the sum over a chain is minus the flow-matching loss.
    """
    return -squared(velocity, (x_1 - x_t) / (1 - t)) / np.float32(flow_steps)


@dataclass(frozen=True)
class Models:
    """The reward models of an environment, asked once on zeros so that a misfit shows at once.

    Attributes:
        critic: Values executed actions, or None.
        behavior: Velocity of the behaviour flow, or None.
        obs_dim: Length of the outer observation.
        action_dim: Length of an action.
        needed: Names of the models that must not be None, and what needs them.
    """

    critic: Critic | None
    behavior: Behavior | None
    obs_dim: int
    action_dim: int
    needed: tuple[str, ...]

    def __post_init__(self) -> None:
        """Ask both models.

        Raises:
            ConfigurationError: When one is missing, fails, or answers in another shape.
        """
        for name in self.needed:
            if getattr(self, name) is None:
                raise ConfigurationError(
                    f"this reward or action mode needs a {name}: pass {name}=, or a checkpoint "
                    "that holds one"
                )
        s = np.zeros((1, self.obs_dim), np.float32)
        x, t = np.zeros((1, self.action_dim), np.float32), np.zeros((1, 1), np.float32)
        if self.critic is not None:
            self._ask("critic", partial(self.value, s, x), (1,))
        if self.behavior is not None:
            self._ask("behavior", partial(self.reference, s, x, t), (1, self.action_dim))

    def value(self, observations: Float, actions: Float) -> Float:
        """The critic's values, shape (n,)."""
        assert self.critic is not None
        return self.critic(observations, actions)

    def reference(self, observations: Float, x_t: Float, t: Float) -> Float:
        """The behaviour flow's velocities, shape (n, action_dim)."""
        assert self.behavior is not None
        return self.behavior(observations, x_t, t)

    def _ask(self, name: str, model: Callable[[], Float], shape: tuple[int, ...]) -> None:
        sizes = f"observations of {self.obs_dim} and actions of {self.action_dim} dimensions"
        try:
            answer = np.shape(model())
        except Exception as error:  # whatever a user's model raises on other dimensions
            raise ConfigurationError(f"the {name} fails on {sizes}: {error}") from error
        if answer != shape:
            raise ConfigurationError(f"the {name} answers shape {answer}, not {shape}, for {sizes}")
