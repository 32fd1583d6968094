"""Stable-Baselines3 on flow chains: VecEnvs, of recorded states and of robots, and right discounts.

Single flow environments need neither: SB3 wraps them by itself. The replay buffer is for every
off-policy algorithm, on single and on vectorised flow environments:

    SAC("MlpPolicy", env, replay_buffer_class=FlowReplayBuffer,
        replay_buffer_kwargs={"gamma": 0.99})
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from flowmdp.arguments import check_integers, check_numbers
from flowmdp.errors import ConfigurationError, RobotError
from flowmdp.robots import Episode, MakeEnv, Robots, Step
from flowmdp.vector import FlowMDPVectorEnv

Array = NDArray[Any]
Infos = list[dict[str, Any]]
Indices = None | int | Iterable[int]


class FlowVecEnv(VecEnv):
    """A `FlowMDPVectorEnv` as an SB3 VecEnv, which resets a chain in the step that ends it.

    Args:
        env: The vectorised flow environment, with `autoreset_mode="SameStep"`; of any backend, SB3
            gets NumPy arrays.

    Raises:
        ConfigurationError: For another environment or autoreset mode.
    """

    def __init__(self, env: FlowMDPVectorEnv) -> None:
        if not isinstance(env, VectorEnv) or not hasattr(env, "flow_spec"):
            raise ConfigurationError(
                f"env is a {type(env).__name__}: pass a FlowMDPVectorEnv; SB3 wraps single flow "
                "environments by itself"
            )
        if env.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ConfigurationError(
                f"SB3 resets in the same step, this environment by {env.autoreset_mode.value}: "
                "make it with autoreset_mode='SameStep'"
            )
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Array:
        """Start all chains, with the seeds and the options (of each chain) that were set before."""
        options = {
            name: np.stack([chain[name] for chain in self._options]) for name in self._options[0]
        }
        seeds: Any = self._seeds if any(seed is not None for seed in self._seeds) else None
        if self.env.backend == "torch":  # one generator draws for all chains
            seeds = self._seeds[0]
        observations, _ = self.env.reset(seed=seeds, options=options)
        self._reset_seeds()
        self._reset_options()
        first: Array = _on_host(observations)
        return first

    def step_async(self, actions: Array) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Array, Array, Array, Infos]:
        """One flow step of every chain: observations, rewards, dones, one info per chain."""
        observations, rewards, dones, _, infos = _on_host(self.env.step(self._actions))
        final = infos.pop("final_info", {})
        singles = [
            {"TimeLimit.truncated": False, "terminal_observation": last} if done else {}
            for done, last in zip(dones, infos.pop("final_obs", dones), strict=True)
        ]
        for source in (infos, final):
            for name in source:
                if not name.startswith("_"):
                    for i in np.flatnonzero(source[f"_{name}"]):
                        singles[i][name] = source[name][i]
        return observations, rewards.astype(np.float32), dones, singles

    def close(self) -> None:
        """Close the vectorised environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """The attribute, which all chains share, once per chain asked for."""
        value = getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Not possible, a ConfigurationError: chains share their settings."""
        raise ConfigurationError(f"chains share {attr_name}: make another environment to change it")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the vectorised environment once; its answer, once per chain."""
        answer = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [answer for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Indices = None) -> list[bool]:
        """Whether the vectorised environment has such a wrapper, once per chain asked for."""
        layer: Any = self.env
        while isinstance(layer, VectorWrapper) and not isinstance(layer, wrapper_class):
            layer = layer.env
        return [isinstance(layer, wrapper_class) for _ in self._get_indices(indices)]


def _on_host(values: Any) -> Any:
    """Results of a step with every tensor as a NumPy array."""
    if isinstance(values, tuple):
        return tuple(map(_on_host, values))
    if isinstance(values, dict):
        return {name: _on_host(value) for name, value in values.items()}
    return values.cpu().numpy() if isinstance(values, Tensor) else values


def discounted(reward: float, info: Mapping[str, Any], gamma: float) -> tuple[float, float]:
    """What the end of a chain is worth at its start, and the discount of all that follows.

    Args:
        reward: Of the step.
        info: Its info; of a chunk, `reward="return"` becomes sum_i gamma ** i r_i.
        gamma: Discount per outer step.

    Returns:
        The reward, and gamma ** n for a chunk of which n actions ran.
    """
    if "reward_return" in info and "outer_rewards" in info:
        paid = info["outer_rewards"]
        reward = reward - np.dot(1 - gamma ** np.arange(len(paid)), paid)
    return reward, gamma ** info.get("executed_steps", 1)


