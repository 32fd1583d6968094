"""The dataset as tensors on the device; a batch is an index operation there."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmdp.agents.core.networks import Normalizer, is_constant
from flowmdp.chunks import Chunks
from flowmdp.errors import DatasetError
from flowmdp.mdp.spec import FlowSpec
from flowmdp.transitions import TransitionDataset

BLOCK = 1 << 16
"""Transitions that are worked on at a time, which bounds what that takes of memory."""


class Batch(NamedTuple):
    """Transitions on the device; observations are normalised, rewards scaled.

    A context is what a velocity is conditioned on: the observation, followed by the previous
    action and its flag where the flow state includes them.

    With chunks of h actions, a transition is a whole chunk: its reward is sum_i gamma^i r_i, its
    next observation the one after its last action.
    """

    rows: Tensor  # (batch,), which transitions these are; a robot's follow the dataset's
    observations: Tensor  # (batch, obs_dim)
    contexts: Tensor  # (batch, context_dim)
    actions: Tensor  # (batch, action_dim), h times the robot's
    rewards: Tensor  # (batch,)
    next_observations: Tensor  # (batch, obs_dim)
    next_contexts: Tensor  # (batch, context_dim)
    masks: Tensor  # (batch,), 1 - termination; gamma^(n - h) if a robot's time ended after n of h
    valid: Tensor | None = None  # (batch, action_dim), 0 where no action was taken; None: all were

    @property
    def flow_states(self) -> tuple[Tensor, Tensor]:
        """Observations and contexts where chains start: s', or s itself where s' is terminal."""
        mask = self.masks[:, None] > 0
        return (
            torch.where(mask, self.next_observations, self.observations),
            torch.where(mask, self.next_contexts, self.contexts),
        )


class DeviceDataset:
    """A `TransitionDataset` on the device, once; chunks of h actions are gathered by index.

    On a CPU observations and actions are the dataset's own arrays, not copies.

    Attributes:
        observations: As they were recorded, shape (n, obs_dim); batches normalise what they draw.
        next_observations: Likewise.
        rewards: Of the chunk that begins at each transition, scaled, shape (n,).
        masks: Whether that chunk does not terminate, shape (n,), bool.
        continues: Whether another chunk begins where that one ends, shape (n,), bool.
        starts: The transitions at which a chunk may begin, shape (m,); None for all.
        recorded: The same for cloning, see `flowmdp.chunks`.

    Args:
        dataset: The transitions.
        spec: Of the flow environment.
        normalizer: Applied to the observations of a batch.
        gamma: Discount per step of the robot, by which rewards are scaled to returns of order one;
            None leaves them.
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

        # False at an episode's last transition
        self.continues = torch.as_tensor(~np.append(dataset.starts[1:], True), device=device)
        self.chunk, self.normalizer = spec.chunk, normalizer
        self.observations = tensor(dataset.observations)
        self.next_observations = tensor(dataset.next_observations)
        self.actions = tensor(dataset.actions)
        self.masks = torch.as_tensor(~dataset.terminations, device=device)
        rewards = tensor(dataset.rewards)
        self.reward_scale = 1.0 if scale is None else scale
        if gamma is not None and scale is None:
            self.reward_scale = reward_scale(rewards, self.masks, self.continues, gamma)
        self.rewards = rewards * self.reward_scale
        self.previous: Tensor | None = None
        if spec.include_previous_action:
            flags = tensor(~dataset.starts[:, None])
            self.previous = torch.cat([tensor(dataset.previous_actions), flags], 1)
        self.starts: Tensor | None = None
        self.recorded: Tensor | None = None
        if self.chunk > 1:
            self._cut(Chunks(dataset, self.chunk), 1.0 if gamma is None else gamma)

    def _cut(self, chunks: Chunks, gamma: float) -> None:
        """Turn what stands for one step of the robot into what stands for a chunk of them."""
        device, rewards = self.rewards.device, torch.zeros_like(self.rewards)
        own = tuple(
            torch.as_tensor(part, device=device) for part in (chunks.lengths, chunks.starts)
        )
        self.lengths, self.starts = self.taken, self.recorded = own
        if chunks.recorded[0] is not chunks.lengths:
            self.taken, self.recorded = (
                torch.as_tensor(part, device=device) for part in chunks.recorded
            )
        for i in reversed(range(self.chunk)):  # the same sum as the robot's steps, last one first
            rewards *= gamma
            rewards[: len(self) - i] += self.rewards[i:] * (self.lengths[: len(self) - i] > i)
        self.rewards = rewards
        begins = torch.zeros_like(self.masks)
        begins[self.starts] = True
        for first in range(0, len(self), BLOCK):  # forward: the rows behind are still single steps
            rows = torch.arange(first, min(first + BLOCK, len(self)), device=device)
            last, following = self.last(rows), (rows + self.chunk).clamp(max=len(self) - 1)
            self.masks[rows] = self.masks[last]  # False behind chunks that were cut short
            self.continues[rows] = self.continues[last] & begins[following]

    def last(self, rows: Tensor) -> Tensor:
        """The transitions that end the chunks that begin at some rows."""
        return rows if self.chunk == 1 else rows + self.lengths[rows] - 1

    def states_after(self, rows: Tensor) -> Tensor:
        """The normalised observations after those chunks, shape (len(rows), obs_dim)."""
        observations: Tensor = self.normalizer(self.next_observations[self.last(rows)])
        return observations

    def following(self, rows: Tensor) -> Tensor:
        """Where the next chunks begin; meaningless where `continues` is 0."""
        return (rows + self.chunk) % len(self)

    def chunks(self, rows: Tensor) -> Tensor:
        """The actions of the chunks that begin at some rows, shape (len(rows), action_dim)."""
        if self.chunk == 1:
            return self.actions[rows]
        steps = torch.arange(self.chunk, device=rows.device)
        index = (rows[:, None] + steps).clamp(max=len(self) - 1)
        return self.actions[index].flatten(1)

    def valid(self, rows: Tensor) -> Tensor | None:
        """Which of those were taken, shape (len(rows), action_dim); None where all were."""
        if self.chunk == 1:
            return None
        steps = torch.arange(self.chunk, device=rows.device)
        taken = (steps < self.taken[rows][:, None]).float()
        return taken.repeat_interleave(self.actions.shape[1], 1)

    def __len__(self) -> int:
        """Number of transitions."""
        return len(self.rewards)

    def sample(self, batch_size: int, generator: torch.Generator, cloning: bool = False) -> Batch:
        """A uniform batch, drawn with replacement by `generator`; `cloning` reads no rewards."""
        starts = self.recorded if cloning else self.starts
        choices = len(self) if starts is None else len(starts)
        index = torch.randint(
            choices, (batch_size,), generator=generator, device=self.rewards.device
        )
        if starts is not None:
            index = starts[index]
        last = self.last(index)
        observations = self.normalizer(self.observations[index])
        next_observations = self.states_after(index)
        actions, rewards = self.chunks(index), self.rewards[index]
        contexts, next_contexts = observations, next_observations
        if self.previous is not None:
            contexts = torch.cat([observations, self.previous[index]], 1)
            flag = torch.ones_like(rewards)[:, None]
            next_contexts = torch.cat([next_observations, self.actions[last], flag], 1)
        return Batch(
            index,
            observations,
            contexts,
            actions,
            rewards,
            next_observations,
            next_contexts,
            self.masks[index].float(),
            self.valid(index),
        )


