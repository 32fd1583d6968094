"""RQL: reversal Q-learning, the closest relative of Decision Flow, a baseline.

Source: Oberai, Park and Levine 2026, "Reversal Q-Learning", arXiv:2606.17551. Like Decision Flow it
takes every flow step as a decision; its chains come from the data instead of roll-outs. The
flow is followed backward from the data's action a to the points x_k that lead to it, so the return
of each point is known without noise:

    value    V(s, x_k, t_k), k = 0..flow_steps, regresses to r + gamma mask V'(s', z, 0), z Gaussian
    policy   descends alpha ||u_theta - (a - x_0)||^2 (flow matching)
             - flow_steps V(s, x_k + u_theta / flow_steps, t_{k+1}) / mean |V|

What is ours, the paper's abstract and project page being all that was at hand: backward Euler steps
read the field at the left end of each step, as forward ones do; the policy starts as the behaviour
flow and V, for the first `value_steps`, regresses to r + gamma mask V_data(s') of a critic that was
fitted to the data's returns, while the policy waits; the factor flow_steps and the division by
mean |V|, which make alpha independent of both; noise of 0.3 instead of 1, see
`DecisionFlow.environment`. Reversed chains begin where the data lead, which is noise of about 1: at
the starts it acts from, V and the policy have seen the inside of that cloud only.

Logged (train/):
    value_loss, value_mean: of V.
    policy_loss, bc_loss, grad_norm: of the policy, 0 while it waits.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowmdp.agents.core.actor_critic import ActorCritic
from flowmdp.agents.core.batch import Batch
from flowmdp.agents.core.critics import Info
from flowmdp.agents.core.networks import Descent, EnsembleMlp, frozen_copy, polyak
from flowmdp.agents.flow_bc import flow_matching_loss
from flowmdp.arguments import check_integers, check_numbers
from flowmdp.mdp.path import get_path
from flowmdp.mdp.transition import flow_step, flow_time

TAU = 0.005  # Polyak rate of V'


@torch.no_grad()
def reverse(field: nn.Module, contexts: Tensor, x_1: Tensor, flow_steps: int) -> Tensor:
    """Points of the chains that end at x_1, shape (flow_steps + 1, batch, action_dim), x_0 first.

    Args:
        field: The velocity field to follow backward.
        contexts: Shape (batch, context_dim).
        x_1: Actions, shape (batch, action_dim).
        flow_steps: Number of steps.
    """
    points = [x_1]
    for k in reversed(range(flow_steps)):
        velocity = field(contexts, points[-1], flow_time(k, flow_steps))
        points.append(flow_step(points[-1], -velocity, flow_steps))
    return torch.stack(points[::-1])


def value_loss(value: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error of every member of V, summed over members.

    Args:
        value: V of [context, x_t, t].
        inputs: Shape (batch, context_dim + action_dim + 1).
        targets: Shape (batch,).
    """
    loss: Tensor = (value(inputs).squeeze(-1) - targets).square().mean(-1).sum()
    return loss


