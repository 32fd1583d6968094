"""Chunks of actions: what they are in the data, by a chunker that knows no index arithmetic."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from flowmdp.agents import DFDir, FlowBC
from flowmdp.agents.core.batch import DeviceDataset, lambda_returns
from flowmdp.agents.core.critics import average_value, return_targets
from flowmdp.agents.core.networks import Normalizer
from flowmdp.env import FlowMDPEnv
from flowmdp.errors import ConfigurationError, DatasetError
from flowmdp.mdp.spec import FlowSpec
from flowmdp.transitions import TransitionDataset
from tests.agents.test_chunked_agents import make

OBSERVED = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTS = gym.spaces.Box(-1, 1, (2,), np.float32)
GAMMA = 0.9


def episodes(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random episodes of 1 to 12 steps, half of which terminate."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        n = int(rng.integers(1, 13))
        made.append(
            {
                "observations": rng.standard_normal((n + 1, 3)).astype(np.float32),
                "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
                "rewards": rng.standard_normal(n).astype(np.float32),
                "terminations": bool(rng.random() < 0.5),
            }
        )
    return made


def together(made: list[dict[str, Any]]) -> TransitionDataset:
    """These episodes as one dataset."""
    return TransitionDataset.from_episodes(made, OBSERVED, ACTS)


def device_data(dataset: TransitionDataset, chunk: int, previous: bool = False) -> DeviceDataset:
    spec = FlowSpec(3, 2 * chunk, 4, 1.0, include_previous_action=previous, chunk=chunk)
    normalizer = Normalizer(3)
    return DeviceDataset(dataset, spec, normalizer, GAMMA, torch.device("cpu"), scale=1.0)


class Made(NamedTuple):
    """One chunk, step by step."""

    row: int
    actions: list[list[float]]  # those that were taken
    reward: float
    after: list[float]
    mask: float
    follows: bool  # whether another chunk begins where this one ends


def chunker(made: list[dict[str, Any]], chunk: int) -> list[Made]:
    """Walk through every episode from every step."""
    found, row = [], 0
    for episode in made:
        n, ends = len(episode["rewards"]), episode["terminations"]

        def begins(step: int, n: int = n, ends: bool = ends) -> bool:
            return step < n and (step + chunk <= n or ends)

        for step in range(n):
            if begins(step):
                actions: list[list[float]] = []
                reward, at = 0.0, step
                while at < n and len(actions) < chunk:
                    reward += GAMMA ** len(actions) * float(episode["rewards"][at])
                    actions.append(episode["actions"][at].tolist())
                    at += 1
                over = at == n and ends
                after = episode["observations"][at].tolist()
                found.append(
                    Made(row + step, actions, reward, after, 1.0 - over, not over and begins(at))
                )
        row += n
    return found


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8])
def test_a_thousand_episodes_agree_with_a_brute_force_chunker(chunk: int) -> None:
    made = episodes(1000, seed=chunk)
    dataset = together(made)
    data, wanted = device_data(dataset, chunk), chunker(made, chunk)
    rows = torch.tensor([one.row for one in wanted])
    starts = torch.arange(len(data)) if data.starts is None else data.starts
    assert starts.tolist() == rows.tolist()
    close = torch.testing.assert_close
    close(data.rewards[rows], torch.tensor([one.reward for one in wanted]))
    close(data.masks[rows].float(), torch.tensor([one.mask for one in wanted]))
    close(
        data.continues[rows].bool() & (data.masks[rows] > 0),
        torch.tensor([w.follows for w in wanted]),
    )
    after = torch.tensor([one.after for one in wanted])
    close(data.states_after(rows), after)
    actions, valid = data.chunks(rows), data.valid(rows)
    for i, one in enumerate(wanted):
        taken = 2 * len(one.actions)
        assert actions[i, :taken].tolist() == [a for action in one.actions for a in action]
        assert valid is None or valid[i].tolist() == [1.0] * taken + [0.0] * (2 * chunk - taken)


def test_a_cpu_holds_the_data_once() -> None:
    dataset = together(episodes(20))
    data = device_data(dataset, 3)
    for name in ("observations", "next_observations", "actions"):
        assert np.shares_memory(getattr(data, name).numpy(), getattr(dataset, name))


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("chunk", [2, 3])
def test_lambda_returns_step_from_chunk_to_chunk(chunk: int, lam: float) -> None:
    made = episodes(60, seed=3)
    data = device_data(together(made), chunk)
    values = torch.linspace(-1, 1, len(data))  # V(s') of the chunk that begins at each row
    wanted = {one.row: one for one in chunker(made, chunk)}

    def by_hand(row: int) -> float:
        one, value = wanted[row], float(values[row])
        later = by_hand(row + chunk) if one.follows else value
        return one.reward + GAMMA**chunk * one.mask * ((1 - lam) * value + lam * later)

    gamma = GAMMA**chunk
    found = lambda_returns(data.rewards, values, data.masks, data.continues, gamma, lam, chunk)
    for row in wanted:
        assert found[row].item() == pytest.approx(by_hand(row), abs=1e-5)


def test_a_value_by_hand() -> None:
    """Rewards 1, 2, 4, 8, 16 and a termination; chunks of 2; V(s') = 10; gamma 0.9, lambda 0.5.

    From step 0: 1 + .9 2 = 2.8, then from step 2: 4 + .9 8 = 11.2, then from step 4: 16, the end.
    G_4 = 16; G_2 = 11.2 + .81 (5 + 8) = 21.73; G_0 = 2.8 + .81 (5 + .5 21.73) = 15.65065.
    """
    episode = {
        "observations": np.zeros((6, 3)),
        "actions": np.zeros((5, 2)),
        "rewards": np.array([1, 2, 4, 8, 16]),
        "terminations": True,
    }
    data = device_data(together([episode]), 2)
    ten = torch.full((5,), 10.0)
    returns = lambda_returns(data.rewards, ten, data.masks, data.continues, 0.81, 0.5, 2)
    assert returns[[0, 2, 4]].tolist() == pytest.approx([15.65065, 21.73, 16.0], abs=1e-4)


def test_critics_discount_by_gamma_to_the_chunk() -> None:
    made = episodes(40)
    agent = make("df-dir", 3, together(made), gamma=GAMMA)
    data, critic = agent.data, agent.critic
    assert critic.gamma == pytest.approx(GAMMA**3)
    rows = data.starts
    assert rows is not None
    later = GAMMA**3 * data.masks[rows]
    targets = return_targets(critic, data, lam=0.0, average=2.0)
    torch.testing.assert_close(targets.q[rows], data.rewards[rows] + later * 2.0)
    targets = return_targets(critic, data, lam=0.5)
    with torch.no_grad():
        values = critic.target_v(data.states_after(rows)).squeeze()
    torch.testing.assert_close(targets.q[rows], data.rewards[rows] + later * values)
    after = data.continues[rows] > 0
    mixed = values.clone()
    mixed[after] = 0.5 * (values[after] + targets.v[rows[after] + 3])
    torch.testing.assert_close(targets.v[rows], data.rewards[rows] + later * mixed)


def test_the_average_value_is_the_mean_of_its_own_returns() -> None:
    data = device_data(together(episodes(60)), 3)
    average = average_value(data, gamma := GAMMA**3)
    values = torch.full((len(data),), average)
    returns = lambda_returns(data.rewards, values, data.masks, data.continues, gamma, 1.0, 3)
    assert returns[data.starts].mean().item() == pytest.approx(average, abs=1e-5)


def test_batches_hold_the_last_action_of_a_chunk_as_the_next_context() -> None:
    dataset = together(episodes(50))
    data = device_data(dataset, 3, previous=True)
    batch = data.sample(64, torch.Generator().manual_seed(0))
    last = data.last(batch.rows)
    torch.testing.assert_close(batch.next_contexts[:, 3:5], data.actions[last])
    assert torch.equal(batch.next_observations, data.next_observations[last])
    assert torch.equal(batch.masks, data.masks[batch.rows].float())
    assert batch.actions.shape == (64, 6) and batch.contexts.shape == (64, 6)


def test_cloning_ignores_what_was_never_taken() -> None:
    """Other actions behind a termination give the same loss and gradient."""
    from flowmdp.agents.core.flow_matching import FlowNoise, flow_matching_loss

    agent = make("flow-bc", 4, together(episodes(50)))
    batch = agent.sample(cloning=True)
    assert batch.valid is not None and 0 < batch.valid.mean() < 1
    noise = FlowNoise(torch.randn(batch.actions.shape), torch.rand(len(batch.actions), 1))

    class Blind(torch.nn.Module):
        """Sees the actions that were taken, and nothing of the others."""

        def forward(self, context: Any, x_t: Any, t: Any) -> Any:
            assert batch.valid is not None
            return x_t * batch.valid

    losses = [
        flow_matching_loss(Blind(), batch._replace(actions=actions), noise)[0]
        for actions in (batch.actions, torch.where(batch.valid > 0, batch.actions, 0.7))
    ]
    assert losses[0] == losses[1] > 0


def recording_and_task() -> tuple[TransitionDataset, TransitionDataset]:
    """One recording of 9 steps, and a task over it that ends after 4 and with the last."""
    episode = {
        "observations": np.arange(30).reshape(10, 3),
        "actions": np.linspace(-1, 1, 18).reshape(9, 2),
        "rewards": np.arange(9),
        "terminations": False,
    }
    whole = together([episode])
    ends = np.isin(np.arange(9), (3, 8))
    starts = np.roll(ends, 1)
    return whole, dataclasses.replace(
        whole,
        terminations=ends,
        truncations=np.zeros(9, np.bool_),
        previous_actions=whole.previous_actions * ~starts[:, None],
        starts=starts,
        recordings=whole.starts,
    )


def test_a_task_over_longer_recordings_is_cloned_as_recorded() -> None:
    """The clone's chunks cross the task's end."""
    _, task = recording_and_task()
    data = device_data(task, 3)
    assert data.starts is not None and data.recorded is not None
    assert data.starts.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert data.masks[data.starts].tolist() == [1, 0, 0, 0, 1, 1, 0, 0, 0]
    assert data.rewards[[1, 2, 3]].tolist() == pytest.approx([1 + 1.8 + 0.81 * 3, 2 + 2.7, 3])
    assert data.recorded.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert torch.equal(data.valid(data.recorded), torch.ones(7, 6))  # type: ignore[arg-type]


@pytest.mark.parametrize("previous", [False, True])
@pytest.mark.parametrize("chunk", [1, 3])
def test_clones_are_shared_where_they_learn_from_the_same(chunk: int, previous: bool) -> None:
    """Between tasks over the same recordings, unless it sees a_{n-1}, which a task's ends cut."""
    whole, task = recording_and_task()
    ended = dataclasses.replace(
        whole, terminations=whole.truncations, truncations=whole.terminations
    )
    for other in (task, ended):
        keys, seen = [], []
        for dataset in (whole, other):
            settings: dict[str, Any] = {"chunk": chunk, "include_previous_action": previous}
            env = FlowMDPEnv(states="dataset", reward="data", dataset=dataset, **settings)
            agent = DFDir("MlpPolicy", env, device="cpu", seed=0, net_arch=(8,), batch_size=64)
            batch = agent.parts[0].sample()
            keys.append(agent.parts[0].key())
            seen.append([batch.contexts, batch.actions, *([batch.valid] if chunk > 1 else [])])
        same = all(map(torch.equal, *seen))
        differs = previous if other is task else chunk > 1
        assert (keys[0] != keys[1]) == (not same) == differs


def test_parts_of_other_chunks_have_other_keys() -> None:
    agents = [make("df-dir", chunk, together(episodes(20))) for chunk in (1, 2, 3)]
    for part in (0, 1):
        assert len({agent.parts[part].key() for agent in agents}) == 3


@pytest.mark.parametrize("chunk", [2, 5])
def test_memory_stays_that_of_single_actions(chunk: int) -> None:
    """At most 1.2 times the tensors of a dataset as wide as Hopper's."""
    rng = np.random.default_rng(0)
    made = [
        {
            "observations": rng.standard_normal((101, 11)),
            "actions": rng.uniform(-1, 1, (100, 3)),
            "rewards": np.ones(100),
            "terminations": False,
        }
        for _ in range(20)
    ]
    wide = gym.spaces.Box(-np.inf, np.inf, (11,), np.float32)
    dataset = TransitionDataset.from_episodes(made, wide, gym.spaces.Box(-1, 1, (3,), np.float32))

    def size(chunk: int) -> int:
        spec = FlowSpec(11, 3 * chunk, 4, 1.0, chunk=chunk)
        data = DeviceDataset(dataset, spec, Normalizer(11), GAMMA, torch.device("cpu"), 1.0)
        tensors = {id(t): t for t in vars(data).values() if isinstance(t, torch.Tensor)}
        return sum(t.nbytes for t in tensors.values())

    assert size(chunk) <= 1.2 * size(1)


def test_too_short_episodes_are_named() -> None:
    made = [one for one in episodes(80) if not one["terminations"] and len(one["rewards"]) < 6]
    dataset = together(made)
    with pytest.raises(DatasetError, match=f"{len(made)} of {len(made)} episodes are shorter than"):
        device_data(dataset, 6)


def test_recordings_shorter_than_a_chunk_are_named_too() -> None:
    """A task that ends with each of them has chunks to learn values from, and none to clone."""
    made = [one for one in episodes(80) if one["terminations"] and len(one["rewards"]) < 6]
    dataset = together(made)
    with pytest.raises(DatasetError, match=f"{len(made)} of {len(made)} episodes are shorter than"):
        device_data(dataclasses.replace(dataset, recordings=dataset.starts), 6)


@pytest.fixture(scope="module")
def planner() -> Any:
    agent = make("flow-bc", 4, together(episodes(50)))
    agent.learn(2)
    return agent


def test_outer_policy_hands_out_the_plan_one_action_at_a_time(planner: Any) -> None:
    observations = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    plans = planner.act(observations, noise=np.zeros((3, 8), np.float32)).reshape(3, 4, 2)
    policy, state = planner.outer_policy(), None
    for step in range(4):
        seen = observations if step == 0 else observations + step  # open loop: not looked at
        actions, state = policy.predict(seen, state, deterministic=True)
        np.testing.assert_allclose(actions, plans[:, step], atol=1e-6)
    actions, state = policy.predict(observations + 9, state, deterministic=True)
    again = planner.act(observations + 9, noise=np.zeros((3, 8), np.float32)).reshape(3, 4, 2)
    np.testing.assert_allclose(actions, again[:, 0], atol=1e-6)


def test_outer_policy_plans_anew_where_an_episode_begins_and_after_replan(planner: Any) -> None:
    observations = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)

    def first(seen: Any) -> Any:
        return planner.act(seen, noise=np.zeros((len(seen), 8), np.float32)).reshape(-1, 4, 2)

    policy = planner.outer_policy(replan=2)
    _, state = policy.predict(observations, None, deterministic=True)
    begins = np.array([False, True])
    actions, state = policy.predict(observations + 1, state, begins, deterministic=True)
    np.testing.assert_allclose(actions[0], first(observations)[0, 1], atol=1e-6)
    np.testing.assert_allclose(actions[1], first(observations + 1)[1, 0], atol=1e-6)
    actions, _ = policy.predict(observations + 2, state, deterministic=True)
    np.testing.assert_allclose(actions[0], first(observations + 2)[0, 0], atol=1e-6)
    np.testing.assert_allclose(actions[1], first(observations + 1)[1, 1], atol=1e-6)
    one = (state[0][:1], state[1][:1])
    for foreign in (state, (one[0][:, :3], one[1]), one[:1], list(one), "x", np.zeros(1)):
        with pytest.raises(ConfigurationError, match="1 robots of this agent have"):
            policy.predict(observations[:1], foreign)
    for wrong in (0, 5, 1.5):
        with pytest.raises(ConfigurationError, match="replan"):
            planner.outer_policy(replan=wrong)