def lambda_returns(
    rewards: Tensor,
    next_values: Tensor,
    masks: Tensor,
    continues: Tensor,
    gamma: float,
    lam: float,
    chunk: int = 1,
) -> Tensor:
    """TD(lambda) targets G_n = r_n + gamma mask_n ((1 - lam) V(s_{n+h}) + lam G_{n+h}).

    Where no chunk follows G_{n+h} is V(s_{n+h}): a truncated episode bootstraps, a terminated one
    ends, and nothing crosses from one episode to the next. Chunks of h actions make h interleaved
    sequences of every episode.

    Args:
        rewards: Of all transitions in time order, shape (n,).
        next_values: V(s_{n+h}), shape (n,).
        masks: 1 - termination, shape (n,), numbers or bool.
        continues: 0 where no chunk follows, as at an episode's last transition, shape (n,).
        gamma: Discount from one chunk to the next.
        lam: In [0, 1]; 1 is the Monte-Carlo return.
        chunk: h.

    Returns:
        Shape (n,), on the device of `rewards`.
    """
    returns, following = torch.empty_like(rewards), np.zeros(chunk)
    for stop in range(len(rewards), 0, -BLOCK):
        rows = slice(max(0, stop - BLOCK), stop)
        discounts, mix = gamma * masks[rows], lam * continues[rows]
        constant = rewards[rows] + discounts * (1 - mix) * next_values[rows]
        values = _backwards(constant, discounts * mix, following)
        returns[rows], following = torch.from_numpy(values), values[:chunk]
    return returns


