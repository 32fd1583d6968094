"""The latent-noise environment: a frozen flow whose first state is the only decision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmdp.arguments import check_numbers
from flowmdp.backends import as_flow_action
from flowmdp.env import FlowMDPEnv
from flowmdp.errors import ConfigurationError
from flowmdp.whole_chain import ActionEnv

Float = NDArray[np.float32]

NOISE_BOUND = 3.0
"""Noise of an action of 1: the box holds 99.7 % of each component of N(0, I). [ours, untuned]"""


class LatentNoiseEnv(ActionEnv):
    """Steer a frozen flow policy by its noise, as DSRL does (Wagenmaker et al. 2025, 2506.15799).

    One step is a whole chain: the action becomes x_0, the behaviour flow carries it to an action in
    `flow_steps` steps, which is executed outside. Any algorithm that trains on the robot trains on
    this environment, and can only choose among actions that the behaviour flow produces.

    ## Action Space
    `Box(-1, 1, (action_dim,), float32)`; x_0 = noise_bound * action, clipped to the box.

    Everything else is as in `ActionEnv`.

    Args:
        flow: A `FlowMDPEnv` with `action_mode="residual"`: the frozen flow is its behaviour; owned
            and closed by this environment.
        noise_bound: Noise of an action of 1, positive; `action_magnitude` in DSRL's code.

    Raises:
        ConfigurationError: For another action mode or bound.
    """

    def __init__(self, flow: FlowMDPEnv, noise_bound: float = NOISE_BOUND) -> None:
        check_numbers("(0, 1e9]", noise_bound=noise_bound)
        super().__init__(flow)
        self.noise_bound = noise_bound
        self._zero = np.zeros(flow.flow_spec.action_dim, np.float32)

    def _check(self, flow: FlowMDPEnv) -> None:
        if flow.settings.action_mode != "residual":
            raise ConfigurationError("decision='noise' needs action_mode='residual': a frozen flow")

    def step(self, action: Float) -> tuple[Float, float, bool, bool, dict[str, Any]]:
        """Start a chain at noise_bound * action and let the frozen flow finish it."""
        bounded = np.clip(as_flow_action(action, self._zero.shape), -1, 1)
        self.flow.set_noise(bounded * np.float32(self.noise_bound))
        total = 0.0
        for _ in range(self.flow.flow_steps):
            observation, reward, terminated, truncated, info = self.flow.step(self._zero)
            total += reward
        return observation[self._kept], total, terminated, truncated, info
