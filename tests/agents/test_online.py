"""Offline to online: nothing is lost at the switch, batches are as stated, runs go on exactly."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from flowmdp.agents import (
    DSRL,
    FQL,
    IFQL,
    IQL,
    QC,
    RQL,
    DFDir,
    DFDiv,
    FlowBC,
    ReBRAC,
    load_agent,
    pretrained_path,
)
from flowmdp.agents.core import checkpoint
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.critics import td_loss
from flowmdp.agents.core.replay import Mixture
from flowmdp.agents.evaluation import evaluate
from flowmdp.env import FlowMDPEnv
from flowmdp.errors import CheckpointError, ConfigurationError, RobotError
from flowmdp.latent_noise import LatentNoiseEnv
from flowmdp.sb3 import RobotVecEnv
from flowmdp.whole_chain import ActionEnv
from tests.agents.online_toys import Bandit, Line, line_data, whole
from tests.agents.toys import two_modes
from tests.mdp.toys import PointRobot, behavior, toy_dataset

SMALL: dict[str, Any] = {"net_arch": (32, 32), "batch_size": 32, "device": "cpu", "seed": 0}
CHUNK = 3


def on_line(cls: Any, chunk: int = CHUNK, budget: int = 100, **more: Any) -> Any:
    """A new agent around the line's data."""
    names = {"behavior_steps", "critic_steps"} & set(cls.config_class.names())
    env = FlowMDPEnv(Line(), dataset=line_data(), chunk=chunk, flow_steps=cls.only_flow_steps or 4)
    return cls("MlpPolicy", env, **SMALL, **dict.fromkeys(names, budget), **more)


def weights(agent: Any) -> dict[str, torch.Tensor]:
    return {name: one.clone() for name, one in agent.saved.tensors().items()}


def state_of(agent: Any) -> dict[str, Any]:
    """Everything that decides what comes next."""
    rows = {f"row/{name}": one[: len(agent.replay_buffer)].numpy() for name, one in
            agent.replay_buffer.columns.items()}  # fmt: skip
    counts = {name: np.array(one) for name, one in agent.saved.counts().items()}
    read = checkpoint.without(agent.saved.tensors(), agent.unread() if agent.prepared else {})
    tensors = {name: one.numpy() for name, one in read.items()}
    state: dict[str, Any] = rows | agent._where() | counts | tensors
    return state


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# -- the switch -----------------------------------------------------------------------------


def test_nothing_is_lost_at_the_switch() -> None:
    agent = on_line(DFDir, budget=300).learn(200, log_interval=0)
    before = evaluate(agent.outer_policy(), Line, 200, seed=1).returns
    untrained = evaluate(on_line(DFDir).outer_policy(), Line, 200, seed=1).returns
    offline, scale = weights(agent), agent._reward_scale
    seen: list[int] = []

    def compare(now: dict[str, Any], _: Any) -> bool:
        steps = agent.robot_steps
        equal = all(
            torch.equal(offline[name], one)
            for name, one in agent.saved.tensors().items()
            if not name.startswith("generator/")
        )
        assert equal == (agent.num_timesteps == 200) and (equal or steps > 2_000)
        seen.append(steps)
        return True

    robots = whole(chunk=CHUNK)
    options = {"warm_up": 2_000, "updates_per_step": 1, "log_interval": 0}
    agent.learn_online(robots, 2_200, callback=compare, **options)
    assert seen[0] < 100 and seen[-1] >= 2_200 and agent._reward_scale == scale
    assert agent.num_timesteps == agent._n_updates > 350
    after = evaluate(agent.outer_policy(), Line, 200, seed=1).returns
    played = agent.replay_buffer.ended_returns(200)
    error = 4 * np.std(before) / np.sqrt(200)
    assert abs(np.mean(played) - np.mean(before)) < error
    assert np.mean(after) > np.mean(before) - error > np.mean(untrained) + error


# -- batches --------------------------------------------------------------------------------


