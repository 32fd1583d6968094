"""The Adroit hand under D4RL's definitions: reward sign, Pen's end, and recorded data put right."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from flowmdp.cli import main
from flowmdp.envs.data import dataset_info, load_dataset
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.data.store import dataset_folder
from flowmdp.envs.robots import adroit
from flowmdp.envs.robots.outer import make_outer, registered_id
from flowmdp.envs.tasks import get_task
from flowmdp.errors import DatasetError, UnknownTaskError
from tests.envs.datasets_by_hand import write

pytest.importorskip("gymnasium_robotics")

ID = "hand/made-v0"
ROBOTS = ("door", "hammer", "pen", "relocate")
WRAPPERS: dict[str, Any] = {
    "door": adroit.D4RLDoor,
    "hammer": adroit.D4RLHammer,
    "pen": adroit.D4RLPen,
    "relocate": adroit.D4RLRelocate,
}
WITH_HAND_TERM = [robot for robot in ROBOTS if robot != "pen"]


def bare(robot: str) -> gym.Env[Any, Any]:
    """The environment as the installed release has it."""
    row = get_task(f"{robot}-human")
    env_id = registered_id(row, "minari")
    return gym.make(env_id, max_episode_steps=row.horizon, disable_env_checker=True)


def minimum(robot: str) -> float:
    """D4RL's own figure."""
    references = get_task(f"{robot}-human").references
    assert references is not None
    return references[0]


def random_returns(env: gym.Env[Any, Any], episodes: int) -> list[float]:
    """Returns of uniform random actions, seeded."""
    env.action_space.seed(0)
    returns = []
    for seed in range(episodes):
        env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


# D4RL's minimum, and how far from it the mean of so many random episodes may be: about three
# standard errors. Pen's returns are spread most (standard deviation 200), in D4RL's figure as well:
# the mean of 500 episodes is 66 ± 10 where D4RL says 96; without the drop's end it is below -100.
EXPECTED = {"door": (5, 1.0), "hammer": (5, 8.0), "pen": (100, 80.0), "relocate": (8, 5.0)}


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_random_policy_earns_d4rls_minimum(robot: str) -> None:
    episodes, tolerance = EXPECTED[robot]
    env = make_outer(f"{robot}-human")
    mean = float(np.mean(random_returns(env, episodes)))
    env.close()
    assert mean == pytest.approx(minimum(robot), abs=tolerance)


@pytest.mark.parametrize(("robot", "episodes"), [("door", 5), ("pen", 20), ("relocate", 8)])
def test_without_the_wrapper_it_does_not(robot: str, episodes: int) -> None:
    """Negative control: the installed release itself, if it is one of those that deviate."""
    env = bare(robot)
    wrapped = WRAPPERS[robot](env)
    if not wrapped.deviates:
        pytest.skip("the installed release has D4RL's definition")
    mean = float(np.mean(random_returns(env, episodes)))
    env.close()
    _, tolerance = EXPECTED[robot]
    assert mean != pytest.approx(minimum(robot), abs=tolerance)


def mended(robot: str) -> gym.Env[Any, Any]:
    """A release that has D4RL's definitions: the installed one under our own wrapper, unwrapped."""
    env = WRAPPERS[robot](bare(robot))

    class Mended(type(env.unwrapped)):  # type: ignore[misc]
        def __init__(self) -> None:
            self.__dict__ = env.unwrapped.__dict__

        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = super().step(action)
            if robot == "pen":
                terminated = bool(env._target.xpos[2] < adroit.DROPPED)
            else:
                reward -= 2 * adroit.HAND_WEIGHT * env.distance()
            return observation, reward, terminated, truncated, info

    return Mended()


@pytest.mark.parametrize("robot", ROBOTS)
def test_on_a_mended_release_the_wrapper_does_nothing(robot: str) -> None:
    env = mended(robot)
    wrapped = WRAPPERS[robot](env)
    assert not wrapped.deviates
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(60)]

    def play(some: gym.Env[Any, Any]) -> list[tuple[float, bool]]:
        some.reset(seed=1)
        return [(float(step[1]), bool(step[2])) for step in map(some.step, actions)]

    assert play(wrapped) == play(env)


