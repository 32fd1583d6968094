"""The table of tasks, the outer environments it names, and the scores."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from flowmdp.envs.behavior import BehaviorPolicy
from flowmdp.envs.outer import make_outer
from flowmdp.envs.scores import normalized_score
from flowmdp.envs.store import DATASET_ID
from flowmdp.envs.tasks import SOURCES, TASKS, Task, get_task
from flowmdp.errors import UnknownTaskError

ROWS = pytest.mark.parametrize("row", TASKS.values(), ids=TASKS)


@ROWS
def test_row_is_complete(row: Task) -> None:
    assert set(row.datasets) <= set(row.outer_env) <= set(SOURCES)
    assert row.default_source in row.outer_env
    assert all(DATASET_ID.fullmatch(dataset_id) for dataset_id in row.datasets.values())
    assert ("builtin" in row.datasets) == bool(row.behaviors)
    assert (row.reference_min is None) == (row.reference_max is None)
    assert bool(row.reference_origin) == (row.reference_min is not None)


@ROWS
def test_outer_env_has_flat_spaces_and_the_tasks_horizon(row: Task) -> None:
    outer = make_outer(row.name)
    assert isinstance(outer.observation_space, gym.spaces.Box)
    assert len(outer.observation_space.shape) == 1
    assert isinstance(outer.action_space, gym.spaces.Box)
    assert (outer.action_space.low == -1).all() and (outer.action_space.high == 1).all()
    assert outer.spec is not None and outer.spec.max_episode_steps == row.horizon
    outer.close()


@ROWS
def test_shipped_policies_fit_the_outer_env(row: Task) -> None:
    outer = make_outer(row.name)
    for name in row.behaviors:
        policy = BehaviorPolicy.shipped(name)
        assert (policy.obs_dim,) == outer.observation_space.shape
        assert (policy.action_dim,) == outer.action_space.shape
        assert policy.provenance["env_id"] == row.outer_env["builtin"]
        assert {"command", "seed", "versions", "returns"} <= set(policy.provenance)
    outer.close()


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UnknownTaskError, match=r"did you mean hopper-medium"):
        get_task("hoper-medium")
    with pytest.raises(UnknownTaskError, match=r"choose one of .*hopper-medium"):
        get_task("xyzzy")
    with pytest.raises(UnknownTaskError, match=r"no source 'd5rl': choose one of builtin"):
        make_outer("hopper-medium", "d5rl")


def test_sources_decide_the_environments_version() -> None:
    versions = {source: get_task("hopper-medium").outer_env[source] for source in SOURCES}
    assert versions == {"builtin": "Hopper-v5", "minari": "Hopper-v5", "d4rl": "Hopper-v4"}


def test_scores() -> None:
    scores = normalized_score("hopper-medium", [[-20.272305, 3234.3]])
    assert scores is not None
    np.testing.assert_allclose(scores, [[0.0, 100.0]], atol=1e-9)
    half = normalized_score("walker2d-medium", 2296.964504)
    assert half is not None and float(half) == pytest.approx(50.0)


def test_tasks_without_references_have_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Task("bare", {"builtin": "Hopper-v5"}, {}, horizon=1000)
    monkeypatch.setitem(TASKS, "bare", bare)
    assert normalized_score("bare", 1.0) is None


def test_the_table_needs_no_library() -> None:
    code = (
        "import sys, flowmdp.envs.tasks; "
        "print(sorted({'torch', 'mujoco', 'minari', 'h5py', 'safetensors'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
