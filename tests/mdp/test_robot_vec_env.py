"""Robots as a VecEnv: SB3's protocol, the seeds of the episodes, and bringing robots back."""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO, SAC

from flowmdp.env import FlowMDPEnv
from flowmdp.errors import ConfigurationError, RobotError
from flowmdp.robots import ProcessRobots, Robots
from flowmdp.sb3 import FlowReplayBuffer, RobotVecEnv
from flowmdp.whole_chain import ActionEnv
from tests.mdp.toys import PointRobot

CHUNK = 3
PLACES: dict[str, Any] = {"here": Robots, "processes": functools.partial(ProcessRobots)}


class Faulty(PointRobot):
    """Breaks in its fourth step, but only far to the right."""

    def __init__(self, how: str = "raise") -> None:
        super().__init__()
        self.how = how

    def step(self, action: Any) -> Any:
        observed, reward, *rest = super().step(action)
        if self.steps == 4 and observed[0] > 0.5:
            if self.how == "raise":
                raise OSError("the arm is stuck\nat its elbow")
            reward = np.nan
        return observed, reward, *rest


def make(how: str | None = None, chunk: int = CHUNK) -> ActionEnv:
    return ActionEnv(FlowMDPEnv(PointRobot() if how is None else Faulty(how), chunk=chunk))


def drawn(rng: np.random.Generator, n: int = 3) -> Any:
    return rng.uniform(-1, 1, (n, 2 * CHUNK)).astype(np.float32)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Any:
    return PLACES[request.param]


@pytest.fixture
def env(place: Any) -> Iterator[RobotVecEnv]:
    env = RobotVecEnv(make, 3, seed=5, place=place)
    yield env
    env.close()


def test_every_step_is_the_robots_own(env: RobotVecEnv) -> None:
    """Against single robots that are reset by hand with the episodes' seeds."""
    singles = [make() for _ in range(3)]
    numbers = [1, 1, 1]
    observed: Any = env.reset()
    seeds: list[Any] = list(RobotVecEnv(make, 3, seed=5).seed(5))
    expected = np.stack([one.reset(seed=seed)[0] for one, seed in zip(singles, seeds, strict=True)])
    np.testing.assert_array_equal(observed, expected)
    rng, totals, ends = np.random.default_rng(0), [0.0, 0.0, 0.0], 0
    for _ in range(12):
        actions = drawn(rng)
        observed, rewards, dones, infos = env.step(actions)
        for i, one in enumerate(singles):
            state, reward, terminated, truncated, info = one.step(actions[i])
            totals[i] += reward
            assert rewards[i] == np.float32(reward) and dones[i] == (terminated or truncated)
            assert infos[i]["executed_steps"] == info["executed_steps"]
            assert infos[i]["TimeLimit.truncated"] == (truncated and not terminated)
            if dones[i]:
                ends += 1
                np.testing.assert_array_equal(infos[i]["terminal_observation"], state)
                assert infos[i]["episode"]["r"] == pytest.approx(totals[i])
                numbers[i], totals[i] = numbers[i] + 1, 0.0
                state = one.reset(seed=env._seed_of(i, numbers[i]))[0]
            np.testing.assert_array_equal(observed[i], state)
    assert ends > 3 and len({env._seed_of(i, n) for i in range(3) for n in (1, 2)}) == 6


def test_robots_are_brought_back_by_what_they_did(env: RobotVecEnv, place: Any) -> None:
    env.reset()
    rng = np.random.default_rng(1)
    for _ in range(9):
        observed, *_ = env.step(drawn(rng))
    state = env.state()
    assert max(len(state[f"actions/{i}"]) for i in range(3)) > 0
    other = RobotVecEnv(make, 3, seed=99, place=place)
    np.testing.assert_array_equal(other.restore(state), observed)
    for _ in range(9):  # beyond the ends of episodes: the next seeds are the same, too
        actions = drawn(rng)
        ours, theirs = env.step(actions), other.step(actions)
        for one, two in zip(ours[:3], theirs[:3], strict=True):
            np.testing.assert_array_equal(one, two)
        assert [x.get("episode") for x in ours[3]] == [x.get("episode") for x in theirs[3]]
    other.close()
    with pytest.raises(ConfigurationError, match="of 3 robots, there are 2"):
        RobotVecEnv(make, 2).restore(state)


def test_a_robot_that_does_otherwise_is_no_robot_to_bring_back() -> None:
    env = RobotVecEnv(make, 1)
    env.reset()
    env.step(np.ones((1, 2 * CHUNK), np.float32) / 10)
    state = env.state()
    state["actions/0"] = np.ones((5, 2 * CHUNK), np.float32)  # leaves the box, as it did not
    with pytest.raises(RobotError, match="robot 0 does not do the same again"):
        env.restore(state)


@pytest.mark.parametrize(("how", "reason"), [("raise", "OSError the arm is stuck"), ("nan", "nan")])
def test_a_fault_names_robot_and_step_and_changes_nothing(
    how: str, reason: str, place: Any
) -> None:
    env = RobotVecEnv(functools.partial(make, how, 1), 2, seed=5, place=place)
    env.reset()
    left, right = np.array([[-0.5, 0], [0.5, 0]], np.float32)
    for _ in range(3):
        env.step(np.stack([left, right]))
    before = env.state()
    pattern = rf"^robot 1 .*{reason}.*step 4 of the episode with seed {env._seed_of(1, 1)}\)"
    with pytest.raises(RobotError, match=pattern) as caught:
        env.step(np.stack([left, right]))
    assert "\n" not in str(caught.value)
    after = env.state()
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[name], before[name]) for name in before)
    env.restore(after)
    env.step(np.stack([left, -2 * right]))  # another action, and all is well
    env.close()


def test_a_process_that_ends_is_one_line() -> None:
    env = RobotVecEnv(make, 2, place=PLACES["processes"])
    env.reset()
    robots: Any = env.robots
    robots.shares[1].process.kill()
    with pytest.raises(RobotError, match="the process of robots 1 has ended"):
        env.step(np.zeros((2, 2 * CHUNK), np.float32))
    env.close()
    assert signal.SIGKILL == -robots.shares[1].process.exitcode


def test_attributes_reach_the_robots(env: RobotVecEnv) -> None:
    assert [spec.chunk for spec in env.get_attr("flow_spec", [0, 2])] == [CHUNK, CHUNK]
    env.set_attr("mark", 4, 1)
    assert env.get_attr("mark", 1) == [4] and not env.has_attr("nothing")
    assert env.env_is_wrapped(PointRobot) == [False] * 3


def test_sb3_learns_on_it() -> None:
    ppo = PPO("MlpPolicy", RobotVecEnv(make, 2), n_steps=16, batch_size=16, device="cpu")
    ppo.learn(64)
    assert len(ppo.ep_info_buffer or ()) > 0
    kwargs = {"gamma": 0.99}
    sac = SAC(
        "MlpPolicy",
        RobotVecEnv(make, 2),
        replay_buffer_class=FlowReplayBuffer,
        replay_buffer_kwargs=kwargs,
        learning_starts=8,
        batch_size=8,
        device="cpu",
    ).learn(40)
    buffer = sac.replay_buffer
    assert isinstance(buffer, FlowReplayBuffer)
    assert np.isclose(buffer.discounts[:20], 0.99**CHUNK).mean() > 0.5
