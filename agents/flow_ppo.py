r"""FlowPPO: a cloned flow learns on the robot, by PPO on noisy flow steps.

Sources: DPPO (Ren et al. 2024, "Diffusion Policy Policy Optimization", arXiv:2409.00588) and
ReinFlow (Zhang et al. 2025, arXiv:2505.22094). The steps of the flow get Gaussian noise, so that a
chain x_0 .. x_T has a likelihood:

    x_{k+1} ~ N(x_k + u(s, x_k, t_k) / T, sigma_k(s)^2 I)
    loss    = -sum_k min(r_k A_k, clip(r_k, 1 - c, 1 + c) A_k) - ent_coef sum_k H_k
    "step"    r_k = p(x_{k+1} | x_k, s) / p_old, A_k = flow_gamma^{T - 1 - k} A         [DPPO]
    "chain"   one r = prod_k r_k for the whole chain, A                                  [ReinFlow]

A is the advantage of the executed action, by GAE from a critic on s alone; sigma is learned between
two bounds, or scheduled from the upper to the lower one. The velocity field itself is the actor:
without noise it acts as the clone did.

With `group_size=k` there is no critic: k chains from each recorded state are paid Q(s, a), and A is
that value, standardised within the group (Flow-GRPO, Liu et al. 2025, arXiv:2505.05470).

Logged (train/):
    policy_loss, entropy, approx_kl, clip_fraction, actor_grad_norm: of the actor; entropy is of one
        coordinate of one flow step, approx_kl of whole chains.
    actor_epochs: epochs until `target_kl` was reached.
    value_loss, explained_variance, critic_grad_norm: of the critic.
    reward_scale: the deviation by which rewards are divided.
    group_value, group_spread: with groups, mean Q, and its mean deviation within a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from stable_baselines3.common.utils import explained_variance
from torch import Tensor
from torch.nn import functional as F

from flowmdp.agents.core.chain_buffer import ChainSamples
from flowmdp.agents.core.config import NetworkConfig, show_hyperparameters
from flowmdp.agents.core.live import check_fits, flow_of, make_whole, opened
from flowmdp.agents.core.networks import Info
from flowmdp.agents.core.on_chains import OnChains
from flowmdp.arguments import AtLeast, Range
from flowmdp.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class FlowPPOConfig(NetworkConfig):
    """Hyper-parameters of FlowPPO."""

    net_arch: tuple[Annotated[int, AtLeast(1, 65_536)], ...] = (256, 256, 256)
    """Hidden widths of the velocity field; `from_agent` takes its flow's."""
    flow_steps: Annotated[int, AtLeast(1, 10_000)] | None = None
    """T; None takes the flow's (ReinFlow: 4)."""
    noise_scale: Annotated[float, Range("[0, 1e6]")] | None = None
    """Standard deviation of x_0; None takes the flow's."""
    include_time: bool | None = None
    """Whether the velocity field sees t; None takes the flow's."""
    ratio: Literal["step", "chain"] = "step"
    """One PPO ratio for every flow step (DPPO), or for the whole chain (ReinFlow)."""
    flow_gamma: Annotated[float, Range("[0, 1]")] = 0.99
    """Discount of the advantage towards early flow steps, of `ratio="step"` (DPPO)."""
    noise_bounds: tuple[Annotated[float, Range("(0, inf)")], ...] = (0.1, 0.24)
    """Least and largest sigma_k, in action units (ReinFlow, Hopper); other robots bear less."""
    learn_noise: bool = True
    """Whether a network learns sigma_k(s) (ReinFlow); else it falls from the upper bound to the
    lower one in the course of `learn`."""
    learning_rate: Annotated[float, Range("[0, inf)")] = 1e-4
    """Adam's, of the velocity field and its noise (DPPO, Gym; ReinFlow: 4.5e-5)."""
    critic_learning_rate: Annotated[float, Range("[0, inf)")] = 6.5e-4
    """Adam's, of the critic (ReinFlow, Hopper)."""
    critic_arch: tuple[Annotated[int, AtLeast(1, 65_536)], ...] = (256, 256, 256)
    """Hidden widths of the critic (DPPO and ReinFlow)."""
    critic_warmup: Annotated[int, AtLeast(0)] = 5
    """Rollouts on which the critic alone learns, since it starts untrained [ours]."""
    n_steps: Annotated[int, AtLeast(1, 1_000_000)] = 128
    """Actions, of chunks chunks, of every robot in a rollout (published: 500 of 40 robots)."""
    batch_size: Annotated[int, AtLeast(2, 1_000_000)] = 256
    """Chains per gradient step."""
    n_epochs: Annotated[int, AtLeast(1, 1_000)] = 5
    """Passes over a rollout (published)."""
    gamma: Annotated[float, Range("[0, 1]")] = 0.9975
    """Discount per step of the robot (published: 0.99 per chunk of 4)."""
    gae_lambda: Annotated[float, Range("[0, 1]")] = 0.95
    """Of GAE, per decision (published)."""
    clip_range: Annotated[float, Range("(0, inf)")] = 0.1
    """c (published: 0.01 of ratios whose logarithm is averaged over coordinates, of which a chunk
    of 4 actions of Hopper has 12)."""
    target_kl: Annotated[float, Range("(0, inf)")] | None = 0.05
    """The actor rests for the rest of a rollout where the KL of whole chains is more [ours]."""
    ent_coef: Annotated[float, Range("[0, inf)")] = 0.0
    """Weight of the entropy of whole chains, which raises the noise (ReinFlow: 0.03)."""
    max_grad_norm: Annotated[float, Range("(0, inf)")] = 0.5
    """Gradients are clipped to this norm (SB3)."""
    group_size: Annotated[int, AtLeast(2, 100_000)] | None = None
    """Chains from each recorded state, whose values make the advantages in place of a critic."""

    def __post_init__(self) -> None:
        """Check the bounds too."""
        super().__post_init__()
        if len(self.noise_bounds) != 2 or self.noise_bounds[0] > self.noise_bounds[1]:
            raise ConfigurationError(
                f"noise_bounds is {self.noise_bounds}: give two numbers, the smaller one first"
            )


