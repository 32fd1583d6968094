"""Draw what Decision Flow does to a flow: chains from noise to action, before and after.

    python examples/draw_flow.py --out docs/flow.png

A bandit with one action: the data has two modes, -0.5 (three in four) and 0.5 (one in four), and
the reward is highest at the rarer one. Every line is one chain, coloured by its action's reward.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flowmdp.agents import DFDiv
from flowmdp.env import FlowMDPEnv
from flowmdp.transitions import TransitionDataset


@dataclass
class Config:
    """Train on the bandit and draw."""

    out: Path = Path("docs/flow.png")
    pretraining: int = 2_000  # updates of the behaviour flow, and of the critic
    steps: int = 1_500
    rho: float = 0.2
    chains: int = 160
    seed: int = 0


def reward(actions: NDArray[Any]) -> NDArray[Any]:
    """1 at the rarer mode, falling off on both sides; shape (n,)."""
    return np.exp(-2 * (actions[:, 0] - 0.5) ** 2)


def make_data(rng: np.random.Generator, n: int = 4_000) -> TransitionDataset:
    """The two-mode behaviour; with gamma 0 every step is a game of its own."""
    modes = np.where(rng.random((n, 1)) < 0.75, -0.5, 0.5)
    actions = np.clip(modes + 0.15 * rng.standard_normal((n, 1)), -1, 1).astype(np.float32)
    zeros, first = np.zeros((n, 1), np.float32), np.arange(n) == 0
    rewards, last = reward(actions).astype(np.float32), first[::-1]
    return TransitionDataset(
        "bandit", zeros, actions, rewards, zeros, np.zeros(n, np.bool_), last, zeros, first
    )


def main(config: Config) -> dict[str, float]:
    """Returns the share of actions in the better mode, before and after."""
    rng = np.random.default_rng(config.seed)
    budget: Any = {"behavior_steps": config.pretraining, "critic_steps": config.pretraining}
    settings: Any = {"policy_kwargs": {"net_arch": [64, 64]}, "gamma": 0.0, "seed": config.seed}
    env = FlowMDPEnv(states="dataset", reward="data", dataset=make_data(rng))
    agent = DFDiv("MlpPolicy", env, rho=config.rho, **budget, **settings)
    agent.learn(config.steps)
    figure = Figure((9, 3.4), layout="constrained")
    noise = rng.standard_normal((config.chains, 1), np.float32)
    policies = {"behaviour flow": agent.behavior_policy(), "DF-div": agent.outer_policy()}
    shares = {}
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (name, policy) in zip(panels, policies.items(), strict=True):
        points = agent.chain(np.zeros_like(noise), noise, field=policy.field)[..., 0]
        colors = colormaps["viridis"](reward(points[-1][:, None]))
        for line, color in zip(points.T, colors, strict=True):
            axes.plot(np.linspace(0, 1, len(line)), line, color=color, lw=0.8, alpha=0.7)
        shares[name] = float((points[-1] > 0).mean())
        axes.set(title=f"{name}: {shares[name]:.0%} in the better mode", xlabel="flow time")
    panels[0].set(ylabel="noise  →  action")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.out, dpi=110)
    return shares


if __name__ == "__main__":
    print(main(tyro.cli(Config)))
