"""A trained agent's critic and behaviour flow, as the functions that flow environments call."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowmdp.agents.core.saving import load_agent
from flowmdp.errors import CheckpointError

Array = NDArray[np.float32]
CriticFunction = Callable[[Array, Array], Array]
BehaviorFunction = Callable[[Array, Array, Array], Array]


def load_models(
    path: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> tuple[CriticFunction | None, BehaviorFunction]:
    """The critic and the behaviour flow of a checkpoint; see `models_of`.

    Args:
        path: What `agent.save` wrote.
        device: Where the networks run. Chains of one environment are fastest on "cpu".

    Raises:
        CheckpointError: If the file is missing or damaged, or as `models_of` does.
    """
    return models_of(load_agent(path, device=device), path)


def models_of(
    agent: Any, path: str | os.PathLike[str]
) -> tuple[CriticFunction | None, BehaviorFunction]:
    """The critic, in advantage units, and the behaviour flow of an agent.

    Args:
        agent: A `FlowBC` agent has no critic.
        path: Where it came from, for the messages.

    Returns:
        critic(observations (n, obs_dim), actions (n, action_dim)) -> (n,), or None; and
        behavior(observations, x_t (n, action_dim), t (n, 1)) -> velocity (n, action_dim).

    Raises:
        CheckpointError: If the agent acts in one step, or its behaviour flow depends on the
            previous action, which the reward's state does not hold.
    """
    if agent.spec.include_previous_action:
        raise CheckpointError(f"{path} depends on the previous action: use one that does not")
    if agent.only_flow_steps is not None:
        raise CheckpointError(
            f"{path} holds no flow of many steps: use a FlowBC, DFDir, DFDiv or RQL"
        )
    normalizer: nn.Module = agent.policy.normalizer
    field: nn.Module = agent.behavior_field()

    def tensors(*arrays: Array) -> list[Tensor]:
        return [torch.as_tensor(a, dtype=torch.float32, device=agent.device) for a in arrays]

    @torch.inference_mode()
    def critic(observations: Array, actions: Array) -> Array:
        states, chosen = tensors(observations, actions)
        values: Array = agent.critic.advantages(normalizer(states), chosen).cpu().numpy()
        return values

    @torch.inference_mode()
    def behavior(observations: Array, x_t: Array, t: Array) -> Array:
        states, points, times = tensors(observations, x_t, t)
        velocity: Array = field(normalizer(states), points, times).cpu().numpy()
        return velocity

    return (critic if hasattr(agent, "critic") else None), behavior


def pretrained_path(task: str) -> Path | None:
    """The checkpoint that ships for a task, or None where none does."""
    path = Path(__file__).resolve().parents[1] / "pretrained" / f"{task}.zip"
    return path if path.is_file() else None