def _backwards(constant: Tensor, factor: Tensor, following: NDArray[Any]) -> NDArray[Any]:
    """G_n = constant_n + factor_n G_{n+h} in float64; `following` are the h values behind.

    A factor of 0 ends a run of transitions that depend on each other. Each step of all runs is one
    operation, unless few runs are so long that Python's own arithmetic is faster.
    """
    h, n = len(following), len(constant)
    front = np.zeros(-n % h)  # then rows of h hold one of each interleaved sequence
    columns = (constant.numpy(force=True), following), (factor.numpy(force=True), np.zeros(h))
    g, f = (np.concatenate([front, *parts]).reshape(-1, h).T.ravel() for parts in columns)
    ends = np.flatnonzero(f == 0)
    lengths = np.diff(ends, prepend=-1)
    order = np.argsort(-lengths)
    ends, lengths = ends[order], lengths[order]
    if 20 * lengths[0] > len(g):
        values, factors = g.tolist(), f.tolist()
        for i in range(len(g) - 2, -1, -1):
            values[i] += factors[i] * values[i + 1]
        g = np.array(values)
    else:
        for step, runs in enumerate(np.searchsorted(-lengths, -np.arange(1, lengths[0])), 1):
            rows = ends[:runs] - step
            g[rows] += f[rows] * g[rows + 1]
    found: NDArray[Any] = g.reshape(h, -1).T.ravel()[len(front) : len(front) + n]
    return found


def check_fit(dataset: TransitionDataset, spec: FlowSpec) -> None:
    """Raise DatasetError unless the dataset holds transitions of the environment's widths."""
    widths = (dataset.observations.shape[1], dataset.actions.shape[1])
    expected = (spec.observation_dim, spec.robot_action_dim)
    if widths != expected:
        raise DatasetError(
            f"dataset {dataset.id} has observations and actions of width {widths}, the "
            f"environment {expected}: pass a dataset of the task"
        )


def reward_scale(
    rewards: Tensor, masks: Tensor, continues: Tensor, gamma: float, chunk: int = 1
) -> float:
    """1 / standard deviation of the discounted returns [ours]; 1 for constant rewards.

    Rewards, or returns, that differ only by rounding count as constant.

    Values of order one are learned ten times faster than values of order one hundred; flows see
    advantages in units of nu, for which the scale is immaterial.

    Args:
        rewards: Shape (n,), unscaled; also `masks` and `continues`, as in `lambda_returns`.
        masks: 1 - termination.
        continues: 0 at an episode's last transition.
        gamma: Discount.
        chunk: As in `lambda_returns`.
    """
    none = rewards.new_zeros(1).expand_as(rewards)
    returns = lambda_returns(rewards, none, masks, continues, gamma, 1.0, chunk)
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
