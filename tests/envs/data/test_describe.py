"""What is told of a dataset, in numbers and in a picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from flowmdp.cli import main
from flowmdp.envs.data import dataset_info, load_dataset
from flowmdp.envs.data.describe import describe
from flowmdp.envs.tasks import get_task
from flowmdp.errors import DatasetError
from flowmdp.transitions import WIDTHS, TransitionDataset
from tests.envs.datasets_by_hand import episode, write

ID = "hand/made-v0"


def load(dataset_id: str = ID) -> TransitionDataset:
    return load_dataset("hopper-medium", dataset_id=dataset_id)


def test_info_of_a_hand_made_dataset() -> None:
    first, second = episode(4, terminated=True), episode(2, truncated=True, seed=1)
    first.actions[0, 0] = 1
    write(ID, [first, second])
    info = dataset_info("hopper-medium", dataset_id=ID)
    assert (info["episodes"], info["steps"]) == (2, 6)
    assert info["return"]["mean"] == pytest.approx((first.rewards.sum() + second.rewards.sum()) / 2)
    assert info["episodes_terminated"] == info["episodes_truncated"] == 0.5
    assert info["actions_clipped"] == pytest.approx(1 / 6)
    assert info["length"]["max"] == 4
    assert dataset_info(ID)["task"] == "none of ours"
    assert json.loads(json.dumps(info)) == info


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["hopper-medium"], "data build hopper-medium"),
        (["hopper-medium", "d4rl"], "data import FILE.hdf5 --task hopper-medium"),
        (["scene-play", "ogbench"], "data download scene-play"),
        (["ogbench/antmaze-large-navigate-v0"], "data download antmaze-large-navigate"),
    ],
)
def test_info_says_how_to_get_what_is_absent(
    words: list[str], cure: str, datasets_path: Path
) -> None:
    write("flowmdp/hopper/medium-v1", [episode(2, truncated=True)])  # alike, and no cure
    with pytest.raises(DatasetError, match=f"not in the local store .*{cure}"):
        dataset_info(*words)


def test_coverage_counts_distinct_pairs() -> None:
    write(ID, [episode(30, truncated=True)])
    data = load()
    once = describe(data)["state_action_coverage"]
    twice = dataclasses.replace(
        data,
        **{  # type: ignore[arg-type]
            name: np.concatenate([getattr(data, name)] * 2) for name in WIDTHS
        },
    )
    assert once == 1.0
    assert describe(twice, get_task("hopper-medium"))["state_action_coverage"] == 0.5


def test_the_command_describes_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(ID, [episode(4, terminated=True), episode(2, truncated=True, seed=1)])
    picture = tmp_path / "data.png"
    assert main(["data", "info", ID, "--plot", str(picture)]) == 0
    printed = capsys.readouterr()
    assert "episodes" in printed.out and "drawn into" in printed.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["data", "info", ID, "--plot", str(tmp_path / "data.txt")]) == 2
    assert "end its name in one of" in capsys.readouterr().err
