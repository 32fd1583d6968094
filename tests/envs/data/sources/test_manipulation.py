"""OGBench's scripted experts: the same numbers as a plain loop, kept, resumed, whatever happens."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from flowmdp.envs.data import list_datasets, load_dataset
from flowmdp.envs.data.sources import build as building
from flowmdp.envs.data.sources import kept, manipulation
from flowmdp.envs.data.sources.build import build_dataset, make_recorded
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.data.sources.manipulation import Experts, quiet
from flowmdp.envs.data.store import read_metadata
from flowmdp.envs.tasks import get_task
from flowmdp.errors import ConfigurationError, DatasetError
from tests.envs.built import digests, leftovers

pytest.importorskip("ogbench")

TASK, ID = "cube-single-play", "flowmdp/ogbench/cube-single-play-v0"
KEPT = ".flowmdp-flowmdp--ogbench--cube-single-play-v0.kept-*"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes of eight transitions."""
    monkeypatch.setattr(manipulation, "TRANSITIONS", 8)


@pytest.fixture(scope="module")
def recorded() -> Iterator[gym.Env[Any, Any]]:
    with make_recorded(get_task(TASK)) as env:
        yield env


class FakeExperts:
    """Episodes of the right shapes, without a simulator."""

    def __init__(self, name: str) -> None:
        assert name == "cube-single-play"

    def record(self, seed: int, index: int, transitions: int) -> Episode:
        rng = np.random.default_rng([seed, index])
        time.sleep(0.001)
        shape = transitions + 1, 28
        return manipulation.reward_free(
            rng.standard_normal(shape).astype(np.float32),
            rng.uniform(-1, 1, (transitions, 5)).astype(np.float32),
            {"qpos": np.zeros((transitions + 1, 21), np.float32)},
            index,
        )


