"""Steer a flow policy of your own by its noise, with Stable-Baselines3's SAC.

    python examples/steer_own_flow.py

The flow is a plain torch module, cloned from a clumsy player of Pendulum: half of its torques swing
the pendulum up, the others are random. The flow stays frozen; SAC learns the noise to start from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.wrappers import RescaleAction
from stable_baselines3 import SAC
from torch import Tensor, nn

from flowmdp.env import FlowMDPEnv
from flowmdp.latent_noise import LatentNoiseEnv


@dataclass
class Config:
    """Record, clone, steer."""

    recorded: int = 15_000  # steps of the clumsy player
    updates: int = 2_000  # of the flow
    steps: int = 4_000  # of SAC
    episodes: int = 10
    seed: int = 0


class Flow(nn.Module):
    """The velocity u(s, x_t, t) of a flow; it normalises observations itself."""

    def __init__(self, observations: Tensor) -> None:
        super().__init__()
        self.mean, self.std = observations.mean(0), observations.std(0)
        hidden = (nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        self.net = nn.Sequential(*hidden, nn.Linear(64, 1))

    def forward(self, observations: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """For rows of 3, 1 and 1 numbers a row of one."""
        features = torch.cat([(observations - self.mean) / self.std, x_t, t], dim=1)
        velocity: Tensor = self.net(features)
        return velocity


def clone(observations: Tensor, actions: Tensor, updates: int) -> Flow:
    """Flow matching on the straight path."""
    flow = Flow(observations)
    optimizer = torch.optim.Adam(flow.parameters(), 2e-3)
    for _ in range(updates):
        rows = torch.randint(len(actions), (256,))
        x_0, x_1, t = torch.randn(256, 1), actions[rows], torch.rand(256, 1)
        velocity = flow(observations[rows], (1 - t) * x_0 + t * x_1, t)
        optimizer.zero_grad()
        (velocity - (x_1 - x_0)).square().mean().backward()
        optimizer.step()
    return flow


def play(env: gym.Env[Any, Any], act: Callable[[Any], Any], steps: int) -> list[Any]:
    """Observations, actions and rewards."""
    rows, observation = [], env.reset(seed=0)[0]
    for _ in range(steps):
        action = act(observation)
        after, reward, _, over, _ = env.step(action)
        rows.append((observation, action, [reward]))
        observation = env.reset()[0] if over else after
    return [torch.tensor(np.array(column, np.float32)) for column in zip(*rows, strict=True)]


def main(config: Config) -> dict[str, float]:
    """Returns the mean return of the player, of its clone, and of the clone that SAC steers."""
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    robot = RescaleAction(gym.make("Pendulum-v1"), np.float32(-1), np.float32(1))

    def player(observation: Any) -> Any:
        cos, sin, speed = observation
        energy = speed**2 / 6 + 5 * cos - 5
        torque = -speed * energy / 2 if cos < 0.8 else -5 * sin - speed
        return np.clip([torque if rng.random() < 0.5 else rng.uniform(-1, 1)], -1, 1)

    observations, actions, rewards = play(robot, player, config.recorded)
    flow = clone(observations, actions, config.updates)

    def behavior(*arrays: Any) -> Any:
        with torch.no_grad():
            return flow(*map(torch.as_tensor, arrays)).numpy()

    residual: Any = {"action_mode": "residual", "flow_steps": 5, "behavior": behavior}
    env = LatentNoiseEnv(FlowMDPEnv(robot, **residual))
    agent = SAC("MlpPolicy", env, learning_rate=1e-3, learning_starts=500, seed=config.seed)
    agent.learn(config.steps)
    steps = 200 * config.episodes
    _, _, cloned = play(env, lambda _: rng.standard_normal(1) / env.noise_bound, steps)
    _, _, steered = play(env, lambda s: agent.predict(s, deterministic=True)[0], steps)
    played = {"player": rewards, "clone": cloned, "steered": steered}
    means = {name: 200 * float(rewards.mean()) for name, rewards in played.items()}
    print(*(f"{name}: mean return {mean:.0f}" for name, mean in means.items()), sep="\n")
    return means


if __name__ == "__main__":
    main(tyro.cli(Config))