class Ends(gym.Env[Any, Any]):
    """Shows how far it is, pays what it is told to do, and ends after some steps."""

    observation_space, action_space = OBSERVED, ACTS

    def __init__(self, length: int) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.full(3, self.length / 10, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        seen = np.full(3, self.steps - self.length / 10, np.float32)
        return seen, float(action[0] + 2 * action[1]), self.steps == self.length, False, {}


@pytest.mark.parametrize("previous", [False, True])
def test_plans_survive_the_evaluation_of_stable_baselines3(previous: bool) -> None:
    """Robots whose episodes end inside chunks, at different times; and the agent's own predict."""
    dataset = together(episodes(50))
    settings: dict[str, Any] = {"chunk": 3, "include_previous_action": previous, "flow_steps": 2}
    env = FlowMDPEnv(Ends(5), dataset=dataset, **settings)
    agent = FlowBC("MlpPolicy", env, device="cpu", seed=0, net_arch=(8,)).learn(2)

    def by_hand(length: int, replan: int) -> float:
        robot, total, over, last = Ends(length), 0.0, False, np.zeros((1, 3), np.float32)
        seen, _ = robot.reset()
        while not over:
            noise = np.zeros((1, 6), np.float32)
            plan = agent.act(seen[None], noise=noise, previous=last if previous else None)
            for action in plan.reshape(3, 2)[:replan]:
                seen, reward, over, *_ = robot.step(action)
                total, last = total + reward, np.array([[*action, 1]], np.float32)
                if over:
                    break
        return total

    lengths = (5, 7, 8)
    policies: list[Any] = [(agent, 3), *((agent.outer_policy(replan=k), k) for k in (1, 2, 3))]
    for policy, replan in policies:
        robots = DummyVecEnv([lambda n=n: Monitor(Ends(n)) for n in lengths])  # type: ignore[misc]
        returns, played = evaluate_policy(policy, robots, 6, return_episode_rewards=True)
        wanted = {n: by_hand(n, replan) for n in lengths}
        assert sorted(played) == sorted(2 * lengths)  # type: ignore[arg-type]
        assert returns == pytest.approx([wanted[n] for n in played], abs=1e-4)  # type: ignore
