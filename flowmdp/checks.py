"""Contract testers for users who write their own flow environment or agent.

    from flowmdp.checks import check_agent, check_flow_env
    check_flow_env(MyFlowEnv())
    check_agent(MyAgent("MlpPolicy", env))

Each raises an AssertionError that says which part of the contract is broken, and returns nothing.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.utils.env_checker import check_env as check_gymnasium_env
from numpy.typing import NDArray

from flowmdp.errors import FlowMDPError
from flowmdp.mdp.spec import FlowSpec
from flowmdp.mdp.transition import flow_step, flow_time

Float = NDArray[np.float32]
FlowEnv = gym.Env[Float, Float]


def check_flow_env(env: FlowEnv, chains: int = 3, seed: int = 0) -> None:
    """Check that an environment is a flow MDP as `FlowMDPEnv` specifies it.

    Runs Gymnasium's and Stable-Baselines3's `check_env` (whose advice against unbounded
    observations is ignored: noise is unbounded), then plays chains against `flow_step`.

    Args:
        env: The environment, wrapped or not; it is left in the middle of an episode.
        chains: Number of chains to play.
        seed: Of the resets and the actions.

    Raises:
        AssertionError: Where the contract is broken.
    """
    from stable_baselines3.common.env_checker import check_env as check_sb3_env

    assert env.has_wrapper_attr("flow_spec"), "the environment has no attribute flow_spec"
    spec: FlowSpec = env.get_wrapper_attr("flow_spec")
    assert isinstance(spec, FlowSpec), f"flow_spec is {spec!r}, no FlowSpec"
    assert env.observation_space == spec.space(), (
        f"observation_space is {env.observation_space}, not [s, x_t, ...] as {spec} has it"
    )
    assert env.action_space == Box(-1.0, 1.0, (spec.action_dim,), np.float32), (
        f"action_space is {env.action_space}, not Box(-1, 1, ({spec.action_dim},), float32)"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*infinity. This is probably too")
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        warnings.filterwarnings("ignore", message=".*Not able to test alternative render modes")
        check_gymnasium_env(env.unwrapped, skip_render_check=True, skip_close_check=True)
        check_sb3_env(env, warn=True, skip_render_check=True)
    _check_refusals(env.unwrapped, spec)
    first = _play(env, spec, chains, seed)
    second = _play(env, spec, chains, seed)
    assert np.array_equal(first, second), "the same seed and actions gave other observations"


def _check_refusals(env: FlowEnv, spec: FlowSpec) -> None:
    """Actions of another length or with NaN get a FlowMDPError."""
    env.reset(seed=0)
    size = spec.action_dim
    for action in (np.zeros(size + 1, np.float32), np.full(size, np.nan, np.float32)):
        try:
            env.step(action)
        except FlowMDPError:
            continue
        raise AssertionError(f"step accepted the action {action}")


def _play(env: FlowEnv, spec: FlowSpec, chains: int, seed: int) -> Float:
    """Play whole chains, check every step against the transition, return the observations."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(spec.action_dim, np.float32)
    observation, _ = env.reset(seed=seed, options={"noise": noise})
    assert np.array_equal(observation[spec.point], noise), "options['noise'] is not x_0"
    observations = [observation]
    for _ in range(chains):
        observation, over = _play_chain(env, spec, rng, observation)
        observations.append(observation)
        if over:
            observation, _ = env.reset()
            observations.append(observation)
    return np.stack(observations)


def _play_chain(
    env: FlowEnv, spec: FlowSpec, rng: np.random.Generator, observation: Float
) -> tuple[Float, bool]:
    """One chain from its first observation; returns the last observation, and whether it ended."""
    flow_steps, scale = spec.flow_steps, np.float32(spec.velocity_scale)
    settings = env.get_wrapper_attr("settings") if env.has_wrapper_attr("settings") else None
    # whether the next point follows from the action: no behaviour velocity, no noise
    plain = settings is None or (settings.action_mode == "velocity" and not settings.noise_std)
    x_t, state = observation[spec.point], observation[spec.state]
    for k in range(flow_steps):
        time = np.float32(flow_time(k, flow_steps))
        assert (observation[spec.t] == time).all(), "t is not k / T"
        assert np.array_equal(observation[spec.state], state), "s changed inside a chain"
        moved = np.array_equal(observation[spec.point], x_t)
        assert moved or not plain, "x_t did not move by velocity / T"
        action = rng.uniform(-0.3, 0.3, spec.action_dim).astype(np.float32)
        x_t = flow_step(x_t, action * scale, flow_steps)
        before = observation.copy()
        after, reward, terminated, truncated, info = env.step(action)
        assert np.array_equal(observation, before), "step changed the observation it gave before"
        observation = after
        _check_step(reward, terminated, truncated, info)
        assert not (terminated or truncated) or k == flow_steps - 1, "ended inside a chain"
    executed = info["executed_action"]
    assert np.array_equal(executed, np.clip(x_t, -1, 1)) or not plain, (
        "info['executed_action'] is not x_1, clipped"
    )
    assert np.abs(executed).max() <= 1, "info['executed_action'] leaves [-1, 1]"
    assert 0 <= info["clipped_fraction"] <= 1, "info['clipped_fraction'] is no fraction"
    return observation, terminated or truncated


