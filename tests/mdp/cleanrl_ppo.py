"""PPO for continuous actions in the style of CleanRL: one file, which knows of Gymnasium only.

    python tests/mdp/cleanrl_ppo.py --env-id flowmdp:FlowMDP-hopper-medium-v0

Written for this project; the structure and the wrappers follow CleanRL's ppo_continuous_action.
Nothing here is about flows: it is a test that flow environments need nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Normal


@dataclass
class Args:
    """CleanRL's defaults, with fewer and shorter roll-outs."""

    env_id: str = "Hopper-v5"
    seed: int = 1
    total_timesteps: int = 100_000
    num_envs: int = 4
    num_steps: int = 128
    learning_rate: float = 1e-3
    gamma: float = 0.99
    gae_lambda: float = 0.95
    minibatches: int = 4
    update_epochs: int = 10
    clip_coef: float = 0.2
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5


def wrap(env: gym.Env[Any, Any], gamma: float) -> gym.Wrapper[Any, Any, Any, Any]:
    """CleanRL's wrappers."""
    env = gym.wrappers.FlattenObservation(env)
    env = gym.wrappers.RecordEpisodeStatistics(env)
    env = gym.wrappers.ClipAction(env)
    env = gym.wrappers.NormalizeObservation(env)
    env = gym.wrappers.TransformObservation(env, lambda obs: np.clip(obs, -10, 10), None)
    env = gym.wrappers.NormalizeReward(env, gamma=gamma)
    return gym.wrappers.TransformReward(env, lambda reward: max(-10.0, min(10.0, float(reward))))


class Agent(nn.Module):
    """A Gaussian actor and a critic."""

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        super().__init__()
        inputs = int(np.prod(envs.single_observation_space.shape or ()))
        outputs = int(np.prod(envs.single_action_space.shape or ()))
        self.critic = self.network(inputs, 1, 1.0)
        self.actor_mean = self.network(inputs, outputs, 0.01)
        self.actor_logstd = nn.Parameter(torch.zeros(1, outputs))

    @staticmethod
    def network(inputs: int, outputs: int, std: float) -> nn.Sequential:
        """Two hidden layers, initialised orthogonally."""
        layers = [nn.Linear(inputs, 64), nn.Linear(64, 64), nn.Linear(64, outputs)]
        for layer, gain in zip(layers, (2**0.5, 2**0.5, std), strict=True):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)
        return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])

    def policy(self, obs: Tensor) -> Normal:
        """The distribution of actions."""
        return Normal(self.actor_mean(obs), self.actor_logstd.exp())


def collect(
    envs: gym.vector.VectorEnv[Any, Any, Any], agent: Agent, obs: Tensor, args: Args
) -> tuple[Tensor, list[tuple[Tensor, ...]], list[float]]:
    """A roll-out: the next observation, rows of (obs, action, log-prob, reward, done, value)."""
    rows: list[tuple[Tensor, ...]] = []
    returns: list[float] = []
    for _ in range(args.num_steps):
        with torch.no_grad():
            distribution = agent.policy(obs)
            action = distribution.sample()
            logprob, value = distribution.log_prob(action).sum(1), agent.critic(obs)[:, 0]
        next_obs, reward, terminations, truncations, infos = envs.step(action.numpy())
        done = torch.as_tensor(terminations | truncations, dtype=torch.float32)
        rows.append((obs, action, logprob, torch.as_tensor(reward).float(), done, value))
        obs = torch.as_tensor(next_obs, dtype=torch.float32)
        if "final_info" in infos:
            episodes, ended = infos["final_info"]["episode"], infos["_final_info"]
            returns += episodes["r"][ended].tolist()
    return obs, rows, returns


def advantages(rewards: Tensor, dones: Tensor, values: Tensor, last: Tensor, args: Args) -> Tensor:
    """Generalised advantage estimation, shape (num_steps, num_envs)."""
    result, gae, next_value = torch.zeros_like(rewards), torch.zeros_like(last), last
    for t in reversed(range(len(rewards))):
        alive = 1 - dones[t]
        delta = rewards[t] + args.gamma * next_value * alive - values[t]
        gae = delta + args.gamma * args.gae_lambda * alive * gae
        result[t], next_value = gae, values[t]
    return result


def update(agent: Agent, optimizer: torch.optim.Optimizer, batch: list[Tensor], args: Args) -> None:
    """Epochs of minibatches on the clipped objective; the batch is flat."""
    obs, actions, old_logprobs, adv, targets = batch
    size = len(obs) // args.minibatches
    for _ in range(args.update_epochs):
        for rows in torch.randperm(len(obs)).split(size):
            logratio = agent.policy(obs[rows]).log_prob(actions[rows]).sum(1) - old_logprobs[rows]
            ratio = logratio.exp()
            weights = (adv[rows] - adv[rows].mean()) / (adv[rows].std() + 1e-8)
            clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
            pg_loss = -torch.min(ratio * weights, clipped * weights).mean()
            v_loss = 0.5 * (agent.critic(obs[rows])[:, 0] - targets[rows]).square().mean()
            optimizer.zero_grad()
            (pg_loss + args.vf_coef * v_loss).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()


def main(args: Args) -> list[float]:
    """Train; returns the return of every episode."""
    torch.manual_seed(args.seed)
    envs = gym.make_vec(
        args.env_id,
        num_envs=args.num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP},
        wrappers=[lambda env: wrap(env, args.gamma)],
    )
    agent = Agent(envs)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    obs = torch.as_tensor(envs.reset(seed=args.seed)[0], dtype=torch.float32)
    history: list[float] = []
    for _ in range(args.total_timesteps // (args.num_steps * args.num_envs)):
        obs, rows, returns = collect(envs, agent, obs, args)
        history += returns
        all_obs, actions, logprobs, rewards, dones, values = map(
            torch.stack, zip(*rows, strict=True)
        )
        with torch.no_grad():
            adv = advantages(rewards, dones, values, agent.critic(obs)[:, 0], args)
        batch = [all_obs, actions, logprobs, adv, adv + values]
        update(agent, optimizer, [tensor.flatten(0, 1) for tensor in batch], args)
        print(f"{len(history)} episodes, last return {np.mean(history[-20:] or [0]):.2f}")
    envs.close()
    return history


if __name__ == "__main__":
    main(tyro.cli(Args))