@pytest.fixture
def fake(short: None, recorded: gym.Env[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds without a simulator, in no time."""
    monkeypatch.setattr(kept, "Experts", FakeExperts)
    monkeypatch.setattr(building, "make_recorded", lambda row: contextlib.nullcontext(recorded))


build = functools.partial(build_dataset, TASK, progress=False, jobs=1)


def plain_loop(name: str, experts: Experts, seed: int, index: int, n: int) -> dict[str, Any]:
    """The generator's recipe step by step, on the environment as OGBench's package makes it."""
    scene, _, kind = name.rpartition("-")
    states = np.random.SeedSequence([seed, index, 0]).generate_state(2)
    rng = np.random.default_rng([seed, index, 0, 1])
    with quiet():
        env = gym.make(
            f"{scene}-v0", terminate_at_goal=False, mode="data_collection", max_episode_steps=n + 1
        )
        for expert in experts.experts.values():
            expert._env = env
        np.random.seed(states[1])  # noqa: NPY002
        ob, info = env.reset(seed=int(states[0]))
    p_stack = rng.uniform(*{"cube-double": (0.0, 0.25)}.get(scene, (0.5, 0.5)))
    if kind == "noisy":
        xi = rng.uniform(0, 0.1)
    p_random = {"play": 0, "noisy": 0.2 if scene.startswith("puzzle") else 0.1}[kind]
    expert = experts.experts[info["privileged/target_task"]]
    expert.reset(ob, info)
    rows: dict[str, list[Any]] = {
        "observations": [],
        "actions": [],
        "qpos": [],
        "button_states": [],
    }
    done, targets = False, 0
    while not done:
        if p_random and rng.uniform() < p_random:
            action = rng.uniform(-1, 1, 5)
        else:
            action = np.array(expert.select_action(ob, info))
            if kind == "noisy":
                action = action + np.array([xi, xi, xi, 3 * xi, 10 * xi]) * rng.standard_normal(5)
        action = np.clip(action, -1, 1).astype(np.float32)
        with quiet():
            next_ob, _, terminated, done, info = env.step(action)
        assert not terminated
        if expert.done:
            targets += 1
            agent_ob, agent_info = env.unwrapped.set_new_target(p_stack=p_stack)  # type: ignore[attr-defined]
            expert = experts.experts[agent_info["privileged/target_task"]]
            expert.reset(agent_ob, agent_info)
        row = {"observations": ob, "actions": action, "qpos": info["prev_qpos"]}
        for key, value in (row | {"button_states": info.get("prev_button_states", 0)}).items():
            rows[key].append(value)
        ob = next_ob
    return {key: np.array(value) for key, value in rows.items()} | {"targets": targets}


@pytest.mark.parametrize(
    "name",
    [
        "scene-noisy",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("scene-play", "cube-double-play", "puzzle-3x3-noisy", "puzzle-4x4-play")
        ),
    ],
)
def test_an_episode_is_that_of_a_plain_loop(name: str) -> None:
    """To the last bit, also after other episodes, with NumPy's generator as it was before."""
    n, experts = 110, Experts(name)
    before = np.random.get_state()[1].tolist()  # type: ignore[union-attr]  # noqa: NPY002
    experts.record(3, 7, 60)
    episode = experts.record(0, 1, n)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr]  # noqa: NPY002
    rows = plain_loop(name, experts, 0, 1, n)
    assert rows["targets"] > 0
    np.testing.assert_array_equal(episode.observations, rows["observations"].astype(np.float32))
    np.testing.assert_array_equal(episode.actions, rows["actions"][:-1])
    np.testing.assert_array_equal(episode.infos["qpos"], rows["qpos"].astype(np.float32))
    if "button_states" in episode.infos:
        np.testing.assert_array_equal(episode.infos["button_states"], rows["button_states"])
    assert not episode.rewards.any() and not episode.terminations.any()
    assert episode.truncations.tolist() == [False] * (n - 1) + [True]


def test_an_episode_that_lost_its_cube_is_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = Experts("scene-play")
    tried: list[int] = []

    def attempt(seed: int, index: int, number: int, n: int) -> Episode:
        tried.append(number)
        qpos = np.zeros((n + 1, 25), np.float32)
        qpos[n, 15:17] = [(0.29, 0), (-0.3, 0.05), (-0.31, 0.09), (-0.31, 0.07)][number]
        zeros = np.zeros((n + 1, 40), np.float32), np.zeros((n, 5), np.float32)
        return manipulation.reward_free(*zeros, {"qpos": qpos})

    monkeypatch.setattr(experts, "_attempt", attempt)
    experts.record(0, 0, 4)
    assert tried == [0, 1, 2, 3]


def test_the_same_bytes_from_one_process_and_from_two(
    short: None,
    recorded: gym.Env[Any, Any],
    datasets_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(building, "make_recorded", lambda row: contextlib.nullcontext(recorded))
    assert build(episodes=3) == ID
    first = digests(ID)
    build(episodes=3, jobs=2, force=True)
    assert digests(ID) == first and leftovers(datasets_path) == []
    assert read_metadata(ID)["total_steps"] == 24
    data = load_dataset("cube-single-play-task2")
    assert len(data) == 24 and set(data.rewards.tolist()) <= {-1.0, 0.0}


def test_finished_episodes_are_checked_and_used(
    fake: None, datasets_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(episodes=6)
    whole = digests(ID)
    recorded: list[int] = []
    record = FakeExperts.record

    def stopped(self: FakeExperts, seed: int, index: int, n: int) -> Episode:
        if index == 4 and 4 not in recorded:
            recorded.append(4)
            raise KeyboardInterrupt
        recorded.append(index)
        return record(self, seed, index, n)

    monkeypatch.setattr(FakeExperts, "record", stopped)
    with pytest.raises(
        KeyboardInterrupt, match=r"data build cube-single-play --episodes 6 --seed 0"
    ):
        build(episodes=6, force=True)
    assert digests(ID) == whole  # still there
    (folder,) = datasets_path.glob(KEPT)
    torn = folder / "episode-00002.npz"
    torn.write_bytes(torn.read_bytes()[:-100])
    flipped = bytearray((folder / "episode-00001.npz").read_bytes())
    flipped[700] ^= 1
    (folder / "episode-00001.npz").write_bytes(flipped)
    recorded[:] = [4]
    build(episodes=6, force=True)
    assert recorded == [4, 1, 2, 4, 5]
    assert digests(ID) == whole and leftovers(datasets_path) == []


def test_killed_at_twenty_moments(fake: None, datasets_path: Path) -> None:
    """A build in a process of its own; what it left is read as nothing, or as whole."""
    begun = time.perf_counter()
    build(episodes=40)
    took, whole = time.perf_counter() - begun, digests(ID)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                build(episodes=40, force=True)
            os._exit(0)
        time.sleep(took * rng.uniform(0, 0.9))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert set(list_datasets()) <= {ID} and digests(ID) == whole
        found += [len(list(folder.glob("episode-*"))) for folder in datasets_path.glob(KEPT)]
    assert max(found) > 0  # it was killed while it recorded
    build(episodes=40, force=True)
    assert digests(ID) == whole and leftovers(datasets_path) == []


def test_a_process_beside_that_dies_is_one_line(
    fake: None, datasets_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "BESIDE", "import sys; sys.exit('no memory')")
    with pytest.raises(DatasetError, match=r"broke off \(no memory\): start the build again"):
        build(episodes=3, jobs=2)
    assert list_datasets() == {}


def test_the_bar_begins_where_it_stopped(
    fake: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(episodes=2)
    monkeypatch.setattr(building, "forget_unfinished", lambda dataset_id: None)
    build(episodes=2, force=True)
    monkeypatch.setattr(building, "STEPS_PER_SECOND", 0.1)
    build_dataset(TASK, progress=True, jobs=1, episodes=4, force=True)
    shown = capsys.readouterr().err
    assert "2 episodes take about 3 minutes on 1 cores; `flowmdp data build" in shown
    assert "50%" in shown and " 0%" not in shown


def test_what_is_built_by_episodes_takes_no_steps(fake: None) -> None:
    with pytest.raises(ConfigurationError, match="built by episodes, not by steps"):
        build(steps=1000)
    with pytest.raises(ConfigurationError, match="built by steps, not by episodes"):
        build_dataset("hopper-medium", episodes=3)
    with pytest.raises(ConfigurationError, match="jobs"):
        build(episodes=3, jobs=0)
    build(episodes=2)
    with pytest.raises(DatasetError, match="built from 2 episodes, seed 0"):
        build(episodes=3)
    assert manipulation.published_episodes("cube-triple-noisy") == 3000
    assert build_dataset("cube-single-play-sparse-task3", episodes=2, progress=False) == ID