class RQL(ActorCritic):
    """Reversal Q-learning.

    Args:
        policy: "MlpPolicy".
        env: A flow environment or its id.
        learning_rate: Adam's, of the policy.
        alpha: Weight of flow matching.
        value_steps: Gradient steps at the start of `learn` in which only V learns [ours].
        pessimism: 0, the mean of the value networks, as in FQL.
        **kwargs: Of `ActorCritic`.

    Raises:
        ConfigurationError: If an argument is out of its range.
    """

    default_steps = 6_000
    environment: ClassVar[dict[str, Any]] = {"noise_scale": 0.3}

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float = 3e-4,
        *,
        alpha: float = 0.03,
        value_steps: int = 3_000,
        pessimism: float | None = 0.0,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        check_numbers("[0, inf)", alpha=alpha)
        check_integers(0, value_steps=value_steps)
        super().__init__(
            policy,
            env,
            learning_rate,
            pessimism=pessimism,
            _init_setup_model=False,
            **kwargs,
        )
        self.alpha, self.value_steps = alpha, value_steps
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        spec, policy = self.spec, self.policy
        self.descent = Descent(policy.field, self.learning_rate, 1.0, policy.ema, self.ema_rate)
        width = spec.context_dim + spec.action_dim + 1
        self.value = EnsembleMlp(width, 1, self.net_arch, self.critic_members, layer_norm=True).to(
            self.device
        )
        self.target_value = frozen_copy(self.value)
        self.value_descent = Descent(self.value, self.critic_learning_rate, 10.0)
        self.optimizers |= {"field": self.descent.adam, "value": self.value_descent.adam}

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"alpha": self.alpha, "value_steps": self.value_steps}
        return super().hyperparameters() | own

    def _modules(self) -> dict[str, nn.Module]:
        own = {"value": self.value, "target_value": self.target_value}
        return super()._modules() | own

    def _prepare(self) -> None:
        for module in (self.policy.field, self.policy.ema):
            module.load_state_dict(self.behavior.state_dict())

    def _update(self) -> Info:
        """One step of V on reversed chains, then one of the policy, at another step of each."""
        batch, flow_steps = self.sample(), self.spec.flow_steps
        with self.autocast():
            points = self.compiled(reverse)(
                self.policy.ema, batch.contexts, batch.actions, flow_steps
            )
        rows = torch.arange(len(batch.actions), device=self.device)
        info = self._evaluate(batch, points, rows % (flow_steps + 1), rows)
        if self._phase():
            waiting = torch.zeros((), device=self.device)
            return info | dict.fromkeys(("policy_loss", "bc_loss", "grad_norm"), waiting)
        return info | self._improve(batch, points, rows % flow_steps, rows)

    def _phase(self) -> bool:
        """Whether V still learns alone."""
        return self._n_updates < self.value_steps

    def _evaluate(self, batch: Batch, points: Tensor, steps: Tensor, rows: Tensor) -> Info:
        """V at the chains' points `steps`, (batch,)."""
        with torch.no_grad(), self.autocast():
            if self._phase():
                following = self.critic.v(batch.next_observations)[0, :, 0]
            else:
                z = self.starts_like(batch.actions)
                start = torch.cat([batch.next_contexts, z, torch.zeros_like(z[:, :1])], 1)
                following = self.critic.aggregate(self.target_value(start).squeeze(-1))
            targets = batch.rewards + self.gamma * batch.masks * following
        t = (steps / self.spec.flow_steps)[:, None]
        inputs = torch.cat([batch.contexts, points[steps, rows], t], 1)
        with self.autocast():
            loss = self.compiled(value_loss)(self.value, inputs, targets)
        self.value_descent.step(loss)
        polyak(self.value.parameters(), self.target_value.parameters(), TAU)
        return {"value_loss": loss.detach(), "value_mean": targets.mean()}

    def _improve(self, batch: Batch, points: Tensor, steps: Tensor, rows: Tensor) -> Info:
        """The policy at the chains' points `steps`, (batch,)."""
        x_0 = self.noise_like(batch.actions)
        t = torch.rand((len(x_0), 1), generator=self.generator, device=self.device)
        with self.autocast():
            loss, info = self.compiled(self.policy_loss)(batch, points[steps, rows], steps, x_0, t)
        return info | {"grad_norm": self.descent.step(loss)}  # type: ignore[no-any-return]

    def policy_loss(
        self, batch: Batch, x_k: Tensor, steps: Tensor, x_0: Tensor, t: Tensor
    ) -> tuple[Tensor, Info]:
        """Alpha times flow matching, minus V after the step from x_k; and what to log.

        Args:
            batch: Gives contexts and the actions that are cloned.
            x_k: Points on reversed chains, shape (batch, action_dim).
            steps: Their k, shape (batch,).
            x_0: Noise for flow matching, shape (batch, action_dim).
            t: Flow times for flow matching, shape (batch, 1).
        """
        field, flow_steps = self.policy.field, self.spec.flow_steps
        velocity = field(batch.contexts, x_k, (steps / flow_steps)[:, None])
        following = flow_step(x_k, velocity, flow_steps)
        t_next = ((steps + 1) / flow_steps)[:, None]
        following = torch.where(t_next == 1, following.clamp(-1, 1), following)
        values = self.value(torch.cat([batch.contexts, following, t_next], 1)).squeeze(-1)
        gain = self.critic.aggregate(values)
        bc = flow_matching_loss(field, batch.contexts, batch.actions, x_0, t, get_path(self.path))
        unit = gain.detach().abs().mean().clamp_min(1e-8)
        loss = self.alpha * bc - flow_steps * gain.mean() / unit
        return loss, {"policy_loss": loss.detach(), "bc_loss": bc.detach()}