@pytest.mark.parametrize("robot", WITH_HAND_TERM)
def test_the_sign_is_all_that_changes(robot: str) -> None:
    env, outer = bare(robot), make_outer(f"{robot}-human")
    env.reset(seed=3)
    outer.reset(seed=3)
    hand: Any = outer
    for _ in range(20):
        action = outer.action_space.sample()
        theirs, ours = env.step(action), outer.step(action)
        np.testing.assert_array_equal(theirs[0], ours[0])
        turned = 2 * adroit.HAND_WEIGHT * hand.distance() if hand.deviates else 0.0
        assert float(theirs[1]) - float(ours[1]) == pytest.approx(turned, abs=1e-12)
    assert turned > 0


def test_pen_terminates_when_it_is_dropped() -> None:
    outer = make_outer("pen-human")
    outer.action_space.seed(0)
    ends = set()
    for seed in range(12):
        outer.reset(seed=seed)
        ended, steps = False, 0
        while not ended:
            observation, _, terminated, truncated, _ = outer.step(outer.action_space.sample())
            ended, steps = terminated or truncated, steps + 1
            assert terminated == (observation[26] < adroit.DROPPED)
        assert truncated == (steps == 100)
        ends.add((terminated, truncated))
    outer.close()
    assert {(True, False), (False, True)} <= ends


def test_probing_does_not_seed_the_environment() -> None:
    starts = [make_outer("door-human").reset()[0] for _ in range(2)]
    assert not np.array_equal(*starts)
    seeded = [make_outer("door-human").reset(seed=5)[0] for _ in range(2)]
    np.testing.assert_array_equal(*seeded)


def test_a_reward_of_neither_kind_is_refused() -> None:
    class Doubled(adroit.D4RLDoor):
        def other_terms(self, data: Any) -> float:
            return 2 * super().other_terms(data)

    with pytest.raises(UnknownTaskError, match="install a release of gymnasium-robotics"):
        Doubled(bare("door"))


def test_the_registered_version_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    row = get_task("door-human")
    current = registered_id(row, "minari")
    spec = gym.registry[current]
    monkeypatch.setattr("flowmdp.envs.robots.outer.gym.register_envs", lambda module: None)
    for name in ("AdroitHandDoor-v1", "AdroitHandDoor-v2"):
        monkeypatch.delitem(gym.registry, "AdroitHandDoor-v1", raising=False)
        monkeypatch.delitem(gym.registry, "AdroitHandDoor-v2", raising=False)
        monkeypatch.setitem(gym.registry, name, spec)
        assert registered_id(row, "minari") == name


# -- recorded data ----------------------------------------------------------------------------


def record(env: gym.Env[Any, Any], length: int, seed: int, hold: bool = False) -> Episode:
    """An episode of random actions, or of one that is held, as the environment gives it."""
    env.action_space.seed(seed)
    observations, rewards, terminations = [env.reset(seed=seed)[0]], [], []
    actions = [env.action_space.sample() for _ in range(length)]
    actions = [actions[0] / 4] * length if hold else actions
    for action in actions:
        observation, reward, terminated, *_ = env.step(action)
        observations.append(observation)
        rewards.append(float(reward))
        terminations.append(bool(terminated))
        if terminated:
            break
    n = len(rewards)
    ended = np.array(terminations)
    return Episode(
        seed,
        np.stack(observations),
        np.stack(actions)[:n],
        np.array(rewards),
        ended,
        (np.arange(n) == n - 1) & ~ended,
    )


