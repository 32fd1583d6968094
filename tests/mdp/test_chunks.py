"""Chunks of actions in the environments: one chain decides several of the robot's actions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from stable_baselines3.common.vec_env import DummyVecEnv

from flowmdp.checks import check_flow_env
from flowmdp.env import FlowMDPEnv
from flowmdp.errors import ConfigurationError, DatasetError, ResetNeededError
from flowmdp.latent_noise import LatentNoiseEnv
from flowmdp.sb3 import FlowReplayBuffer
from flowmdp.transitions import TransitionDataset
from flowmdp.vector import FlowMDPVectorEnv
from flowmdp.whole_chain import ActionEnv

STEPS = 2


class Counter(gym.Env[Any, Any]):
    """Counts its steps, remembers its actions, and ends after some of them."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, terminates_at: int = 0, render_mode: str | None = None) -> None:
        self.observation_space = Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = Box(-1, 1, (2,), np.float32)
        self.terminates_at, self.render_mode = terminates_at, render_mode
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.actions = []
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.actions.append(action)
        n = len(self.actions)
        over = n == self.terminates_at
        return np.full(1, n, np.float32), float(n), over, False, {"n": n}

    def render(self) -> Any:
        return np.full((4, 4, 3), len(self.actions), np.uint8)


def play_chain(env: Any, x_1: Any) -> Any:
    """One chain from zero noise that ends at x_1."""
    velocity = np.asarray(x_1, np.float32) / np.float32(env.unwrapped.flow_spec.velocity_scale)
    total = 0.0
    for _ in range(STEPS):
        observation, reward, terminated, truncated, info = env.step(velocity)
        total += reward
    return observation, total, terminated, truncated, info


def start(env: Any) -> Any:
    size = env.unwrapped.flow_spec.action_dim
    return env.reset(seed=0, options={"noise": np.zeros(size, np.float32)})


def test_a_chain_executes_its_chunk_in_order() -> None:
    robot = Counter()
    env = FlowMDPEnv(robot, flow_steps=STEPS, chunk=3, include_previous_action=True)
    assert env.action_space.shape == (6,) and env.flow_spec.robot_action_dim == 2
    assert env.observation_space.shape == (1 + 6 + 1 + 2 + 1,)
    start(env)
    x_1 = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 2.0])
    observation, reward, terminated, truncated, info = play_chain(env, x_1)
    wanted = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 1.0]])
    np.testing.assert_allclose(np.stack(robot.actions), wanted, atol=1e-6)
    assert reward == 1 + 2 + 3 and not terminated and not truncated
    np.testing.assert_allclose(info["executed_action"], wanted.ravel(), atol=1e-6)
    assert info["executed_steps"] == 3 and info["outer_rewards"].tolist() == [1, 2, 3]
    assert info["outer_reward"] == info["reward_return"] == 6 and info["outer_info"] == {"n": 3}
    assert observation[0] == 3
    np.testing.assert_allclose(observation[-3:], [0.5, 1.0, 1.0], atol=1e-6)


def test_an_episode_that_ends_inside_a_chunk_ends_there() -> None:
    robot = Counter(terminates_at=2)
    env = FlowMDPEnv(robot, flow_steps=STEPS, chunk=3)
    start(env)
    observation, reward, terminated, truncated, info = play_chain(env, np.zeros(6))
    assert (reward, terminated, truncated) == (3.0, True, False) and observation[0] == 2
    assert info["executed_steps"] == len(robot.actions) == 2
    limited = FlowMDPEnv(gym.wrappers.TimeLimit(Counter(), 4), flow_steps=STEPS, chunk=3)
    start(limited)
    assert play_chain(limited, np.zeros(6))[2:4] == (False, False)
    *_, truncated, info = play_chain(limited, np.zeros(6))
    assert truncated and info["executed_steps"] == 1


