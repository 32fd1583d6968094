"""DSRL: steering a behaviour flow by the noise it starts from, a baseline.

Source: Wagenmaker et al. 2025, "Steering Your Diffusion Policy with Latent Space Reinforcement
Learning", arXiv:2506.15799. In the flow MDP with a single decision the noise z is the action, and
the frozen flow turns it into one of the robot's, a = flow(s, z). SAC (Haarnoja et al. 2018,
arXiv:1812.05905) chooses z = bound tanh(.), with noise aliasing:

    critic          Q(s, a) regresses to r + gamma mask Q'(s', flow(s', z')), z' the actor's
    latent critic   Q^z(s, z) regresses to A(s, flow(s, z)), z ~ N(0, I): no bootstrap in z
    actor           descends temperature log pi(z | s) - Q^z(s, z)
    temperature     rises while the entropy of z / bound is below `target_entropy`

However far the critic is wrong, an action is one of the flow's; the bound says how rare it may be.

Differences [ours]: from the data's returns, online the plain flow's; the critic is that of all, so
the entropy is the actor's alone, not the value's; Q^z learns advantages in advantage units, so that
one temperature to start from serves rewards of any scale, by a single network; the moving average
of the actor's weights acts. As SAC, it is evaluated at the mean, z = bound tanh(mean), from x_0 =
0.

Logged (train/):
    latent_q_loss: of the latent critic.
    policy_loss, grad_norm, entropy, temperature: of the actor.
    critic_q_loss, critic_q_data, critic_grad_norm: of the critic.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from flowmdp.agents.core.acting import Array
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.config import (
    MEAN_OF_TWO,
    BestOfConfig,
    CloneConfig,
    PolicyConfig,
    SmoothedConfig,
)
from flowmdp.agents.core.critics import SCALE_SAMPLES
from flowmdp.agents.core.live import opened
from flowmdp.agents.core.networks import EnsembleMlp, Info, VelocityField
from flowmdp.agents.core.one_step import LOG_STD_RANGE, SAMPLING_STEPS, OneStepField, SampledField
from flowmdp.agents.core.parts import Clone, ReturnCritic
from flowmdp.arguments import AtLeast, Range
from flowmdp.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class DSRLConfig(PolicyConfig, CloneConfig, SmoothedConfig, BestOfConfig):
    """Hyper-parameters of DSRL."""

    noise_bound: Annotated[float, Range("(0, inf)")] = 1.0
    """Largest |z| in each coordinate, in standard deviations (paper: 0.4 to 1.5 by task)."""
    target_entropy: Annotated[float, Range("(-inf, inf)")] = 0.0
    """Entropy of z / noise_bound per coordinate that the temperature holds (paper: 0)."""
    sampling_steps: Annotated[int, AtLeast(1, 10_000)] = SAMPLING_STEPS
    """Euler steps of the flow from z to the action; one of your own has its own."""


class LatentActor(nn.Module):
    """A Gaussian of the state, squashed: z = bound tanh(mean + std e).

    Args:
        context_dim: Width of the conditioning.
        action_dim: Width of z.
        net_arch: Widths of the hidden layers.
        bound: Largest |z|.
    """

    def __init__(
        self, context_dim: int, action_dim: int, net_arch: Sequence[int], bound: float
    ) -> None:
        super().__init__()
        self.bound = bound
        self.mlp = EnsembleMlp(context_dim, 2 * action_dim, net_arch)

    def forward(self, context: Tensor, e: Tensor) -> Tensor:
        """Latent noise z for standard Gaussian e, shapes (batch, context_dim), (batch, dim)."""
        return self.sample(context, e)[0]

    def sample(self, context: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """Z as `forward`, and the log-density of z / bound, shape (batch,)."""
        mean, log_std = self.mlp(context).squeeze(0).chunk(2, dim=-1)
        std = log_std.clamp(*LOG_STD_RANGE).exp()
        raw = mean + std * e
        # log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2x)), which never underflows
        squash = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        log_prob = (Normal(mean, std, validate_args=False).log_prob(raw) - squash).sum(-1)
        return self.bound * torch.tanh(raw), log_prob


class LatentField(OneStepField):
    """The actor's z and the flow's chain from it, as one step from the environment's noise.

    Args:
        actor: Chooses z.
        noise_scale: Standard deviation of the environment's noise, which stands for the actor's.

    Attributes:
        flow: The chain, in a tuple: it belongs to another, and is not stored twice.
        log_temperature: Of the entropy.
    """

    flow: tuple[SampledField]

    def __init__(self, actor: LatentActor, noise_scale: float) -> None:
        super().__init__()
        self.actor = actor
        self.noise_scale = noise_scale
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def actions(self, context: Tensor, x_0: Tensor) -> Tensor:
        """Where the chain from z ends, in [-1, 1]."""
        z: Tensor = self.actor(context, x_0 / max(self.noise_scale, 1e-12))
        return self.flow[0].actions(context, z)


class Networks(NamedTuple):
    """What the losses read."""

    field: LatentField
    latent_critic: nn.Module  # Q^z(s, z)


def latent_values(network: nn.Module, contexts: Tensor, z: Tensor) -> Tensor:
    """Q^z(s, z), shape (batch,)."""
    values: Tensor = network(torch.cat([contexts, z], dim=-1)).squeeze((0, -1))
    return values


def latent_loss(
    networks: Networks, batch: Batch, drawn: tuple[Tensor, Tensor]
) -> tuple[Tensor, Info]:
    """The mean of (Q^z(s, z) - A)^2 for z, (batch, action_dim), and A, (batch,)."""
    z, targets = drawn
    residual = latent_values(networks.latent_critic, batch.contexts, z) - targets
    loss = residual.square().mean()
    return loss, {"latent_q_loss": loss.detach()}


def policy_loss(
    networks: Networks, batch: Batch, e: Tensor, *, target_entropy: float
) -> tuple[Tensor, Info]:
    """The mean of temperature log pi(z | s) - Q^z(s, z), and what moves the temperature.

    The actor's z come from standard Gaussian e, shape (batch, action_dim); the target is the
    entropy of one coordinate.
    """
    z, log_prob = networks.field.actor.sample(batch.contexts, e)
    gain = latent_values(networks.latent_critic, batch.contexts, z).mean()
    log_temperature, entropy = networks.field.log_temperature, -log_prob.mean()
    temperature, excess = log_temperature.exp().detach(), entropy - target_entropy * z.shape[1]
    loss = -temperature * entropy - gain + log_temperature * excess.detach()
    info = {"policy_loss": loss, "entropy": entropy / z.shape[1], "temperature": temperature}
    return loss, {key: value.detach() for key, value in info.items()}


class DSRL(FlowAlgorithm[DSRLConfig], name="dsrl"):
    """Diffusion (here flow) steering by RL in the latent space (Wagenmaker et al. 2025)."""

    config_class = DSRLConfig
    default_steps = 15_000
    SHARED = ("net_arch", "gamma", "batch_size", "precision")
    """Hyper-parameters that `from_agent` takes from the agent."""
    only_flow_steps = 1
    acts_at_mean = True
    acts_with = ("policy", "behavior")
    paper: ClassVar[dict[str, Any]] = MEAN_OF_TWO

    @classmethod
    def from_agent(cls, agent: Any, **arguments: Any) -> Self:
        """A new agent that steers another's policy, of which it takes a copy, by its noise.

        Args:
            agent: A FlowBC, DFDir, DFDiv or RQL, or its checkpoint.
            **arguments: Of the constructor; by default networks, discount and batches are as the
                agent's, and there is no dataset: `learn_online(..., online_share=1)`.

        Raises:
            ConfigurationError: If the agent's policy is no flow of many steps with a network of
                its own, or `net_arch` is not the flow's.
            CheckpointError: If the checkpoint is missing or damaged.
        """
        what, agent = opened(agent)
        flow = agent.policy.ema
        if agent.only_flow_steps or not isinstance(flow, VelocityField):
            raise ConfigurationError(
                f"{what} holds no flow of many steps that could be copied: take a "
                "FlowBC, DFDir, DFDiv or RQL around its own clone"
            )
        config = agent.config
        own = {name: getattr(config, name) for name in cls.SHARED if hasattr(config, name)}
        own |= {"sampling_steps": agent.spec.flow_steps, "seed": agent.seed, "device": agent.device}
        made = cls("MlpPolicy", None, **{**own, **arguments}, _init_setup_model=False)
        made._live_in(dataclasses.replace(agent.spec, flow_steps=1), agent.robot)
        made._setup_model()
        clone = made.parts[0]
        assert isinstance(clone, Clone)
        try:
            for network in (clone.flow, clone.average):
                network.load_state_dict(flow.state_dict())
        except RuntimeError:
            needed = f"it must be the flow's, {agent.config.net_arch}"
            raise ConfigurationError(f"net_arch is {made.config.net_arch}: {needed}") from None
        clone.updates = clone.steps
        made.policy.normalizer.load_state_dict(agent.policy.normalizer.state_dict())
        return made

    @property
    def sampling_steps(self) -> int:
        """Euler steps of the flow."""
        own = self.own_behavior and self.own_behavior.flow_steps
        return own or self.config.sampling_steps

    def explore(self, observations: Array, previous: Array | None) -> Array:
        """As the agent acts; before it has learned anything, as the plain flow does."""
        if self._n_updates:
            return super().explore(observations, previous)
        return self.act(observations, previous=previous, field=self.flow)

    def make_field(self) -> LatentField:
        """The policy."""
        spec, config = self.spec, self.config
        actor = LatentActor(spec.context_dim, spec.action_dim, config.net_arch, config.noise_bound)
        return LatentField(actor, spec.noise_scale)

    def build(self) -> None:
        """The flow, both critics, and their optimisers."""
        clone, self.critic_part = Clone(self), ReturnCritic(self, learns_on="q")
        self.parts, self.critic = (clone, self.critic_part), self.critic_part.critic
        self.flow = SampledField(clone.average, self.sampling_steps)
        for field in (self.policy.field, self.policy.ema):
            field.flow = (self.flow,)  # type: ignore[assignment]
        self.policy_optimizer = self.policy_descent()
        width = self.spec.context_dim + self.spec.action_dim
        self.latent_critic = EnsembleMlp(width, 1, self.config.net_arch, layer_norm=True)
        self.saved.modules["latent_critic"] = self.latent_critic.to(self.device)
        self.latent_optimizer = self.descent(
            "latent_critic", self.latent_critic, self.config.critic_learning_rate
        )

    @torch.no_grad()
    def prepare(self) -> None:
        """Measure the advantage unit."""
        batch = self.data.sample(SCALE_SAMPLES, self.generator)
        actions = self.flow.actions(batch.contexts, self.noise_like(batch.actions))
        self.critic.fit_scale(batch.observations, batch.actions, actions)

    def behavior_field(self) -> nn.Module:
        """The flow's whole chain as one step."""
        return self.flow

    def update(self) -> Info:
        """One step of the critic, of the latent critic, and of the actor."""
        batch, field = self.sample(), self.policy.field
        assert isinstance(field, LatentField)
        networks = Networks(field, self.latent_critic)
        info = self.critic_part.follow(batch, self.next_actions(batch))
        info |= self.minimize(
            self.latent_optimizer, latent_loss, networks, batch, self.aliased(batch)
        )
        return info | self.minimize(
            self.policy_optimizer,
            policy_loss,
            networks,
            batch,
            self.noise_like(batch.actions),
            target_entropy=self.config.target_entropy,
        )

    @torch.no_grad()
    def next_actions(self, batch: Batch) -> Tensor:
        """The actor's actions at s', shape (batch, best_of, action_dim)."""
        n = self.config.best_of
        field: Any = self.policy.field
        contexts = batch.next_contexts.repeat_interleave(n, 0)
        e = self.noise_like(batch.actions.repeat_interleave(n, 0))
        with self.autocast():
            actions = self.flow.actions(contexts, field.actor(contexts, e))
        return actions.reshape(-1, n, actions.shape[1])

    @torch.no_grad()
    def aliased(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Noises z of the data's states, (batch, action_dim), and what they earn, (batch,)."""
        z = self.noise_like(batch.actions)
        with self.autocast():
            actions = self.flow.actions(batch.contexts, z)
            return z, self.critic.advantages(batch.observations, actions)
