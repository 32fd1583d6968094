"""Building a dataset: the same bytes, never half a dataset, one builder at a time."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import minari
import numpy as np
import pytest
import torch
from minari.namespace import list_local_namespaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from examples import train_behavior
from flowmdp.envs.data import list_datasets, load_dataset
from flowmdp.envs.data.sources.behavior import BehaviorPolicy
from flowmdp.envs.data.sources.build import BUILD_KEY, build_dataset
from flowmdp.envs.data.sources.collect import collect_steps, roll_out
from flowmdp.envs.data.store import dataset_folder, read_metadata
from flowmdp.envs.robots.outer import make_outer
from flowmdp.errors import (
    ConfigurationError,
    DatasetError,
    FlowMDPError,
    UnknownTaskError,
)

TASK, ID = "hopper-medium", "flowmdp/hopper/medium-v0"


def build(steps: int = 300, **options: object) -> str:
    return build_dataset(TASK, steps=steps, progress=False, **options)  # type: ignore[arg-type]


def digests() -> dict[str, str]:
    data = dataset_folder(ID) / "data"
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(data.iterdir())}


def leftovers(store: Path) -> list[str]:
    return [path.name for path in store.glob(".*") if path.is_dir()]


def test_same_seed_same_bytes_other_seed_other_bytes(datasets_path: Path) -> None:
    build()
    first = digests()
    assert set(first) == {"main_data.hdf5", "metadata.json"}
    build(force=True)
    assert digests() == first
    build(force=True, seed=1)
    assert digests()["main_data.hdf5"] != first["main_data.hdf5"]
    assert leftovers(datasets_path) == []


def test_is_a_real_minari_dataset_of_exactly_that_many_steps() -> None:
    build(1_234)
    dataset = minari.load_dataset(ID)
    assert ID in minari.list_local_datasets()
    assert dataset.total_steps == 1_234
    assert dataset.env_spec.id == "Hopper-v5"
    assert {"flowmdp", "flowmdp/hopper"} <= set(list_local_namespaces())
    data = load_dataset(TASK)
    assert len(data) == 1_234 and data.truncations[-1]
    assert read_metadata(ID)[BUILD_KEY]["steps"] == 1_234


def test_actions_replay_every_episode_bit_for_bit() -> None:
    build()
    outer = make_outer(TASK)
    for episode in itertools.islice(minari.load_dataset(ID).iterate_episodes(), 2):
        (metadata,) = minari.load_dataset(ID).storage.get_episode_metadata([episode.id])
        observation, _ = outer.reset(seed=metadata["seed"])
        np.testing.assert_array_equal(observation, episode.observations[0])
        for n, action in enumerate(episode.actions):
            observation, reward, terminated, _, _ = outer.step(action)
            np.testing.assert_array_equal(observation, episode.observations[n + 1])
            assert (reward, terminated) == (episode.rewards[n], episode.terminations[n])
    outer.close()


def test_episodes_do_not_depend_on_how_many_run_at_once() -> None:
    policy = BehaviorPolicy.shipped(TASK)
    rolled = []
    for number in (1, 6):
        envs = [make_outer(TASK) for _ in range(number)]
        rolled.append(list(itertools.islice(roll_out(policy, envs, seed=3, horizon=1000), 3)))
        for env in envs:
            env.close()
    for one, six in zip(*rolled, strict=True):
        np.testing.assert_allclose(one.observations[:20], six.observations[:20], atol=1e-4)
        assert one.seed == six.seed


def test_steps_are_cut_exactly_and_the_cut_is_a_truncation() -> None:
    env = make_outer(TASK)
    policy = BehaviorPolicy.shipped(TASK)
    episodes = list(collect_steps(roll_out(policy, [env], seed=0, horizon=40), 100))
    env.close()
    assert [len(episode) for episode in episodes] == [40, 40, 20]
    for episode in episodes:
        assert episode.truncations.tolist() == [False] * (len(episode) - 1) + [True]
        assert len(episode.observations) == len(episode) + 1


@pytest.mark.parametrize("algorithm", ["SAC", "PPO"])
def test_numpy_actor_equals_stable_baselines3(algorithm: str) -> None:
    model: BaseAlgorithm
    env = make_vec_env("Hopper-v5", 2, seed=0)
    rng = np.random.default_rng(0)
    observations, noise = rng.standard_normal((9, 11)), rng.standard_normal((9, 3))
    if algorithm == "SAC":
        model = SAC("MlpPolicy", env, policy_kwargs={"net_arch": [16, 16]}, seed=0)
        states = torch.tensor(observations).float()
        mean, log_std, _ = model.actor.get_action_dist_params(states)
        expected = torch.tanh(mean + log_std.exp() * torch.tensor(noise).float())
    else:
        env = VecNormalize(env, clip_obs=float("inf"))
        model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0)
        model.learn(64)
        states = torch.tensor(env.normalize_obs(observations)).float()
        gaussian = cast(
            torch.distributions.Normal, model.policy.get_distribution(states).distribution
        )
        expected = (gaussian.mean + gaussian.stddev * torch.tensor(noise)).clip(-1, 1)
    weights = {name: value.numpy() for name, value in train_behavior.actor_weights(model).items()}
    policy = BehaviorPolicy(weights, {"algorithm": algorithm})
    actions = policy.sample(observations, noise)
    np.testing.assert_allclose(actions, expected.detach().numpy(), atol=1e-5)
    env.close()


def test_the_training_script_writes_such_files(tmp_path: Path) -> None:
    train_behavior.main(
        train_behavior.Config(algorithm="ppo", steps=4_096, every=4_096, out=tmp_path)
    )
    (path,) = tmp_path.iterdir()
    provenance = BehaviorPolicy.load(path).provenance
    assert provenance["steps"] == "4096" and len(provenance["returns"]) == 20


def test_an_existing_dataset_is_kept_and_another_recipe_refused() -> None:
    build()
    before = digests()
    assert build() == ID
    with pytest.raises(DatasetError, match=r"there already, built from 300 steps, seed 0.*--force"):
        build(301)
    assert digests() == before


def test_loading_builds_what_is_absent_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowmdp.envs.data.load.build_dataset", lambda task: build())
    assert len(load_dataset(TASK)) == 300
    assert f"dataset {ID} is not there yet: building it" in capsys.readouterr().err
    load_dataset(TASK)
    assert capsys.readouterr().err == ""


def test_a_dataset_of_an_older_policy_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build()
    monkeypatch.setattr("flowmdp.envs.data.load.is_current", lambda row, metadata: False)
    load_dataset(TASK)
    assert "another version of the behaviour policy" in capsys.readouterr().err


CHILD = """
import sys
from flowmdp.envs.data.sources.build import build_dataset
print("started", flush=True)
build_dataset("hopper-medium", steps=int(sys.argv[1]), progress=False)
"""


def start_build(steps: int) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(steps)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "started\n"
    return child


@pytest.mark.parametrize("begun", [False, True], ids=["any moment", "while writing"])
def test_killed_at_any_moment_it_leaves_no_dataset(begun: bool, datasets_path: Path) -> None:
    """100,000 steps take seconds, so that the kill comes first."""
    moments = random.Random(0)
    stale: list[str] = []
    for _ in range(2):
        child = start_build(100_000)
        while begun and leftovers(datasets_path) in ([], stale):
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.3))
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        stale = leftovers(datasets_path)
        assert not begun or len(stale) == 1
        assert ID not in minari.list_local_datasets()
        with pytest.raises(DatasetError, match="not in the local store"):
            load_dataset(TASK, build=False)
    build(500)
    assert len(load_dataset(TASK)) == 500
    assert leftovers(datasets_path) == []


@pytest.mark.parametrize("stage", ["before the swap", "between its two renames"])
def test_a_killed_replacement_keeps_the_old_dataset(
    stage: str, datasets_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build()
    before = digests()
    rename, calls = os.rename, 0

    def die(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == (1 if stage == "before the swap" else 2):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("flowmdp.envs.data.store.os.rename", die)
    with pytest.raises(KeyboardInterrupt):
        build(200, force=True)
    monkeypatch.setattr("flowmdp.envs.data.store.os.rename", rename)
    assert build() == ID
    assert digests() == before
    assert leftovers(datasets_path) == []


def test_two_builds_at_once_agree() -> None:
    children = [start_build(600) for _ in range(2)]
    for child in children:
        child.communicate()
        assert child.returncode == 0
    both = digests()
    build(600, force=True)
    assert digests() == both


def test_a_failed_build_leaves_nothing(
    datasets_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flowmdp.envs.data.store._flush", full)
    with pytest.raises(DatasetError, match=r"No space left.*MINARI_DATASETS_PATH"):
        build(100)
    assert list_datasets() == {} and leftovers(datasets_path) == []


def test_a_full_disk_is_one_line(datasets_path: Path) -> None:
    """No file may grow to the size of the dataset; HDF5 on a disk would crash the process."""
    command = [sys.executable, "-P", "-m", "flowmdp.cli", "data", "build", TASK, "--steps", "1000"]
    limited = ["sh", "-c", 'ulimit -f 200; exec "$@"', "sh", *command]  # blocks of 512 bytes
    child = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert child.returncode == 2
    line = child.stderr.splitlines()[-1]
    assert line.startswith(f"flowmdp: cannot write dataset {ID}") and "make room" in line
    assert list_datasets() == {} and leftovers(datasets_path) == []


def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(blocked))
    with pytest.raises(DatasetError, match=r"cannot write .*MINARI_DATASETS_PATH"):
        build(100)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_without_write_permission(datasets_path: Path) -> None:
    datasets_path.mkdir()
    datasets_path.chmod(0o500)
    with pytest.raises(DatasetError, match=r"Permission denied.*MINARI_DATASETS_PATH"):
        build(100)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": -5}, "steps is -5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        build_dataset(TASK, progress=False, **options)


def test_tasks_without_shipped_behaviour_say_so() -> None:
    with pytest.raises(UnknownTaskError, match=r"door-human has no source 'builtin'.*minari"):
        build_dataset("door-human", steps=10)


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 100])
def test_a_damaged_policy_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "actor.safetensors"
    path.write_bytes(content)
    with pytest.raises(FlowMDPError, match="cannot read the behaviour policy"):
        BehaviorPolicy.load(path)
