"""What on-policy learning on whole chains keeps: a rollout's chains, and the rewards' scale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor, nn

from flowmdp.sb3 import discounted

Array = NDArray[Any]


class ChainSamples(NamedTuple):
    """A minibatch, on the device."""

    observations: Tensor  # (batch, context_dim), not normalised
    chains: Tensor  # (batch, flow_steps + 1, action_dim)
    log_probs: Tensor  # (batch, flow_steps), under the policy that drew them
    advantages: Tensor  # (batch,)
    returns: Tensor  # (batch,)


class ChainBuffer(RolloutBuffer):
    """SB3's rollout buffer, with the chain behind every action and a discount for every step.

    Attributes:
        chains: x_0 .. x_1, shape (n_steps, n_envs, flow_steps + 1, action_dim).
        chain_log_probs: Of every flow step, shape (n_steps, n_envs, flow_steps).
        discounts: gamma ** n of a chunk of which n actions ran, shape (n_steps, n_envs).
        dones: Where an episode ended, shape (n_steps, n_envs).
        final_values: V where it was truncated, else 0, shape (n_steps, n_envs).

    Args:
        *args: Those of SB3's.
        flow_steps: Of a chain.
        **kwargs: As `*args`.
    """

    def __init__(self, *args: Any, flow_steps: int, **kwargs: Any) -> None:
        self.flow_steps = flow_steps
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Forget the last rollout."""
        super().reset()
        shape = self.buffer_size, self.n_envs
        self.chains = np.zeros((*shape, self.flow_steps + 1, self.action_dim), np.float32)
        self.chain_log_probs = np.zeros((*shape, self.flow_steps), np.float32)
        self.discounts = np.ones(shape, np.float32)
        self.dones = np.zeros(shape, np.bool_)
        self.final_values = np.zeros(shape, np.float32)
        self.finals: list[tuple[int, int, Array]] = []

    def add_step(
        self, observations: Array, chains: Array, rewards: Array, dones: Array, infos: Any
    ) -> None:
        """Store what all robots did in one step of theirs; rewards of a chunk are discounted."""
        row = self.pos
        self.observations[row], self.chains[row], self.dones[row] = observations, chains, dones
        for i, info in enumerate(infos):
            paid = discounted(rewards[i], info, self.gamma)
            self.rewards[row, i], self.discounts[row, i] = paid
            if dones[i] and info.get("TimeLimit.truncated"):
                self.finals.append((row, i, info["terminal_observation"]))
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def set_final_values(self, values: Array) -> None:
        """V of the observations in `finals`, shape (len(finals),)."""
        for (row, i, _), value in zip(self.finals, values, strict=True):
            self.final_values[row, i] = value

    def estimate(self, last_values: Array) -> None:
        """Advantages by GAE and returns, of `rewards` and `values`; last_values are (n_envs,)."""
        advantages = np.zeros(self.n_envs, np.float32)
        for row in reversed(range(self.buffer_size)):
            goes_on = self.discounts[row] * ~self.dones[row]
            cut_short = self.discounts[row] * self.final_values[row]
            delta = self.rewards[row] + goes_on * last_values + cut_short - self.values[row]
            advantages = delta + goes_on * self.gae_lambda * advantages
            self.advantages[row], last_values = advantages, self.values[row]
        self.returns = self.advantages + self.values

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[ChainSamples]:
        """All chains once, in a random order."""
        arrays = (
            self.observations,
            self.chains,
            self.chain_log_probs,
            self.advantages,
            self.returns,
        )
        tensors = [torch.as_tensor(one, device=self.device).flatten(0, 1) for one in arrays]
        order = torch.randperm(len(tensors[0]), generator=generator, device=self.device)
        for rows in order.split(size):
            yield ChainSamples(*(one[rows] for one in tensors))


class RewardScale(nn.Module):
    """The running standard deviation of discounted returns, by which rewards are divided.

    As Gymnasium's `NormalizeReward` (published: Engstrom et al. 2020, arXiv:2005.12729).

    Attributes:
        moments: Mean and variance of the returns so far, and their number.
    """

    moments: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("moments", torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
        self.running: Array | None = None

    def update(self, rewards: Array, discounts: Array, dones: Array) -> float:
        """Take a rollout's, all of shape (n_steps, n_envs); returns the deviation."""
        if self.running is None or self.running.shape != rewards.shape[1:]:
            self.running = np.zeros(rewards.shape[1])
        returns = np.zeros(rewards.shape)
        for row, paid in enumerate(rewards):  # as seen from its end, what a return was so far
            returns[row] = self.running = self.running + paid
            self.running = self.running * discounts[row] * ~dones[row]
        mean, variance, count = self.moments.tolist()
        size = returns.size
        total, shift = count + size, returns.mean() - mean
        spread = variance * count + returns.var() * size + shift**2 * count * size / total
        new = [mean + shift * size / total, spread / total, total]
        self.moments.copy_(torch.tensor(new, dtype=torch.float64))
        return self.deviation

    @property
    def deviation(self) -> float:
        """At least 1e-4."""
        return float(self.moments[1].sqrt().clamp_min(1e-4))