def _check_step(reward: Any, terminated: Any, truncated: Any, info: dict[str, Any]) -> None:
    assert isinstance(reward, float), f"the reward is a {type(reward)}, not a float"
    assert isinstance(terminated, bool), f"terminated is a {type(terminated)}, not a bool"
    assert isinstance(truncated, bool), f"truncated is a {type(truncated)}, not a bool"
    terms = [value for name, value in info.items() if name.startswith("reward_")]
    assert np.isclose(sum(terms), reward), f"the reward {reward} is not the sum of {terms}"


def check_agent(agent: Any, env: FlowEnv, seed: int = 0, tolerance: float = 1e-4) -> None:
    """Check that an agent plays flow environments and robots as flowmdp's own agents do.

    The agent is saved to a temporary file and loaded again; it is not trained.

    Args:
        agent: The agent: `predict`, `act`, `chain`, `outer_policy`, `save` and `load`.
        env: A flow environment of the agent's task.
        seed: Of observations and noise.
        tolerance: Largest difference allowed between two ways to the same action.

    Raises:
        AssertionError: Where the contract is broken.
    """
    from stable_baselines3.common.base_class import BaseAlgorithm

    is_algorithm = isinstance(agent, BaseAlgorithm)
    assert is_algorithm, "the agent is no stable_baselines3 BaseAlgorithm"
    spec: FlowSpec = env.get_wrapper_attr("flow_spec")
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((3, spec.action_dim), np.float32)
    start, _ = env.reset(seed=seed, options={"noise": noise[0]})
    states = np.tile(start[spec.state], (3, 1))
    single, _ = agent.predict(start, deterministic=True)
    batch, _ = agent.predict(start[None], deterministic=True)
    assert env.action_space.contains(single), f"predict answers {single}, not a flow action"
    assert np.allclose(batch, single[None], atol=1e-5), "predict differs on a batch of one"
    width = spec.context_dim - spec.observation_dim  # of a_{n-1} and its flag
    previous = np.zeros((3, width), np.float32) if width else None
    actions = agent.act(states, noise=noise, previous=previous)
    assert actions.shape == (3, spec.action_dim), f"act answers shape {actions.shape}"
    assert actions.dtype == np.float32 and np.abs(actions).max() <= 1, "act leaves [-1, 1]"
    chain = agent.chain(states, noise=noise, previous=previous)
    expected = (spec.flow_steps + 1, *noise.shape)
    assert chain.shape == expected, f"chain answers shape {chain.shape}, not {expected}"
    assert np.allclose(chain[0], noise), "chain does not start at the noise"
    assert np.allclose(np.clip(chain[-1], -1, 1), actions, atol=tolerance), "chain is not act"
    played = _play_agent(agent, env, start)
    assert np.allclose(played, actions[0], atol=tolerance), (
        f"predict on the flow environment executes {played}, act says {actions[0]}"
    )
    outer, _ = agent.outer_policy().predict(states[0], deterministic=True)
    assert outer.shape == (spec.robot_action_dim,), f"outer_policy answers shape {outer.shape}"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "agent.zip"
        agent.save(path)
        again = type(agent).load(path, env=env)
    assert np.allclose(again.act(states, noise=noise, previous=previous), actions), (
        "the agent acts otherwise after save and load"
    )


def _play_agent(agent: Any, env: FlowEnv, observation: Float) -> Float:
    """The action that one chain of the agent executes in the flow environment."""
    info: dict[str, Any] = {}
    while "executed_action" not in info:
        action, _ = agent.predict(observation, deterministic=True)
        observation, _, _, _, info = env.step(action)
    executed: Float = info["executed_action"]
    return executed
