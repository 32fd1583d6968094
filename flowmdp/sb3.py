"""Stable-Baselines3 on flow chains: a VecEnv over the vectorised environment, and right discounts.

Single flow environments need neither: SB3 wraps them by itself. The replay buffer is for every
off-policy algorithm, on single and on vectorised flow environments:

    SAC("MlpPolicy", env, replay_buffer_class=FlowReplayBuffer,
        replay_buffer_kwargs={"gamma": 0.99})
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from flowmdp.arguments import check_numbers
from flowmdp.errors import ConfigurationError
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