@pytest.mark.parametrize("robot", WITH_HAND_TERM)
def test_recorded_rewards_get_d4rls_sign(robot: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Recorded on the bare environment or on ours, the rewards that come back are D4RL's."""
    task = f"{robot}-human"
    outer = make_outer(task)
    expected = [record(outer, 60, seed, hold=True) for seed in range(3)]
    theirs = [record(bare(robot), 60, seed, hold=True) for seed in range(3)]
    flipped = outer.get_wrapper_attr("deviates")
    for episodes, restored in ((expected, False), (theirs, flipped)):
        dataset_id = write(f"hand/{restored}-v0".lower(), episodes, task, bare(robot))
        data = load_dataset(task, dataset_id=dataset_id)
        np.testing.assert_allclose(
            data.rewards, np.concatenate([e.rewards for e in expected]), atol=1e-5
        )
        note = "its hand-to-object reward had the other sign" in capsys.readouterr().err
        assert note == restored


@pytest.mark.parametrize("elsewhere", [0.0, 0.5])
def test_a_fast_hand_or_a_moved_hammer_leaves_the_sign_open(
    elsewhere: float, capsys: pytest.CaptureFixture[str]
) -> None:
    episode = record(bare("hammer"), 20, 0, hold=bool(elsewhere))
    episode.observations[:, 36:39] += elsewhere
    write(ID, [episode], "hammer-human", bare("hammer"))
    data = load_dataset("hammer-human", dataset_id=ID)
    np.testing.assert_allclose(data.rewards, episode.rewards, atol=1e-5)
    assert "cannot be told" in capsys.readouterr().err


def test_recorded_pens_end_where_they_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    def episodes(env: gym.Env[Any, Any]) -> list[Episode]:
        return [record(env, 45, seed) for seed in range(6)]

    expected, theirs = episodes(make_outer("pen-human")), episodes(bare("pen").unwrapped)
    write(ID, theirs, "pen-human", bare("pen"))
    data = load_dataset("pen-human", dataset_id=ID)
    dropped = sum(e.terminations.any() for e in expected)
    assert 0 < dropped < 6
    for name in ("actions", "rewards", "terminations", "truncations"):
        column = np.concatenate([getattr(e, name) for e in expected])
        np.testing.assert_allclose(getattr(data, name), column, atol=1e-5)
    assert len(data.episode_starts) == 6
    assert f"dropping the pen in {dropped} of 6 episodes" in capsys.readouterr().err
    notes = dataset_info("pen-human", dataset_id=ID)["notes"]
    assert len(notes) == 1 and "dropping the pen" in notes[0]
    assert main(["data", "info", "pen-human", "--dataset", ID]) == 0
    assert "dropping the pen" in " ".join(capsys.readouterr().out.split())
    assert main(["data", "info", ID, "--dataset", ID]) == 2
    assert "needs a task before it" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["flowmdp.envs.robots.adroit", "flowmdp.envs.adroit"])
def test_what_was_recorded_through_the_wrapper_is_left_alone(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever the wrapper stood when it was recorded. The hand is fast: rewards tell no sign."""
    outer = make_outer("hammer-human")
    episode = record(outer, 20, 0)
    write(ID, [episode], "hammer-human", outer)
    path = dataset_folder(ID) / "data" / "metadata.json"
    entry_point = "flowmdp.envs.robots.adroit:D4RLHammer"
    assert entry_point in path.read_text()
    path.write_text(path.read_text().replace(entry_point, f"{module}:D4RLHammer"))
    data = load_dataset("hammer-human", dataset_id=ID)
    np.testing.assert_allclose(data.rewards, episode.rewards, atol=1e-5)
    assert capsys.readouterr().err == ""


def test_longer_episodes_than_the_tasks_are_labelled(capsys: pytest.CaptureFixture[str]) -> None:
    """Every step is there to learn from; a return is that of the task's own horizon."""
    episode = record(bare("door").unwrapped, 210, 0)
    write(ID, [episode], "door-human")
    data = load_dataset("door-human", dataset_id=ID)
    assert len(data) == 210
    assert "up to 210 steps, the task 200" in capsys.readouterr().err
    expected = episode.rewards[:200].sum()
    assert data.returns_within(200).tolist() == [pytest.approx(expected, rel=1e-5)]
    info = dataset_info("door-human", dataset_id=ID)
    assert info["return"]["mean"] == pytest.approx(expected, rel=1e-5)


def test_data_of_another_hand_is_refused() -> None:
    write(ID, [record(bare("door"), 5, 0)], "door-human")
    with pytest.raises(DatasetError, match=r"AdroitHandDoor-v\d, but task relocate-human"):
        load_dataset("relocate-human", dataset_id=ID)
    notes = dataset_info("pen-human", dataset_id=ID)["notes"]
    assert notes == ["its observations are not those of pen-human"]