def test_vectorised_robots_may_end_inside_a_chunk_at_different_actions() -> None:
    ends = (3, 2, 1)
    envs = gym.vector.SyncVectorEnv(
        [lambda n=n: FlowMDPEnv(Counter(terminates_at=n), flow_steps=1, chunk=3) for n in ends]  # type: ignore[misc]
    )
    envs.reset(seed=0)
    *_, infos = envs.step(np.zeros((3, 6), np.float32))
    assert infos["executed_steps"].tolist() == [3, 2, 1]
    assert infos["outer_rewards"].tolist() == [[1, 2, 3], [1, 2, 0], [1, 0, 0]]


@pytest.mark.parametrize("settings", [{}, {"action_mode": "residual"}, {"noise_std": 0.1}])
def test_contract_of_chunked_environments(settings: dict[str, Any]) -> None:
    if settings.get("action_mode"):
        settings = {**settings, "behavior": lambda s, x, t: -x}
    check_flow_env(FlowMDPEnv(Counter(terminates_at=7), flow_steps=STEPS, chunk=3, **settings))


def test_a_video_has_one_frame_per_robot_action() -> None:
    robot = gym.wrappers.RenderCollection(Counter(render_mode="rgb_array"))
    env = FlowMDPEnv(robot, flow_steps=STEPS, chunk=3)
    start(env)
    play_chain(env, np.zeros(6))
    assert [frame[0, 0, 0] for frame in env.render()] == [0, 1, 2, 3]


def data(lengths: list[int], terminates: bool = False) -> TransitionDataset:
    rng = np.random.default_rng(0)
    made = [
        {
            "observations": rng.standard_normal((n + 1, 1)),
            "actions": rng.uniform(-1, 1, (n, 2)),
            "rewards": np.ones(n),
            "terminations": terminates,
        }
        for n in lengths
    ]
    robot = Counter()
    return TransitionDataset.from_episodes(made, robot.observation_space, robot.action_space)


def test_vector_and_single_environments_agree_with_chunks() -> None:
    dataset = data([7, 9, 3])
    settings: dict[str, Any] = {"flow_steps": 3, "chunk": 3, "dataset": dataset}
    vector = FlowMDPVectorEnv(5, **settings)
    singles = gym.vector.SyncVectorEnv(
        [lambda: FlowMDPEnv(states="dataset", reward="data", **settings) for _ in range(5)]
    )
    found, wanted = vector.reset(seed=3)[0], singles.reset(seed=3)[0]
    np.testing.assert_array_equal(found, wanted)
    rng = np.random.default_rng(0)
    for _ in range(12):
        actions = rng.uniform(-1, 1, (5, 6)).astype(np.float32)
        together, apart = vector.step(actions), singles.step(actions)
        np.testing.assert_array_equal(together[0], apart[0])
        np.testing.assert_allclose(together[1], apart[1], rtol=1e-5)
        np.testing.assert_array_equal(together[2], apart[2])
    starts = vector._chunks.starts  # the last two of every truncated episode begin none
    assert starts.tolist() == [*range(5), *range(7, 14), 16]


def test_actions_that_the_data_never_took_cost_nothing() -> None:
    dataset = data([1], terminates=True)
    settings: dict[str, Any] = {"flow_steps": 1, "chunk": 3, "velocity_scale": 1.0}
    single = FlowMDPEnv(states="dataset", reward="data", dataset=dataset, **settings)
    vector = FlowMDPVectorEnv(1, dataset, **settings)
    velocity = np.linspace(-1, 1, 6, dtype=np.float32)
    cost = ((velocity[:2] - dataset.actions[0]) ** 2).sum()
    for env, action in ((single, velocity), (vector, velocity[None])):
        env.reset(seed=0, options={"noise": np.zeros(6, np.float32)})
        np.testing.assert_allclose(env.step(action)[1], -cost, rtol=1e-6)