class Recording(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps what the robot itself saw and did, episode by episode."""

    def __init__(self, env: Any, log: list[list[Any]]) -> None:
        super().__init__(env)
        self.log = log

    def reset(self, **options: Any) -> Any:
        observed, info = self.env.reset(**options)
        self.log.append([observed])
        return observed, info

    def step(self, action: Any) -> Any:
        observed, reward, terminated, truncated, info = self.env.step(action)
        self.log[-1] += [(action, float(reward), terminated, truncated), observed]
        return observed, reward, terminated, truncated, info


def brute_force(log: list[list[Any]], gamma: float) -> list[tuple[Any, ...]]:
    """Chunks of what a robot did: s, actions, reward, s', mask, how many actions ran."""
    rows = []
    for episode in log:
        states, steps = episode[::2], episode[1::2]
        for first in range(0, len(steps), CHUNK):
            part = steps[first : first + CHUNK]
            if len(part) < CHUNK and not (part[-1][2] or part[-1][3]):
                continue  # under way
            reward = sum(gamma**i * step[1] for i, step in enumerate(part))
            discount = 0.0 if part[-1][2] else gamma ** len(part)
            actions = np.concatenate([step[0] for step in part])
            rows.append(
                (states[first], actions, reward, states[first + len(part)], discount, len(part))
            )
    return rows


@pytest.mark.parametrize("previous", [False, True])
def test_the_buffer_holds_what_the_robot_went_through(previous: bool) -> None:
    """Chunks that a fall or the time limit of 20 steps cut short, too."""
    settings: dict[str, Any] = {"chunk": CHUNK, "include_previous_action": previous}
    env = FlowMDPEnv(PointRobot(), dataset=toy_dataset(), flow_steps=4, **settings)
    agent = DFDir("MlpPolicy", env, behavior_steps=5, critic_steps=5, gamma=0.9, **SMALL).learn(1)
    log: list[list[Any]] = []
    robot = whole(lambda: Recording(PointRobot(), log), **settings)
    agent.learn_online(robot, 700, warm_up=699, robots=1, updates_per_step=0, log_interval=0)
    buffer, expected = agent.replay_buffer, brute_force(log, 0.9)
    assert buffer is not None
    rows = torch.arange(len(buffer))
    assert len(buffer) == len(expected) == agent.transitions
    assert agent.robot_steps == sum(row[5] for row in expected)
    cut = [row[4] for row in expected if row[5] < CHUNK]
    assert 0.0 in cut and 0.9**2 in cut, "both ways to be cut short must occur"
    normalizer, critic = agent.policy.normalizer, agent.critic
    states, actions, rewards, following, discounts, taken = map(
        np.array, ([np.pad(x, (0, 6 - len(x))) if i == 1 else x for x in column]
        for i, column in enumerate(zip(*expected, strict=True)))
    )  # fmt: skip
    batch = buffer.sample(4_000, torch.Generator().manual_seed(0))
    assert set(batch.rows.tolist()) == set(rows.tolist())
    chosen = batch.rows.numpy()
    valid = np.arange(CHUNK).repeat(2) < taken[chosen][:, None]
    own = torch.as_tensor(states[chosen], dtype=torch.float32)
    after = torch.as_tensor(following[chosen], dtype=torch.float32)
    for found, wanted in (
        (batch.observations, normalizer(own)),
        (batch.next_observations, normalizer(after)),
        (batch.actions.numpy()[valid], actions[chosen][valid]),
        (batch.rewards, rewards[chosen] * agent._reward_scale),
        (critic.gamma * batch.masks, discounts[chosen]),
        (batch.valid, valid),
        (buffer.states_after(rows), normalizer(torch.as_tensor(following, dtype=torch.float32))),
    ):
        np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-4, atol=1e-5)
    if previous:
        flag = batch.contexts[:, -1].numpy()
        begins = np.array([len(e) // 2 for e in log]).tolist()
        assert set(flag) == {0.0, 1.0} and len(begins) > 20
        np.testing.assert_array_equal(batch.next_contexts[:, -1].numpy(), 1.0)
        last = actions.reshape(-1, CHUNK, 2)[np.arange(len(taken)), taken - 1][chosen]
        np.testing.assert_allclose(batch.next_contexts[:, 2:4].numpy(), last, atol=1e-6)
    # a target of the critic is then r + gamma^n V, whatever V
    batch = batch._replace(masks=batch.masks[:1], rewards=batch.rewards[:1])
    one = batch._replace(observations=batch.observations[:1], actions=batch.actions[:1])
    one = one._replace(next_observations=one.next_observations[:1])
    value = critic.values(one.next_observations, one.actions, target=True)
    target = one.rewards + discounts[chosen[0]] * value
    expected_loss = (critic.members(one.observations, one.actions) - target).square().sum()
    torch.testing.assert_close(td_loss(critic, one, one.actions)[0], expected_loss)


@pytest.mark.parametrize(("share", "number"), [(0.5, 16), (0.25, 8), (0.9, 29)])
def test_a_batch_has_the_stated_share_of_both(share: float, number: int) -> None:
    agent = on_line(DFDir, budget=5).learn(1)
    drawn: list[Any] = []
    sample = agent.sample

    def kept() -> Any:
        drawn.append(sample())
        return drawn[-1]

    agent.sample = kept
    options = {"warm_up": 200, "online_share": share, "updates_per_step": 1, "log_interval": 0}
    agent.learn_online(whole(chunk=CHUNK), 300, **options)
    data, buffer = agent.data, agent.replay_buffer
    assert len(drawn) > 60 and agent._data is data, "offline it learns from the dataset alone"
    firsts = 0
    for batch in drawn:
        online = batch.rows >= len(data)
        assert int(online.sum()) == number == round(share * 32)
        firsts += int(online[:16].sum())
        for mine, actions, rewards in (
            (~online, data.chunks, lambda rows: data.rewards[rows]),
            (
                online,
                lambda rows: buffer.columns["actions"][rows - len(data)],
                lambda rows: buffer.rewards[rows - len(data)],
            ),
        ):
            assert torch.equal(batch.actions[mine], actions(batch.rows[mine]))
            torch.testing.assert_close(batch.rewards[mine], rewards(batch.rows[mine]))
    assert 0.4 < firsts / len(drawn) / number < 0.6, "in no half more than in the other"


def test_the_order_of_a_mixture_is_random() -> None:
    agent = on_line(DFDir, budget=5).learn(1)
    agent.learn_online(whole(chunk=CHUNK), 60, warm_up=50, log_interval=0)
    mixture = Mixture(agent.data, agent.replay_buffer, 0.5)
    generator = torch.Generator().manual_seed(0)
    patterns = [tuple((mixture.sample(8, generator).rows < len(agent.data)).tolist()) for _ in range(20)]  # fmt: skip  # noqa: E501
    assert len(set(patterns)) > 8


# -- going on -------------------------------------------------------------------------------


def resumed(agent: Any, path: Path, **given: Any) -> Any:
    agent.save(path / "agent.zip")
    agent.save_replay_buffer(path / "replay.zip")
    other = load_agent(path / "agent.zip", device="cpu", **given)
    other.load_replay_buffer(path / "replay.zip")
    return other


@pytest.mark.parametrize("cls", [DFDir, DFDiv, QC, RQL, DSRL, FQL, IQL, IFQL])
def test_resumed_is_uninterrupted_bit_for_bit(cls: Any, tmp_path: Path) -> None:
    go = functools.partial(
        FlowAlgorithm.learn_online, env=whole(chunk=CHUNK), robots=3, warm_up=60, log_interval=50
    )
    straight, stopped = (on_line(cls, budget=20).learn(5) for _ in range(2))
    go(straight, robot_steps=150)
    go(stopped, robot_steps=150, callback=lambda *_: stopped.robot_steps < 90)
    assert 90 <= stopped.robot_steps < 110 and stopped.num_timesteps > 5
    other = resumed(stopped, tmp_path, dataset=line_data())
    go(other, robot_steps=150)
    assert_same(state_of(other), state_of(straight))
    go(stopped, robot_steps=150)  # and so does the agent that was stopped, in this process
    assert_same(state_of(stopped), state_of(straight))


def fresh(**more: Any) -> DSRL:
    clone = on_line(FlowBC).learn(20, log_interval=0)
    return DSRL.from_agent(clone, critic_steps=30, noise_bound=1.5, **more)


@pytest.mark.parametrize("after", [60, 90])
def test_a_fresh_agent_that_is_stopped_goes_on_exactly(after: int, tmp_path: Path) -> None:
    """In the middle of the critic's fit, and after it."""
    options: dict[str, Any] = {"warm_up": 60, "online_share": 1.0, "robots": 3}
    options |= {"updates_per_step": 1}
    straight, stopped = fresh(), fresh()
    straight.learn_online(whole(chunk=CHUNK), 120, **options)
    calls = iter(range(100))
    steps = stopped.learning_online(
        whole(chunk=CHUNK),
        120,
        callback=lambda *_: after == 60 or stopped.robot_steps < after,
        go_on=lambda: after != 60 or next(calls) < 12,
        **options,
    )
    info: Any = None
    with pytest.raises(StopIteration):
        while True:
            info = stopped.graphed(*steps.send(info))
    assert (0 < stopped.pretrain_updates - 30_000 < 30) == (after == 60)
    other = resumed(stopped, tmp_path)
    other.learn_online(whole(chunk=CHUNK), 120, **options)
    assert_same(state_of(other), state_of(straight))
    assert other._reward_scale == straight._reward_scale != 1.0


def test_a_newer_buffer_is_cut_and_an_older_one_refused(tmp_path: Path) -> None:
    agent = on_line(QC, budget=5)
    with pytest.raises(ConfigurationError, match="no replay buffer yet"):
        agent.save_replay_buffer(tmp_path / "x")
    robots = whole(chunk=CHUNK)
    options: dict[str, Any] = {"robots": 2, "warm_up": 10, "updates_per_step": 1}
    agent.learn_online(robots, 40, **options)
    agent.save(tmp_path / "old.zip")
    agent.save_replay_buffer(tmp_path / "replay-old")
    agent.learn_online(robots, 80, **options)
    agent.save(tmp_path / "new.zip")
    agent.save_replay_buffer(tmp_path / "replay-new")
    old = load_agent(tmp_path / "old.zip", device="cpu", dataset=line_data())
    with pytest.raises(ConfigurationError, match="call load_replay_buffer"):
        old.learn_online(robots, 80, **options)
    old.load_replay_buffer(tmp_path / "replay-new")
    assert len(old.replay_buffer) == old.transitions < agent.transitions
    old.learn_online(robots, 80, **options)
    assert_same(state_of(old), state_of(agent))
    new = load_agent(tmp_path / "new.zip", device="cpu", dataset=line_data())
    with pytest.raises(CheckpointError, match="take the file that was saved with the agent"):
        new.load_replay_buffer(tmp_path / "replay-old")
    with pytest.raises(CheckpointError, match="other spaces"):
        on_line(QC, chunk=1).load_replay_buffer(tmp_path / "replay-old")
    with pytest.raises(CheckpointError, match="damaged"):
        new.load_replay_buffer(tmp_path / "new.zip")


# -- learning -------------------------------------------------------------------------------


def test_noise_finds_the_better_mode_that_chance_does_not() -> None:
    """A tenth of the clone's actions earn 1, the others nothing; no data but the robot's."""
    env = FlowMDPEnv(Bandit(), dataset=two_modes(), flow_steps=5)
    options: dict[str, Any] = {"net_arch": (64, 64), "batch_size": 128, "learning_rate": 2e-3}
    clone = FlowBC("MlpPolicy", env, **SMALL | options).learn(1_200, log_interval=0)
    by_chance = np.mean(evaluate(clone.outer_policy(), Bandit, 500).returns)
    options = {"noise_bound": 3.0, "critic_steps": 200, "learning_rate": 1e-3, "batch_size": 64}
    agent = DSRL.from_agent(clone, **options)
    flow = weights(agent)
    options = {"warm_up": 400, "online_share": 1.0, "robots": 4, "updates_per_step": 1}
    agent.learn_online(whole(Bandit), 1_000, **options, log_interval=0)
    found = np.mean(evaluate(agent.outer_policy(), Bandit, 500, deterministic=True).returns)
    warm = np.mean(agent.replay_buffer.columns["rewards"][:400].numpy())  # type: ignore[union-attr]
    assert by_chance < 0.3 and abs(warm - by_chance) < 0.1, "the warm-up is the plain flow's"
    assert found > 0.8
    kept = [name for name in flow if name.startswith("behavior/")]
    assert kept and all(torch.equal(flow[name], weights(agent)[name]) for name in kept)


# -- what cannot be -------------------------------------------------------------------------


def refused(match: str, agent: Any, env: Any, steps: int = 300, **options: Any) -> None:
    before = {name: one.clone() for name, one in agent.saved.tensors().items()}
    with pytest.raises(ConfigurationError, match=match) as caught:
        agent.learn_online(env, steps, **{"warm_up": 100, "robots": 2, **options})
    assert "\n" not in str(caught.value) and agent.robot_steps == 0
    assert all(torch.equal(before[name], one) for name, one in agent.saved.tensors().items())


@pytest.fixture(scope="module")
def agent() -> Any:
    return on_line(QC, budget=5).learn(1)


def noisy() -> LatentNoiseEnv:
    flow = FlowMDPEnv(
        PointRobot(), behavior=behavior, action_mode="residual", chunk=1, flow_steps=2
    )
    return LatentNoiseEnv(flow)


BAD: list[tuple[str, Callable[[], Any], dict[str, Any]]] = [
    ("chunk is 3 there and 1 here", lambda: whole(), {}),
    ("observation_dim is 1 there and 2 here", lambda: whole(PointRobot, chunk=CHUNK), {}),
    ("decides on velocities or noise", lambda: lambda: FlowMDPEnv(Line(), chunk=CHUNK), {}),
    ("decides on velocities or noise", lambda: noisy, {}),
    ("in no flow environment", lambda: Line, {}),
    ("pass an id, a function", lambda: Line(), {}),
    ("pass an id, a function", lambda: 3, {}),
    ("updates_per_step is -1", lambda: whole(chunk=CHUNK), {"updates_per_step": -1}),
    ("online_share is 0", lambda: whole(chunk=CHUNK), {"online_share": 0.0}),
    ("leaves nothing to learn after", lambda: whole(chunk=CHUNK), {"warm_up": 300}),
    ("'utd': choose among robots, proc", lambda: whole(chunk=CHUNK), {"utd": 4}),
    ("robots is 0", lambda: whole(chunk=CHUNK), {"robots": 0}),
]


@pytest.mark.parametrize(("match", "env", "options"), BAD)
def test_bad_input_gets_one_line(
    match: str, env: Callable[[], Any], options: dict[str, Any], agent: Any
) -> None:
    refused(match, agent, env(), **options)


def test_recorded_states_are_no_robot(agent: Any) -> None:
    def recorded() -> ActionEnv:
        settings: dict[str, Any] = {"states": "dataset", "reward": "direction", "chunk": CHUNK}
        critic = lambda s, a: np.zeros(len(s), np.float32)  # noqa: E731
        return ActionEnv(FlowMDPEnv(dataset=line_data(), critic=critic, **settings))

    refused("no robot that pays", agent, recorded)


def test_agents_that_cannot_are_refused() -> None:
    refused("FlowBC does not learn on robots", on_line(FlowBC), whole(chunk=CHUNK))
    refused("ReBRAC does not learn on robots", on_line(ReBRAC), whole(chunk=CHUNK))
    refused("no flow yet", on_line(DFDir), whole(chunk=CHUNK), online_share=1.0)
    with pytest.raises(ConfigurationError, match="FQL holds no flow"):
        DSRL.from_agent(on_line(FQL))
    with pytest.raises(ConfigurationError, match=r"net_arch is \(8, 8\)"):
        DSRL.from_agent(on_line(FlowBC), net_arch=(8, 8))


def test_steps_that_were_taken_count(agent: Any) -> None:
    other = on_line(QC, budget=5).learn(1)
    robots = RobotVecEnv(whole(chunk=CHUNK), 2, seed=3)
    other.learn_online(robots, 60, warm_up=20)
    with pytest.raises(ConfigurationError, match="robot_steps=50 is below the 60"):
        other.learn_online(robots, 50, warm_up=20)
    with pytest.raises(ConfigurationError, match="learned with 2 robots, these are 4"):
        other.learn_online(whole(chunk=CHUNK), 90, warm_up=20, robots=4)


def test_the_robots_own_id_will_do() -> None:
    """Of an agent that learned on a task of the package, from its checkpoint."""
    agent = DSRL.from_agent(pretrained_path("hopper-medium"), critic_steps=2, device="cpu")
    agent.learn_online("Hopper-v5", 60, warm_up=20, online_share=1.0, robots=2)
    assert agent.robot_steps >= 60 and agent.num_timesteps > 0
    with pytest.raises(ConfigurationError, match="task is 'hopper-medium' there and 'hopper-exp"):
        agent.learn_online("FlowMDP-hopper-expert-v0", 90, warm_up=20, online_share=1.0, robots=2)


class Breaking(Line):
    """Raises in its 17th step, wherever it is."""

    def __init__(self) -> None:
        self.total = 0

    def step(self, action: Any) -> Any:
        self.total += 1
        if self.total == 17:
            raise RuntimeError("out of battery")
        return super().step(action)


def test_a_broken_robot_loses_nothing(tmp_path: Path) -> None:
    agent = on_line(DFDir, budget=5).learn(1)
    options: dict[str, Any] = {"warm_up": 6, "robots": 2, "updates_per_step": 1}
    with pytest.raises(RobotError, match=r"robot 0 raised RuntimeError out of battery \(step"):
        agent.learn_online(whole(Breaking, chunk=CHUNK), 300, **options)
    assert len(agent.replay_buffer) == agent.transitions > 6 and agent.num_timesteps > 10
    other = resumed(agent, tmp_path, dataset=line_data())
    other.learn_online(whole(chunk=CHUNK), 60, **options)
    assert other.robot_steps >= 60 > agent.robot_steps
