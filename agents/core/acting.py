"""Acting: whole chains from noise to action, for the robot as it is and for the flow MDP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from flowmdp.agents.core.critics import Critic
from flowmdp.agents.core.inputs import rows
from flowmdp.agents.core.policy import FlowPolicy
from flowmdp.agents.core.precision import lean_kernels
from flowmdp.arguments import check_choice, check_integers
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.solver import integrate
from flowmdp.mdp.spec import FlowSpec
from flowmdp.robot import RobotInterface

Array = NDArray[np.float32]
OPTIONS = ("n_steps", "solver", "best_of")
State = tuple[NDArray[Any], ...] | None


class OuterPolicy:
    """A flow policy as a policy for the outer environment, with SB3's `predict`.

    With chunks a chain plans the next h actions; `predict` hands them out one by one, and its state
    keeps the rest of the plan.

    Args:
        agent: Whose normaliser, noise generator and flow steps are used.
        field: The velocity field to follow.
        replan: Actions of a plan that are executed before the next is made, 1 .. h; None executes
            all h, open loop.
        **options: Of the agent's `act`: n_steps, solver and, where there is a critic, best_of.

    Raises:
        ConfigurationError: For another option, or `replan` out of range.
    """

    def __init__(
        self, agent: Acting, field: nn.Module, replan: int | None = None, **options: Any
    ) -> None:
        for name in options:
            check_choice(OPTIONS, option=name)
        chunk = agent.spec.chunk
        self.replan = chunk if replan is None else replan
        check_integers(1, chunk, replan=self.replan)
        self.agent, self.field, self.options = agent, field, options

    def predict(
        self,
        observation: Any,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """The robot's actions, in its own units, for its observations.

        Args:
            observation: One or a batch, in the robot's own space (a Dict too) or flat, shape
                (observation_dim,) or (n, observation_dim); see `flowmdp.robot`.
            state: What the last call returned: with chunks the plans and how much of them is
                executed; previous actions where the flow state includes them. None, also where
                the last call returned more, begins new plans.
            episode_start: Where an episode begins, shape (n,).
            deterministic: Start the chain at zero noise instead of Gaussian noise.

        Returns:
            Actions of the observations' batch shape, and the new state.

        Raises:
            ConfigurationError: For an observation of another structure or shape, or a state of
                another number of robots or another agent.
        """
        robot, spec = self.agent.robot, self.agent.spec
        if isinstance(observation, Tensor):
            observation = observation.detach().cpu().numpy()
        array = robot.flatten(observation)
        batch = np.atleast_2d(array)
        n, dim = len(batch), spec.robot_action_dim
        self._check_state(state, n)
        begins = np.ones(n, np.bool_) if state is None else np.zeros(n, np.bool_)
        if episode_start is not None:
            begins = begins | np.asarray(episode_start)
        previous = None
        if spec.include_previous_action and state is not None:
            previous = np.where(begins[:, None], 0.0, state[-1])
        kept: tuple[NDArray[Any], ...] = ()
        if spec.chunk == 1:
            actions = self._plan(batch, previous, deterministic)
        else:
            if state is None:
                state = (np.zeros((n, spec.chunk, dim), np.float32), np.zeros(n, np.intp))
            plans, done = state[0].copy(), np.where(begins, self.replan, state[1])
            if (due := done >= self.replan).any():
                seen = None if previous is None else previous[due]
                plans[due] = self._plan(batch[due], seen, deterministic).reshape(
                    -1, *plans[0].shape
                )
                done[due] = 0
            actions, kept = plans[np.arange(n), done], (plans, done + 1)
        if spec.include_previous_action:
            kept += (np.concatenate([actions, np.ones_like(actions[:, :1])], axis=1),)
        return robot.to_robot(actions[0] if array.ndim == 1 else actions), kept or state

    def _check_state(self, state: Any, n: int) -> None:
        """Raise ConfigurationError for a state that `predict` did not return for n robots."""
        spec, shapes = self.agent.spec, list[tuple[int, ...]]()
        if spec.chunk > 1:
            shapes += [(n, spec.chunk, spec.robot_action_dim), (n,)]
        if spec.include_previous_action:
            shapes.append((n, spec.robot_action_dim + 1))
        if state is None or not shapes:
            return
        found = [np.shape(part) for part in state] if isinstance(state, tuple) else None
        if found != shapes:
            raise ConfigurationError(
                f"state has arrays of shapes {found}, {n} robots of this agent have {shapes}: pass "
                "what the last call returned, or None for new plans"
            )

    def _plan(self, batch: Array, previous: Array | None, deterministic: bool) -> Array:
        """Whole chains: the next actions, shape (n, action_dim), in [-1, 1].

        From zero noise there is one chain, whatever `best_of`.
        """
        noise, options = None, self.options
        if deterministic:
            noise = np.zeros((len(batch), self.agent.spec.action_dim), np.float32)
            options = {**options, "best_of": 1}
        return self.agent.act(batch, noise=noise, previous=previous, field=self.field, **options)


class Acting(BaseAlgorithm):
    """What an agent does with a trained policy; `FlowAlgorithm` makes it learn."""

    policy: FlowPolicy
    spec: FlowSpec
    robot: RobotInterface
    """The robot's own spaces, in which `outer_policy` acts."""
    critic: Critic
    """Set by the algorithms that have one."""
    act_generator: torch.Generator
    acting: Mapping[str, Any] = {}
    """Options of `outer_policy` where none are given."""
    only_flow_steps: ClassVar[int | None] = None
    """The flow steps that the algorithm needs; None where any number will do."""

    @classmethod
    def check_flow_steps(cls, flow_steps: int) -> None:
        """Raise ConfigurationError for flow steps in which the algorithm cannot act."""
        if cls.only_flow_steps not in (None, flow_steps):
            raise ConfigurationError(
                f"{cls.__name__} acts in flow_steps={cls.only_flow_steps}, not {flow_steps}: make "
                f"the environment with flow_steps={cls.only_flow_steps} (--flow-steps "
                f"{cls.only_flow_steps})"
            )

    def behavior_field(self) -> nn.Module:
        """The cloned behaviour u_v.

        Raises:
            ConfigurationError: If the algorithm clones none.
        """
        raise ConfigurationError(f"{type(self).__name__} has no behaviour flow")

    def predict(
        self,
        observation: Any,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """The action for a flow observation, or for a robot's; their widths tell them apart.

        Args:
            observation: A flow observation, (flow_obs_dim,), gets a flow action, in [-1, 1]; a
                robot's, in its own space or flat, gets the whole chain's action, in the robot's own
                units. Both may be batched.
            state: See `OuterPolicy.predict`.
            episode_start: See `OuterPolicy.predict`.
            deterministic: For a robot's observations: start the chain at zero noise. Without effect
                on the flow environment, which draws x_0: the velocity field is deterministic.

        Returns:
            Actions, and the new state.
        """
        nested = isinstance(observation, Mapping | tuple)
        if nested or np.shape(observation)[-1:] != (self.spec.flow_observation_dim,):
            return self.outer_policy().predict(observation, state, episode_start, deterministic)
        return self.policy.predict(observation, state, episode_start, deterministic)

    @torch.no_grad()
    def chain(
        self,
        observations: Array,
        noise: Array | None = None,
        previous: Array | None = None,
        n_steps: int | None = None,
        solver: str = "euler",
        field: nn.Module | None = None,
    ) -> Array:
        """The points of whole chains, noise first, the action before clipping last.

        Args:
            observations: The robot's, shape (n, observation_dim).
            noise: x_0, shape (n, action_dim); None draws what the flow environment would.
            previous: Previous actions and flags, shape (n, robot_action_dim + 1), where the flow
                state includes them; None means the start of an episode.
            n_steps: Flow steps, None for the environment's.
            solver: "euler", "midpoint" or "heun".
            field: The velocity field to follow, None for the acting one.

        Returns:
            Shape (n_steps + 1, n, action_dim), float32.

        Raises:
            ConfigurationError: If an agent of one step is asked for more, or for a solver.
        """
        only, spec, policy = self.only_flow_steps, self.spec, self.policy
        if only is not None and (n_steps not in (None, only) or solver != "euler"):
            raise ConfigurationError(
                f"{type(self).__name__} acts in {only} step: leave out flow steps and solver"
            )
        device = self.device
        states = rows("observations", observations, spec.observation_dim, device)
        shape = len(states), spec.action_dim
        if noise is None:
            x_0 = torch.randn(shape, generator=self.act_generator, device=device)
            x_0 = spec.noise_scale * x_0
        else:
            x_0 = rows("noise", noise, spec.action_dim, device, len(states))
        context = policy.normalizer(states)
        if spec.include_previous_action:
            width = spec.robot_action_dim + 1
            seen = np.zeros((len(x_0), width)) if previous is None else previous
            flagged = rows("previous", seen, width, device, len(states))
            context = torch.cat([context, flagged], 1)
        steps, asked = spec.flow_steps if n_steps is None else n_steps, list[Tensor]()
        acting = policy.ema if field is None else field

        def velocity(x_t: Tensor, t: float) -> Tensor:
            asked.append(x_t)
            result: Tensor = acting(context, x_t, t)
            return result

        with lean_kernels(len(x_0)):
            x_1 = integrate(velocity, x_0, steps, solver)
        evaluations = len(asked) // steps  # a second-order solver asks twice per step
        points: Array = torch.stack([*asked[::evaluations], x_1]).cpu().numpy()
        return points

    def act(
        self,
        observations: Array,
        n_steps: int | None = None,
        solver: str = "euler",
        noise: Array | None = None,
        previous: Array | None = None,
        field: nn.Module | None = None,
        best_of: int = 1,
    ) -> Array:
        """The robot's actions by whole chains, shape (n, action_dim), in [-1, 1].

        Of a chunk the first action comes first: reshape(n, chunk, -1) takes them apart.

        Arguments and errors are those of `chain`, and `best_of`, at least 1: so many chains for
        every observation, of whose actions the critic's favourite is taken; noise then has n *
        best_of rows.
        """
        check_integers(1, best_of=best_of)
        if best_of > 1:
            observations = np.repeat(observations, best_of, axis=0)
            previous = None if previous is None else np.repeat(previous, best_of, axis=0)
        points = self.chain(observations, noise, previous, n_steps, solver, field)
        actions: Array = points[-1].clip(-1, 1)
        if best_of == 1:
            return actions
        values = self.q_values(observations, actions).reshape(-1, best_of)
        chains = actions.reshape(-1, best_of, self.spec.action_dim)
        best: Array = chains[np.arange(len(values)), values.argmax(1)]
        return best

    @torch.no_grad()
    def q_values(self, observations: Array, actions: Array) -> Array:
        """The critic's Q(s, a) in scaled reward units, shape (n,); rows are state-action pairs.

        Raises:
            ConfigurationError: If the algorithm has no critic.
        """
        if not hasattr(self, "critic"):
            raise ConfigurationError(
                f"{type(self).__name__} has no critic to choose by: leave best_of out"
            )
        spec, device = self.spec, self.device
        states = rows("observations", observations, spec.observation_dim, device)
        chosen = rows("actions", actions, spec.action_dim, device, len(states))
        values: Array = self.critic.values(self.policy.normalizer(states), chosen).cpu().numpy()
        return values

    def set_noise_scale(self, noise_scale: float) -> None:
        """Act from noise of another standard deviation than the one trained with; 0 for none.

        Raises:
            ConfigurationError: If it is negative or not finite.
        """
        self.spec = self.policy.spec = dataclasses.replace(self.spec, noise_scale=noise_scale)

    def outer_policy(self, **options: Any) -> OuterPolicy:
        """The agent as a policy for the bare robot; see `OuterPolicy` for the options.

        Where the critic's target takes the best of N actions, N is what `best_of` is if not given.
        """
        return OuterPolicy(self, self.policy.ema, **{**self.acting, **options})

    def behavior_policy(self, **options: Any) -> OuterPolicy:
        """The cloned behaviour as a policy for the bare robot.

        Raises:
            ConfigurationError: If the algorithm clones none.
        """
        return OuterPolicy(self, self.behavior_field(), **options)