def test_latent_noise_carries_whole_chunks() -> None:
    robot = Counter()
    flow = FlowMDPEnv(
        robot, flow_steps=STEPS, chunk=3, action_mode="residual", behavior=lambda s, x, t: 0 * x
    )
    env = LatentNoiseEnv(flow, noise_bound=0.5)
    assert env.action_space.shape == (6,)
    env.reset(seed=0)
    _, reward, *_ = env.step(np.linspace(-1, 1, 6, dtype=np.float32))
    assert reward == 6
    np.testing.assert_allclose(np.concatenate(robot.actions), np.linspace(-0.5, 0.5, 6), atol=1e-6)


def test_a_whole_chunk_is_one_step() -> None:
    """What a flow's chain leads to, executed at once: the same episode to the last bit."""
    settings: dict[str, Any] = {"flow_steps": STEPS, "chunk": 3, "velocity_scale": 1.0}
    whole = ActionEnv(FlowMDPEnv(Counter(terminates_at=7), **settings))
    flow = FlowMDPEnv(Counter(terminates_at=7), **settings)
    assert whole.action_space.shape == (6,) and whole.flow_spec == flow.flow_spec
    seen, _ = whole.reset(seed=0)
    beside, _ = flow.reset(seed=0)
    for ends in (False, False, True):
        assert seen == pytest.approx(beside[flow.flow_spec.state], abs=0)
        for _ in range(STEPS):
            beside, paid, over, cut, told = flow.step(np.full(6, 0.9, np.float32))
        action = told["executed_action"]
        seen, reward, terminated, truncated, info = whole.step(action)
        assert (reward, terminated, truncated) == (paid, over, cut) and over == ends
        assert info["executed_steps"] == told["executed_steps"]
        np.testing.assert_array_equal(info["executed_action"], action)
    with pytest.raises(ResetNeededError, match=r"call reset\(\)"):
        whole.step(action)
    env = FlowMDPEnv(
        Counter(),
        reward="divergence",
        critic=lambda s, a: 0 * s[:, 0],
        **settings,
        behavior=lambda s, x, t: x,
    )
    with pytest.raises(ConfigurationError, match="no velocities that reward='divergence' could"):
        ActionEnv(env)


def test_the_replay_buffer_discounts_inside_and_behind_a_chunk() -> None:
    """Rewards 1, 2, 3 and 4, an end; gamma 0.5: 1 + 1 + .75 with .125 behind it, 4 with .5."""
    env: Any = DummyVecEnv(
        [lambda: FlowMDPEnv(Counter(terminates_at=4), flow_steps=STEPS, chunk=3)]
    )
    buffer = FlowReplayBuffer(10, env.observation_space, env.action_space, "cpu", gamma=0.5)
    seen = env.reset()
    for _ in range(2 * STEPS):
        action = np.zeros((1, 6), np.float32)
        after, reward, done, infos = env.step(action)
        buffer.add(seen, after, action, reward, done, infos)
        seen = after
    assert buffer.discounts[:4, 0].tolist() == [1, 0.125, 1, 0.5]
    assert buffer.rewards[:4, 0].tolist() == [0, 2.75, 0, 4]


@pytest.mark.parametrize("chunk", [0, -1, 1.5, "3", True, None])
def test_a_chunk_is_a_positive_integer(chunk: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"chunk is .*: it must be an integer"):
        FlowMDPEnv(Counter(), chunk=chunk)


def test_a_chunk_fits_into_an_episode() -> None:
    with pytest.raises(ConfigurationError, match="chunk=200 is longer than an episode"):
        FlowMDPEnv(gym.make("Pendulum-v1", max_episode_steps=100), chunk=200)
    env = FlowMDPEnv(states="dataset", reward="data", dataset=data([3, 4]), chunk=5)
    with pytest.raises(DatasetError, match="2 of 2 episodes are shorter than chunk=5"):
        env.reset(seed=0)


def test_a_terminated_episode_may_be_shorter_than_a_chunk() -> None:
    env = FlowMDPEnv(states="dataset", reward="data", dataset=data([3], True), chunk=5)
    env.reset(seed=0)
    env.reset(seed=1)