class RobotVecEnv(VecEnv):
    """Robots as an SB3 VecEnv that can be brought back to where it was.

    Every episode of every robot starts from a seed of its own, which follows from `seed`, the
    robot's number and the episode's. `state` holds the seeds and the actions of the episodes that
    are under way, and `restore` plays them again: where a robot does the same from the same seed,
    what comes next is what would have come. At an episode's end `info["episode"]` has its return
    "r" and its length "l", as from SB3's Monitor.

    Args:
        make_env: Makes a robot that observes and acts in flat Boxes: with chunks,
            `gym.make(id, decision="action", chunk=h)`.
        num_envs: How many.
        seed: Of all episodes, in [0, 2**32).
        place: Where they are: `Robots` here, `functools.partial(ProcessRobots, processes=2)` in
            processes of their own.

    Raises:
        RobotError: When a robot raises an error, or gives numbers that are not finite: which, and
            at which step of which episode. What `state` gives is as before that step.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        num_envs: int = 8,
        seed: int = 0,
        place: Callable[..., Robots] = Robots,
    ) -> None:
        check_integers(1, num_envs=num_envs)
        self.robots = place(make_env, tells=None)
        self.robots.open(range(num_envs))
        env = self.robots.env
        super().__init__(num_envs, env.observation_space, env.action_space)
        self.seed(seed)

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Choose the seeds of the episodes that begin at the next `reset`; None draws them."""
        if seed is not None:
            check_integers(0, 2**32 - 1, seed=seed)
        self._entropy = secrets.randbits(32) if seed is None else int(seed)
        self._begun = np.zeros(self.num_envs, np.int64)
        self._taken: list[list[Array]] = [[] for _ in range(self.num_envs)]
        self._paid = np.zeros(self.num_envs)
        return [self._seed_of(i, 1) for i in range(self.num_envs)]

    def _seed_of(self, number: int, episode: int) -> int:
        source = np.random.SeedSequence((self._entropy, number, episode))
        return int(source.generate_state(1)[0])

    def reset(self) -> Array:
        """Begin an episode of every robot."""
        first = self._begin(range(self.num_envs))
        return self._stacked(first)

    def _begin(self, numbers: Iterable[int]) -> dict[int, Any]:
        """Begin their next episodes."""
        seeds = {i: self._seed_of(i, int(self._begun[i]) + 1) for i in numbers}
        try:
            observations = self.robots.reset(seeds)
        except RobotError as error:
            if error.robot is None:
                raise
            raise RobotError(f"{error} (reset with seed {seeds[error.robot]})") from error
        for i in seeds:
            self._begun[i] += 1
            self._taken[i], self._paid[i] = [], 0.0
        return observations

    def _stacked(self, observations: dict[int, Any]) -> Array:
        stacked = np.stack([observations[i] for i in range(self.num_envs)])
        return stacked.astype(self.observation_space.dtype, copy=False)

    def step_async(self, actions: Array) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = np.array(actions)

    def step_wait(self) -> tuple[Array, Array, Array, Infos]:
        """One action of every robot; who ends an episode begins the next."""
        try:
            steps = self.robots.step(dict(enumerate(self._actions)))
        except RobotError as error:
            if error.robot is None:
                raise
            number, episode = error.robot, int(self._begun[error.robot])
            raise RobotError(
                f"{error} (step {len(self._taken[number]) + 1} of the episode with seed "
                f"{self._seed_of(number, episode)})"
            ) from error
        infos = [self._info(i, steps[i]) for i in range(self.num_envs)]
        observations = {i: step.observation for i, step in steps.items()}
        observations |= self._begin([i for i, step in steps.items() if step.ended])
        for i, step in steps.items():
            if not step.ended:
                self._taken[i].append(self._actions[i])
                self._paid[i] += step.reward
        rewards = np.array([steps[i].reward for i in range(self.num_envs)], np.float32)
        dones = np.array([steps[i].ended for i in range(self.num_envs)])
        return self._stacked(observations), rewards, dones, infos

    def _info(self, i: int, step: Step) -> dict[str, Any]:
        info = {**step.info, "TimeLimit.truncated": step.truncated and not step.terminated}
        if step.ended:
            info["terminal_observation"] = step.observation
            info["episode"] = {"r": self._paid[i] + step.reward, "l": len(self._taken[i]) + 1}
        return info

    def state(self) -> dict[str, Array]:
        """Arrays from which `restore` goes on."""
        shape = (-1, *(self.action_space.shape or ()))
        taken = {f"actions/{i}": np.reshape(one, shape) for i, one in enumerate(self._taken)}
        numbers = {"seed": np.array(self._entropy), "episodes": self._begun.copy()}
        return numbers | {name: one.astype(np.float32) for name, one in taken.items()}

    def restore(self, state: dict[str, Array]) -> Array:
        """Bring the robots back to where `state` was asked for; returns their observations.

        Raises:
            ConfigurationError: If it is of another number of robots.
            RobotError: If a robot does not do the same again.
        """
        if len(state["episodes"]) != self.num_envs:
            raise ConfigurationError(
                f"the state is of {len(state['episodes'])} robots, there are {self.num_envs}: take "
                "as many"
            )
        self.seed(int(state["seed"]))
        self._begun = np.array(state["episodes"], np.int64)
        self._taken = [[*state[f"actions/{i}"]] for i in range(self.num_envs)]
        episodes = {
            i: Episode(self._seed_of(i, int(self._begun[i])), taken)
            for i, taken in enumerate(self._taken)
        }
        reached = self.robots.replay(episodes)
        self._paid = np.array([reached[i][1] for i in range(self.num_envs)])
        return self._stacked({i: observation for i, (observation, _) in reached.items()})

    def close(self) -> None:
        """Close the robots."""
        self.robots.close()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """An attribute of every robot asked for."""
        return self.env_method("get_wrapper_attr", attr_name, indices=indices)

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of these robots."""
        self.env_method("set_wrapper_attr", attr_name, value, indices=indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """What a method of every robot asked for returns."""
        call = method_name, method_args, method_kwargs
        answers = self.robots.call({i: call for i in self._get_indices(indices)})
        return [answers[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Indices = None) -> list[bool]:
        """Whether the robots, which are made alike, have such a wrapper."""
        wrapped = is_wrapped(self.robots.env, wrapper_class)
        return [wrapped for _ in self._get_indices(indices)]


class FlowReplayBuffer(ReplayBuffer):
    """A replay buffer that discounts outer time: 1 inside a chain, gamma at its end.

    With one gamma for every step, `flow_steps` of them make gamma ** flow_steps per outer step
    (0.904 for 0.99 at 10). SB3's SAC, TD3 and DQN (2.7 and later) use the discounts of this
    buffer's samples in place of their own `gamma`.

    A chunk of which n actions ran is discounted by gamma ** n, also where its episode ended early,
    and `reward="return"` is stored as sum_i gamma ** i r_i over these (`info["outer_rewards"]`).

    Args:
        *args: Those of SB3's `ReplayBuffer`.
        gamma: Discount per outer step, in [0, 1].
        flow_gamma: Discount per flow step inside a chain, in [0, 1]; 1 [Decision Flow].
        **kwargs: As `*args`.

    Raises:
        ConfigurationError: For a discount outside [0, 1], `optimize_memory_usage`, or what
            `ReplayBuffer` refuses.
    """

    def __init__(
        self, *args: Any, gamma: float = 0.99, flow_gamma: float = 1.0, **kwargs: Any
    ) -> None:
        check_numbers("[0, 1]", gamma=gamma, flow_gamma=flow_gamma)
        if kwargs.get("optimize_memory_usage"):
            raise ConfigurationError("FlowReplayBuffer does not support optimize_memory_usage")
        try:
            super().__init__(*args, **kwargs)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise ConfigurationError(f"ReplayBuffer refuses the arguments: {reason}") from error
        self.gamma, self.flow_gamma = gamma, flow_gamma
        self.discounts = np.ones((self.buffer_size, self.n_envs), np.float32)

    def add(
        self, obs: Array, next_obs: Array, action: Array, reward: Array, done: Array, infos: Infos
    ) -> None:
        """Store one transition per environment; a chain ends where an action was executed."""
        reward = np.array(reward, np.float32)
        for i, info in enumerate(infos):
            self.discounts[self.pos, i] = self.flow_gamma
            if "executed_action" in info:
                paid = discounted(reward[i], info, self.gamma)
                reward[i], self.discounts[self.pos, i] = paid
        super().add(obs, next_obs, action, reward, done, infos)

    def _get_samples(
        self, batch_inds: NDArray[np.intp], env: VecNormalize | None = None
    ) -> ReplayBufferSamples:
        """As SB3's, with discounts."""
        env_inds = np.random.randint(self.n_envs, size=len(batch_inds))  # noqa: NPY002  (as SB3)
        rows = (batch_inds, env_inds)
        ended = self.dones[rows] * (1 - self.timeouts[rows])
        arrays = (
            self._normalize_obs(self.observations[rows], env),
            self.actions[rows],
            self._normalize_obs(self.next_observations[rows], env),
            ended.reshape(-1, 1),
            self._normalize_reward(self.rewards[rows].reshape(-1, 1), env),
            self.discounts[rows].reshape(-1, 1),
        )
        return ReplayBufferSamples(*map(self.to_torch, arrays))
