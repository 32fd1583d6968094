"""The behaviour policies that come with the package: small actors, evaluated with NumPy.

`behaviors/<name>.safetensors` holds the actor of a Stable-Baselines3 agent (SAC or PPO) in float16,
with the command that trained it, seed, versions and returns. benchmarks/train_behavior.py wrote it.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from flowmdp.errors import DatasetError

LOG_STD_RANGE = (-20.0, 2.0)
"""Clip range of the Gaussian's log standard deviation (Stable-Baselines3, sac/policies.py)."""


class BehaviorPolicy:
    """A stochastic policy of a multilayer perceptron's mean and noise ~ N(0, I).

    SAC: a = tanh(mu(s) + exp(log_std(s)) noise), ReLU layers.
    PPO: a = clip(mu(s) + exp(log_std) noise, -1, 1), tanh layers.

    Attributes:
        provenance: What is known of the file, JSON-able: command, seed, versions, returns ...
        obs_dim: Size of an observation.
        action_dim: Size of an action.
    """

    def __init__(self, weights: dict[str, NDArray[np.float32]], provenance: dict[str, Any]) -> None:
        self.provenance = provenance
        layers = {int(key.split(".")[1]) for key in weights if key.startswith("latent_pi")}
        names = [f"latent_pi.{layer}" for layer in sorted(layers)]
        self.hidden = [(weights[f"{name}.weight"].T, weights[f"{name}.bias"]) for name in names]
        self.mu = weights["mu.weight"].T, weights["mu.bias"]
        self.squashed = provenance["algorithm"] == "SAC"
        if self.squashed:
            self.log_std = weights["log_std.weight"].T, weights["log_std.bias"]
        else:  # the same for every observation
            self.log_std = np.zeros_like(self.mu[0]), weights["log_std"]
        self.obs_dim = self.hidden[0][0].shape[0]
        self.action_dim = self.mu[0].shape[1]

    @classmethod
    def load(cls, path: Path) -> BehaviorPolicy:
        """Read an actor from a safetensors file; DatasetError for a file that holds none."""
        try:
            provenance: dict[str, Any] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            with safe_open(path, "np") as file:
                weights = {key: file.get_tensor(key).astype(np.float32) for key in file.keys()}
                provenance |= sorted((file.metadata() or {}).items())
            for name in {"returns", "versions"} & set(provenance):
                provenance[name] = json.loads(provenance[name])
            return cls(weights, provenance)
        except (OSError, SafetensorError, KeyError, IndexError, ValueError) as error:
            raise DatasetError(
                f"cannot read the behaviour policy {path} ({error}): reinstall flowmdp, or write "
                "the file again with benchmarks/train_behavior.py"
            ) from error

    @classmethod
    def shipped(cls, name: str) -> BehaviorPolicy:
        """The policy of that name that comes with the package, `hopper-medium`."""
        folder = Path(str(importlib.resources.files("flowmdp.envs"))) / "behaviors"
        return cls.load(folder / f"{name}.safetensors")

    def sample(
        self, observations: NDArray[np.floating[Any]], noise: NDArray[np.floating[Any]]
    ) -> NDArray[np.float32]:
        """Actions in [-1, 1], shape (batch, action_dim), float32.

        Args:
            observations: Shape (batch, obs_dim).
            noise: Standard normal, shape (batch, action_dim); zeros give the mean action.
        """
        x = observations.astype(np.float32)
        for weight, bias in self.hidden:
            x = x @ weight + bias
            x = np.maximum(x, 0) if self.squashed else np.tanh(x)
        mean = x @ self.mu[0] + self.mu[1]
        log_std = np.clip(x @ self.log_std[0] + self.log_std[1], *LOG_STD_RANGE)
        x = mean + np.exp(log_std) * noise.astype(np.float32)
        actions: NDArray[np.float32] = np.tanh(x) if self.squashed else np.clip(x, -1, 1)
        return actions
