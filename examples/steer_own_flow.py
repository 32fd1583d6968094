"""Steer a flow policy of your own by its noise, with Stable-Baselines3's SAC.

    python examples/steer_own_flow.py

The flow is a plain torch module, cloned from a clumsy controller of Pendulum: half of its torques
swing the pendulum up, the others are random. It stays frozen; SAC learns the noise to start from.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3 import SAC
from torch import Tensor, nn

import flowmdp  # noqa: F401  (registers FlowMDP-v0)
from flowmdp.behavior import as_behavior


class Flow(nn.Module):
    """u(s, x_t, t) of a flow to a torque in [-1, 1]; it scales observations itself."""

    def __init__(self) -> None:
        super().__init__()
        hidden = nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU()
        self.net = nn.Sequential(*hidden, nn.Linear(64, 1))

    def forward(self, observations: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """For rows of 3, 1 and 1 numbers a row of one."""
        scaled = observations / torch.tensor([1.0, 1.0, 8.0])
        return self.net(torch.cat([scaled, x_t, t], 1))  # type: ignore[no-any-return]


def clone(flow: Flow, updates: int) -> None:
    """Have the flow imitate the controller, by flow matching."""
    optimizer = torch.optim.Adam(flow.parameters(), 2e-3)
    for _ in range(updates):
        angle, speed = 2 * torch.pi * torch.rand(256, 1), 16 * torch.rand(256, 1) - 8
        energy = speed**2 / 6 + 5 * angle.cos() - 5
        swing = torch.where(angle.cos() < 0.8, -speed * energy / 2, -5 * angle.sin() - speed)
        torque = torch.where(torch.rand(256, 1) < 0.5, swing, 2 * torch.rand(256, 1) - 1)
        x_0, x_1, t = torch.randn(256, 1), torque.clamp(-1, 1), torch.rand(256, 1)
        observations = torch.cat([angle.cos(), angle.sin(), speed], 1)
        velocity = flow(observations, (1 - t) * x_0 + t * x_1, t)
        optimizer.zero_grad()
        (velocity - (x_1 - x_0)).square().mean().backward()
        optimizer.step()


def play(env: gym.Env[Any, Any], act: Callable[[Any], Any], episodes: int) -> float:
    """Mean return."""
    total = 0.0
    for episode in range(episodes):
        (observation, _), over = env.reset(seed=1000 + episode), False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            total, over = total + float(reward), terminated or truncated
    return total / episodes


def main(updates: int = 2000, steps: int = 4000, episodes: int = 10, seed: int = 0) -> list[float]:
    """Returns the mean return of the flow, and of the flow that SAC steers."""
    torch.manual_seed(seed)
    flow = Flow()
    clone(flow, updates)
    robot: dict[str, Any] = {"env_id": "Pendulum-v1", "behavior": as_behavior(flow, flow_steps=5)}
    env = gym.make("FlowMDP-v0", action_mode="residual", **robot)
    before = play(env, lambda _: np.zeros(1, np.float32), episodes)  # nothing added to the flow
    env = gym.make("FlowMDP-v0", decision="noise", **robot)
    agent = SAC("MlpPolicy", env, learning_rate=1e-3, learning_starts=500, seed=seed).learn(steps)
    after = play(env, lambda seen: agent.predict(seen, deterministic=True)[0], episodes)
    print(f"mean return: flow {before:.0f}, steered {after:.0f}")
    return [before, after]


if __name__ == "__main__":
    tyro.cli(main)
