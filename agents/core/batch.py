"""The dataset as tensors on the device; a batch is an index operation there."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmdp.agents.core.networks import Normalizer, is_constant
from flowmdp.errors import DatasetError
from flowmdp.mdp.spec import FlowSpec
from flowmdp.transitions import TransitionDataset


class Batch(NamedTuple):
    """Transitions on the device; observations are normalised, rewards scaled.

    A context is what a velocity is conditioned on: the observation, followed by the previous
    action and its flag where the flow state includes them.
    """

    rows: Tensor  # (batch,), which transitions these are
    observations: Tensor  # (batch, obs_dim)
    contexts: Tensor  # (batch, context_dim)
    actions: Tensor  # (batch, action_dim)
    rewards: Tensor  # (batch,)
    next_observations: Tensor  # (batch, obs_dim)
    next_contexts: Tensor  # (batch, context_dim)
    masks: Tensor  # (batch,), 1 - termination

    @property
    def flow_states(self) -> tuple[Tensor, Tensor]:
        """Observations and contexts where chains start: s', or s itself where s' is terminal."""
        mask = self.masks[:, None] > 0
        return (
            torch.where(mask, self.next_observations, self.observations),
            torch.where(mask, self.next_contexts, self.contexts),
        )


class DeviceDataset:
    """A `TransitionDataset` on the device.

    Args:
        dataset: The transitions.
        spec: Of the flow environment.
        normalizer: Applied to the observations, once.
        gamma: Discount, by which rewards are scaled to returns of order one; None leaves them.
        device: Where the tensors live.
        scale: Of the rewards, where it is known already.
    """

    def __init__(
        self,
        dataset: TransitionDataset,
        spec: FlowSpec,
        normalizer: Normalizer,
        gamma: float | None,
        device: torch.device,
        scale: float | None = None,
    ) -> None:
        def tensor(array: NDArray[Any]) -> Tensor:
            return torch.as_tensor(array, dtype=torch.float32, device=device)

        starts = tensor(dataset.starts)
        # 0 at an episode's last transition
        self.continues = torch.cat([1 - starts[1:], starts.new_zeros(1)])
        self.observations = normalizer(tensor(dataset.observations))
        self.next_observations = normalizer(tensor(dataset.next_observations))
        self.actions = tensor(dataset.actions)
        self.masks = tensor(dataset.masks)
        rewards = tensor(dataset.rewards)
        self.reward_scale = 1.0 if scale is None else scale
        if gamma is not None and scale is None:
            self.reward_scale = reward_scale(rewards, self.masks, self.continues, gamma)
        self.rewards = rewards * self.reward_scale
        self.previous: Tensor | None = None
        if spec.include_previous_action:
            flags = 1 - starts[:, None]
            self.previous = torch.cat([tensor(dataset.previous_actions), flags], 1)

    def __len__(self) -> int:
        """Number of transitions."""
        return len(self.rewards)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A uniform batch, drawn with replacement by `generator`."""
        index = torch.randint(
            len(self), (batch_size,), generator=generator, device=self.rewards.device
        )
        observations, next_observations = self.observations[index], self.next_observations[index]
        actions, rewards = self.actions[index], self.rewards[index]
        contexts, next_contexts = observations, next_observations
        if self.previous is not None:
            contexts = torch.cat([observations, self.previous[index]], 1)
            flag = torch.ones_like(rewards)[:, None]
            next_contexts = torch.cat([next_observations, actions, flag], 1)
        return Batch(
            index,
            observations,
            contexts,
            actions,
            rewards,
            next_observations,
            next_contexts,
            self.masks[index],
        )


def lambda_returns(
    rewards: Tensor,
    next_values: Tensor,
    masks: Tensor,
    continues: Tensor,
    gamma: float,
    lam: float,
) -> Tensor:
    """TD(lambda) targets G_n = r_n + gamma mask_n ((1 - lam) V(s_{n+1}) + lam G_{n+1}).

    At an episode's last transition G_{n+1} is V(s_{n+1}): a truncated episode bootstraps, a
    terminated one ends, and nothing crosses from one episode to the next.

    Args:
        rewards: Of all transitions in time order, shape (n,).
        next_values: V(s_{n+1}), shape (n,).
        masks: 1 - termination, shape (n,).
        continues: 0 at an episode's last transition, shape (n,).
        gamma: Discount.
        lam: In [0, 1]; 1 is the Monte-Carlo return.

    Returns:
        Shape (n,), on the device of `rewards`.
    """
    mix = lam * continues
    constant = (rewards + gamma * masks * (1 - mix) * next_values).tolist()
    factor = (gamma * masks * mix).tolist()
    result, following = [], 0.0
    for c, f in zip(reversed(constant), reversed(factor), strict=True):
        following = c + f * following
        result.append(following)
    return torch.tensor(result[::-1], dtype=rewards.dtype, device=rewards.device)


def check_fit(dataset: TransitionDataset, spec: FlowSpec) -> None:
    """Raise DatasetError unless the dataset holds transitions of the environment's widths."""
    widths = (dataset.observations.shape[1], dataset.actions.shape[1])
    expected = (spec.observation_dim, spec.action_dim)
    if widths != expected:
        raise DatasetError(
            f"dataset {dataset.id} has observations and actions of width {widths}, the "
            f"environment {expected}: pass a dataset of the task"
        )


def reward_scale(rewards: Tensor, masks: Tensor, continues: Tensor, gamma: float) -> float:
    """1 / standard deviation of the discounted returns [ours]; 1 for constant rewards.

    Rewards, or returns, that differ only by rounding count as constant.

    Values of order one are learned ten times faster than values of order one hundred; flows see
    advantages in units of nu, for which the scale is immaterial.

    Args:
        rewards: Shape (n,), unscaled; also `masks` and `continues`, as in `lambda_returns`.
        masks: 1 - termination.
        continues: 0 at an episode's last transition.
        gamma: Discount.
    """
    returns = lambda_returns(rewards, torch.zeros_like(rewards), masks, continues, gamma, 1.0)
    if any(is_constant(values[:, None]).item() for values in (rewards, returns)):
        return 1.0
    return 1.0 / returns.std().item()


def taken(errors: Tensor, valid: Tensor | None) -> Tensor:
    """Errors per coordinate, 0 for the actions of a chunk that the data never took.

    What clones the data's actions learns nothing from those; critics do see what stands in their
    place, since it changes no return.

    Args:
        errors: Shape (batch, action_dim).
        valid: `Batch.valid`.
    """
    return errors if valid is None else errors * valid
