"""Building a dataset: the same bytes, kept unless forced, built where it is absent."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
from minari.namespace import list_local_namespaces

from flowmdp.envs.data import load_dataset
from flowmdp.envs.data.sources.build import BUILD_KEY, build_dataset
from flowmdp.envs.data.store import read_metadata
from flowmdp.envs.robots.outer import make_outer
from flowmdp.errors import ConfigurationError, DatasetError, UnknownTaskError
from tests.envs.built import ID, TASK, build, digests, leftovers


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
