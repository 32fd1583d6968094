"""The step that the single and the vectorised environment share: how chains move and are paid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flowmdp.errors import ConfigurationError
from flowmdp.mdp.divergences import DIVERGENCES
from flowmdp.mdp.rewards import Behavior, Critic, Float, data_reward, divergence_reward
from flowmdp.mdp.spec import FlowSettings, FlowSpec
from flowmdp.mdp.transition import flow_step, noisy_flow_step, step_log_density


class Dynamics:
    """Flow steps of many chains, with the models that the rewards need.

    The models are asked once, on zeros, so that a misfit shows at once.

    Args:
        settings: Reward, divergence, action mode and noise.
        spec: Dimensions and flow steps.
        critic: Values executed actions, or None.
        behavior: Velocity of the behaviour flow, or None.

    Attributes:
        needed: Names of the models that reward and action mode need, "critic" and "behavior".

    Raises:
        ConfigurationError: When a model is missing, fails, or answers in another shape.
    """

    def __init__(
        self,
        settings: FlowSettings,
        spec: FlowSpec,
        critic: Critic | None,
        behavior: Behavior | None,
    ) -> None:
        self.settings, self.flow_steps = settings, spec.flow_steps
        self.critic, self.behavior = critic, behavior
        self.needed = settings.models
        for name in self.needed:
            if getattr(self, name) is None:
                raise ConfigurationError(
                    f"this reward or action mode needs a {name}: pass {name}=, or a checkpoint "
                    "that holds one"
                )
        n, d = spec.observation_dim, spec.action_dim
        s, x, t = (np.zeros((1, width), np.float32) for width in (n, d, 1))
        sizes = f"observations of {n} and actions of {d} dimensions"
        if critic is not None:
            _ask("critic", lambda: critic(s, x), (1,), sizes)
        if behavior is not None:
            _ask("behavior", lambda: behavior(s, x, t), (1, d), sizes)

    def step(
        self,
        states: Float,
        x_t: Float,
        velocity: Float,
        t: Float,
        x_data: Float,
        noise: Float | None = None,
    ) -> tuple[Float, Float, dict[str, Float]]:
        """Move chains by one flow step.

        Args:
            states: Outer observations, shape (n, observation_dim).
            x_t: Points, shape (n, action_dim).
            velocity: What the actions ask for, shape (n, action_dim).
            t: Flow times, shape (n, 1).
            x_data: Dataset actions, shape (n, action_dim); only reward "data" reads them.
            noise: N(0, I), shape (n, action_dim), where `noise_std` is positive.

        Returns:
            The next points, the rewards (n,), and by name what `info` tells, each (n,).
        """
        settings, flow_steps = self.settings, self.flow_steps
        reward, terms = np.zeros(len(x_t), np.float32), dict[str, Float]()
        if "behavior" in self.needed:
            assert self.behavior is not None
            reference = self.behavior(states, x_t, t)
            velocity = reference + velocity if settings.action_mode == "residual" else velocity
        if settings.reward == "divergence":
            divergence = DIVERGENCES[settings.divergence]
            reward = divergence_reward(velocity, reference, divergence, settings.rho, flow_steps)
            terms["reward_divergence"] = reward
        elif settings.reward == "data":
            reward = terms["reward_data"] = data_reward(velocity, x_t, x_data, t, flow_steps)
        if noise is None:
            return flow_step(x_t, velocity, flow_steps), reward, terms
        x_next = noisy_flow_step(x_t, velocity, flow_steps, settings.noise_std, noise)
        terms["log_density"] = step_log_density(
            x_next, x_t, velocity, flow_steps, settings.noise_std
        )
        return x_next, reward, terms

    def value(self, states: Float, actions: Float) -> Float:
        """What executed actions are worth to the critic, shape (n,)."""
        assert self.critic is not None
        return self.critic(states, actions)


def _ask(name: str, model: Callable[[], Float], shape: tuple[int, ...], sizes: str) -> None:
    try:
        answer = np.shape(model())
    except Exception as error:  # whatever a user's model raises on other dimensions
        raise ConfigurationError(f"the {name} fails on {sizes}: {error}") from error
    if answer != shape:
        raise ConfigurationError(f"the {name} answers shape {answer}, not {shape}, for {sizes}")