def policy_loss(
    log_prob: Tensor, entropy: Tensor, batch: ChainSamples, config: FlowPPOConfig
) -> tuple[Tensor, Info]:
    """PPO's clipped loss of whole chains, and what of it is logged.

    Args:
        log_prob: Of every flow step, shape (batch, flow_steps).
        entropy: Likewise.
        batch: The chains, with standardised advantages.
        config: Says ratio, flow_gamma, clip_range and ent_coef.
    """
    advantages, log_ratio = batch.advantages[:, None], log_prob - batch.log_probs
    with torch.no_grad():  # Schulman's estimate of KL(old, new), never negative
        kl = (log_ratio.exp() - 1 - log_ratio).sum(1).mean()
    if config.ratio == "chain":
        log_ratio = log_ratio.sum(1, keepdim=True)
    else:
        steps = log_ratio.shape[1]
        left = torch.arange(steps - 1, -1, -1, device=log_ratio.device)
        advantages = advantages * config.flow_gamma**left
    ratio, c = log_ratio.exp(), config.clip_range
    gain = torch.min(ratio * advantages, ratio.clamp(1 - c, 1 + c) * advantages).sum(1).mean()
    bonus = entropy.sum(1).mean()
    coordinates = batch.chains[0, 1:].numel()
    info = {
        "policy_loss": -gain,
        "entropy": bonus / coordinates,
        "approx_kl": kl,
        "clip_fraction": ((ratio - 1).abs() > c).float().mean(),
    }
    return -gain - config.ent_coef * bonus, {key: one.detach() for key, one in info.items()}


