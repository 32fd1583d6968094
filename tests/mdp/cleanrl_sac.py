"""SAC in the style of CleanRL: one file, which knows of Gymnasium only.

    python tests/mdp/cleanrl_sac.py --env-id flowmdp:FlowMDP-hopper-medium-v0

Written for this project; the structure follows CleanRL's sac_continuous_action, the algorithm is
Haarnoja et al. 2018, arXiv:1812.05905. Nothing here is about flows.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F


@dataclass
class Args:
    """CleanRL's defaults, with a smaller buffer and one rate for all."""

    env_id: str = "Hopper-v5"
    seed: int = 1
    total_timesteps: int = 100_000
    buffer_size: int = 100_000
    learning_starts: int = 5_000
    gradient_steps: int = 1  # for every step
    batch_size: int = 256
    learning_rate: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    width: int = 256
    target_entropy: float | None = None  # None: minus the number of coordinates


def network(inputs: int, outputs: int, width: int) -> nn.Sequential:
    """Two hidden layers."""
    hidden = nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


class Buffer:
    """A ring of transitions: obs, action, reward, next obs, done."""

    def __init__(self, size: int, observation: int, action: int) -> None:
        self.size, self.count = size, 0
        self.rows = [torch.zeros(size, n) for n in (observation, action, 1, observation, 1)]

    def add(self, *transition: Any) -> None:
        """Overwrite the oldest."""
        for rows, value in zip(self.rows, transition, strict=True):
            rows[self.count % self.size] = torch.as_tensor(value, dtype=torch.float32)
        self.count += 1

    def sample(self, batch_size: int) -> list[Tensor]:
        """Uniformly, with replacement."""
        index = torch.randint(min(self.count, self.size), (batch_size,))
        return [rows[index] for rows in self.rows]


class Agent(nn.Module):
    """A squashed Gaussian, two critics and a temperature."""

    def __init__(self, env: gym.Env[Any, Any], args: Args) -> None:
        super().__init__()
        (inputs,), (self.actions,) = env.observation_space.shape, env.action_space.shape  # type: ignore[misc]
        self.actor = network(inputs, 2 * self.actions, args.width)
        self.critics = nn.ModuleList(
            network(inputs + self.actions, 1, args.width) for _ in range(2)
        )
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.zeros(1))
        self.entropy = -self.actions if args.target_entropy is None else args.target_entropy

    def act(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """An action in [-1, 1] and its log-density."""
        mean, log_std = self.actor(obs).chunk(2, -1)
        normal = Normal(mean, log_std.clamp(-5, 2).exp())
        raw = normal.rsample()
        squashed = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return raw.tanh(), (normal.log_prob(raw) - squashed).sum(-1, keepdim=True)

    def value(self, critics: nn.ModuleList, obs: Tensor, action: Tensor) -> Tensor:
        """Of both critics, shape (2, batch, 1)."""
        return torch.stack([critic(torch.cat([obs, action], -1)) for critic in critics])


def update(agent: Agent, optimizers: list[torch.optim.Adam], batch: list[Tensor], a: Args) -> None:
    """One step of the critics, the actor and the temperature."""
    obs, action, reward, next_obs, done = batch
    q_optimizer, actor_optimizer, alpha_optimizer = optimizers
    alpha = agent.log_alpha.exp().detach()
    with torch.no_grad():
        next_action, logprob = agent.act(next_obs)
        following = agent.value(agent.targets, next_obs, next_action).amin(0) - alpha * logprob
        target = reward + a.gamma * (1 - done) * following
    q_loss = (agent.value(agent.critics, obs, action) - target).square().mean((1, 2)).sum()
    q_optimizer.zero_grad()
    q_loss.backward()
    q_optimizer.step()
    chosen, logprob = agent.act(obs)
    actor_loss = (alpha * logprob - agent.value(agent.critics, obs, chosen).amin(0)).mean()
    actor_optimizer.zero_grad()
    actor_loss.backward()
    actor_optimizer.step()
    alpha_loss = -(agent.log_alpha.exp() * (logprob.detach() + agent.entropy)).mean()
    alpha_optimizer.zero_grad()
    alpha_loss.backward()
    alpha_optimizer.step()
    for target_weight, weight in zip(
        agent.targets.parameters(), agent.critics.parameters(), strict=True
    ):
        target_weight.data.lerp_(weight.data, a.tau)


def main(args: Args) -> list[float]:
    """Train; returns the return of every episode."""
    torch.manual_seed(args.seed)
    env = gym.wrappers.RecordEpisodeStatistics(
        gym.wrappers.FlattenObservation(gym.make(args.env_id))
    )
    env.action_space.seed(args.seed)
    agent = Agent(env, args)
    groups = agent.critics.parameters(), agent.actor.parameters(), [agent.log_alpha]
    optimizers = [torch.optim.Adam(group, args.learning_rate) for group in groups]
    buffer = Buffer(args.buffer_size, env.observation_space.shape[0], agent.actions)  # type: ignore[index]
    history: list[float] = []
    obs, _ = env.reset(seed=args.seed)
    for step in range(args.total_timesteps):
        action = env.action_space.sample()
        if step >= args.learning_starts:
            with torch.no_grad():
                action = agent.act(torch.as_tensor(obs, dtype=torch.float32))[0].numpy()
        next_obs, reward, terminated, truncated, info = env.step(action)
        buffer.add(obs, action, float(reward), next_obs, float(terminated))
        obs = next_obs
        if terminated or truncated:
            history.append(float(info["episode"]["r"]))
            obs, _ = env.reset()
        if step >= args.learning_starts:
            for _ in range(args.gradient_steps):
                update(agent, optimizers, buffer.sample(args.batch_size), args)
        if (step + 1) % 10_000 == 0:
            print(f"{len(history)} episodes, last return {np.mean(history[-20:] or [0]):.2f}")
    env.close()
    return history


if __name__ == "__main__":
    main(tyro.cli(Args))
