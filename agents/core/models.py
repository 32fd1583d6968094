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

from flowmdp.agents.core.precision import autocast, choose_precision, matmul_precision
from flowmdp.agents.core.saving import load_agent
from flowmdp.errors import CheckpointError

Array = NDArray[np.float32] | Tensor
Function = Callable[..., Any]


def load_models(
    path: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    precision: str = "float32",
) -> tuple[Function | None, Function]:
    """The critic and the behaviour flow of a checkpoint; see `models_of`.

    Args:
        path: What `agent.save` wrote.
        device: Where the networks run. Chains of one environment are fastest on "cpu".
        precision: See `models_of`.

    Raises:
        CheckpointError: If the file is missing or damaged, or as `models_of` does.
    """
    return models_of(load_agent(path, device=device), path, precision)


def models_of(
    agent: Any, path: str | os.PathLike[str], precision: str = "float32"
) -> tuple[Function | None, Function]:
    """The critic, in advantage units, and the behaviour flow of an agent.

    Args:
        agent: A `FlowBC` agent has no critic.
        path: Where it came from, for the messages.
        precision: Of the matrix products: "float32", "bfloat16", "tfloat32" or "auto", the fastest
            that the device computes natively.

    Returns:
        critic(observations (n, obs_dim), actions (n, action_dim)) -> (n,), or None; and
        behavior(observations, x_t (n, action_dim), t (n, 1)) -> velocity (n, action_dim). Both
        answer NumPy arrays with an array, and tensors with a tensor, on the agent's device.

    Raises:
        ConfigurationError: If there is no such precision.
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

    where: tuple[torch.device, str] = agent.device, precision

    def critic(observations: Tensor, actions: Tensor) -> Tensor:
        values: Tensor = agent.critic.advantages(normalizer(observations), actions)
        return values

    def behavior(observations: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        velocity: Tensor = field(normalizer(observations), x_t, t)
        return velocity

    asked = as_function(critic, *where) if hasattr(agent, "critic") else None
    return asked, as_function(behavior, *where)


def as_function(
    network: Callable[..., Tensor], device: torch.device | str, precision: str = "float32"
) -> Function:
    """A network that is only asked, as a function of NumPy arrays or of tensors.

    Args:
        network: A module, or a function of float32 tensors on the device.
        device: Where it computes and, asked with tensors, answers.
        precision: See `models_of`.

    Raises:
        ConfigurationError: If there is no such precision.
    """
    device = torch.device(device)
    chosen = choose_precision(precision, device)

    def ask(*inputs: Array) -> Array:
        with torch.inference_mode(), matmul_precision(chosen), autocast(chosen, device):
            parts = (torch.as_tensor(part, dtype=torch.float32, device=device) for part in inputs)
            answer = network(*parts)
        if isinstance(inputs[0], Tensor):
            return answer.clone()  # what inference mode made could not be learned from
        array: Array = answer.cpu().numpy()
        return array

    return ask


def pretrained_path(task: str) -> Path | None:
    """The checkpoint that ships for a task, or None where none does."""
    path = Path(__file__).resolve().parents[1] / "pretrained" / f"{task}.zip"
    return path if path.is_file() else None