class FlowPPO(OnChains):
    """Stable-Baselines3's PPO whose actor is a flow with noisy steps (DPPO, ReinFlow).

    It learns on `ActionEnv`s, `gym.make(id, decision="action", chunk=h)`, of which one step, and
    one timestep of `learn`, executes an action or a chunk; SB3's `make_vec_env` makes several.
    Rewards are scaled by the deviation of discounted returns, observations standardised as the
    clone's were. `FlowPPO.from_agent` is the way to start; without it the flow is untrained.

    `predict` answers whole actions for such an environment; with `deterministic=True` from
    x_0 = 0 and without noise in the steps. `outer_policy()` acts on the bare robot, without noise
    in the steps too.

    Args:
        policy: "MlpPolicy" or a `NoisyFlowPolicy` class.
        env: An `ActionEnv`, a VecEnv of them, or an id: of a flow environment, or of a robot.
        config: All hyper-parameters; None takes the defaults.
        policy_kwargs: SB3's way to say `net_arch`, or any other hyper-parameter.
        stats_window_size: Episodes over which the log averages.
        tensorboard_log: Folder for TensorBoard files.
        verbose: 1 prints the log to the terminal.
        seed: Of networks, noise and minibatches; None draws one. No global generator is touched.
        device: "auto", "cpu" or "cuda".
        **hyperparameters: Of the config, by name.

    Raises:
        ConfigurationError: If an argument is unknown or out of range, or `env` does not fit.
    """

    config_class = FlowPPOConfig
    name = "flow-ppo"
    config: FlowPPOConfig

    @classmethod
    def from_agent(cls, agent: Any, env: Any, behavior: bool = False, **arguments: Any) -> Self:
        """Start from a flow that another agent learned offline.

        Args:
            agent: The agent, or its checkpoint. Of FlowBC, DF-dir, DF-div and RQL the policy is
                taken, of others the behaviour that they cloned.
            env: As of the constructor; an id is made with the flow's settings and chunk.
            behavior: Take the cloned behaviour of DF-dir and DF-div, too.
            **arguments: Of the constructor.

        Raises:
            CheckpointError: If there is no flow of many steps, or it is of another robot or chunk.
            ConfigurationError: As the constructor.
        """
        what, agent = opened(agent)
        field, acts = flow_of(what, agent, behavior)
        spec = agent.spec
        if isinstance(env, str):
            kept = ("chunk", "include_previous_action", "source")
            env = make_whole(env, {name: getattr(spec, name) for name in kept})
        widths = [weight.shape[-1] for weight in field.mlp.weights]
        named = {**acts, **arguments, "net_arch": tuple(widths[:-1])}
        model = cls(named.pop("policy", "MlpPolicy"), env, **named)
        check_fits(what, agent, model.spec, model.robot)
        model.policy.field.load_state_dict(field.state_dict())
        model.policy.normalizer.load_state_dict(agent.policy.normalizer.state_dict())
        return model

    def train(self) -> None:
        """Learn from the rollout: the critic always, the actor until `target_kl` is reached."""
        config, buffer, infos = self.config, self.rollout_buffer, list[Info]()
        groups = config.group_size is not None
        warm = groups or self.rollouts > config.critic_warmup
        moves, epochs = warm, 0
        for _ in range(config.n_epochs):
            for batch in buffer.minibatches(config.batch_size, self.generator):
                info = {} if groups else self._critic_step(batch)
                if moves:
                    info |= self._actor_step(batch)
                    limit = config.target_kl
                    moves = limit is None or bool(info["approx_kl"] <= limit)
                infos.append(info)
            epochs += moves
            if not moves and groups:
                break
        self._n_updates += 1
        self._check_finite()
        for name in {name for info in infos for name in info}:
            values = [float(info[name]) for info in infos if name in info]
            self.logger.record(f"train/{name}", sum(values) / len(values))
        if not groups:
            explained = explained_variance(buffer.values.ravel(), buffer.returns.ravel())
            self.logger.record("train/explained_variance", explained)
        self.logger.record("train/actor_epochs", epochs)

    def _critic_step(self, batch: ChainSamples) -> Info:
        """One step of V(s) towards the returns."""
        loss = F.mse_loss(self.values(self.policy.context(batch.observations)), batch.returns)
        return {"value_loss": loss.detach(), "critic_grad_norm": self.critic_descent.step(loss)}

    def _actor_step(self, batch: ChainSamples) -> Info:
        """One step of the flow, unless the policy has moved too far already."""
        config, policy = self.config, self.policy
        spread, mean = torch.std_mean(batch.advantages, correction=0)
        if config.group_size is None:  # else they are standardised already
            batch = batch._replace(advantages=(batch.advantages - mean) / (spread + 1e-8))
        log_prob, entropy = policy.log_prob(policy.context(batch.observations), batch.chains)
        loss, info = policy_loss(log_prob, entropy, batch, config)
        if config.target_kl is None or info["approx_kl"] <= config.target_kl:
            info["actor_grad_norm"] = self.actor_descent.step(loss)
        return info


show_hyperparameters(FlowPPO, FlowPPO.__init__)
