"""Files of a run: whole or untouched; logs that continue; statistics checked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowmdp.errors import CheckpointError
from flowmdp.files import read_json, replace_file, write_json
from flowmdp.runs.folder import free_folder, read_progress
from flowmdp.runs.log import ProgressFile
from flowmdp.runs.summary import summarize, summarize_evaluations


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"mean": 1.0})

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_file(path, fail)
    assert read_json(path) == {"mean": 1.0}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"mean": float("nan")})
    assert read_json(path) == {"mean": 1.0}


def test_damaged_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError, match="does not exist"):
        read_json(path)
    for text in ("{", "[1]", "\ufeff"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match="damaged"):
            read_json(path)


def test_free_folder_counts_up(tmp_path: Path) -> None:
    assert free_folder(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").mkdir()
    assert free_folder(tmp_path / "run") == tmp_path / "run-3"


def test_progress_continues_and_forgets(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    first = ProgressFile(path)
    first.write({"pretrain/loss": 3.0}, {}, 100)
    first.write({"pretrain/loss": 2.0}, {}, 200)
    first.write({"train/loss": 1.0, "note": "text is left out"}, {}, 10)
    first.write({"train/loss": 0.5, "train/gap": 0.1}, {}, 20)
    second = ProgressFile(path)
    second.forget_after(pretrain_step=200, train_step=10)
    second.write({"train/gap": 0.2}, {"train/gap": ("tensorboard",)}, 20)
    second.write({"train/gap": 0.3}, {"train/gap": ("csv",)}, 30)
    series = read_progress(path)
    assert series["pretrain/loss"] == [(100, 3.0), (200, 2.0)]
    assert series["train/loss"] == [(10, 1.0)]
    assert series["train/gap"] == [(20, 0.2)]
    assert "note" not in series


@pytest.mark.parametrize("torn", ["20", "20,0.", "20,0.5", "20,0.5,0.1", "20,0.5,0.1\r", "20,0.\0"])
def test_a_torn_last_line_of_progress_is_dropped(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    ProgressFile(path).write({"train/loss": 1.0, "train/gap": 0.3}, {}, 10)
    path.write_bytes(path.read_bytes() + torn.encode())
    assert read_progress(path)["train/loss"] == [(10, 1.0)]
    progress = ProgressFile(path)
    progress.forget_after(pretrain_step=0, train_step=10)
    progress.write({"train/loss": 0.5}, {}, 20)
    assert read_progress(path)["train/loss"] == [(10, 1.0), (20, 0.5)]


def test_progress_torn_in_its_header_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    path.write_text("step,train/lo")
    assert read_progress(path) == {}
    ProgressFile(path).write({"train/loss": 0.5}, {}, 20)
    assert read_progress(path) == {"train/loss": [(20, 0.5)]}


def test_unreadable_lines_and_cells_of_progress_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    path.write_bytes(
        b"step,train/loss,train/gap\r\n10,1.0,0.3\r\n20,0.30,0.5,0.1\r\n\xff,0.1,\r\n30\r\n"
        b"40,0.5.0,0.2\r\n\0\0\0\r\n"
    )
    ProgressFile(path).forget_after(pretrain_step=0, train_step=100)
    series = read_progress(path)
    assert series == {"train/loss": [(10, 1.0)], "train/gap": [(10, 0.3), (40, 0.2)]}


def test_summary_of_returns() -> None:
    returns = [1000.0, 1400.0, 1200.0]
    summary = summarize("hopper-medium", returns)
    assert summary["mean_return"] == 1200 and summary["std_return"] == np.std(returns)
    assert summary["normalized_score"] == pytest.approx(100 * 1220.272305 / 3254.572305)
    low, high = summary["interval_95"]
    assert 1000 <= low < 1200 < high <= 1400
    assert summarize("hopper-medium", [7.0])["interval_95"] == [7.0, 7.0]


def test_last_and_best_evaluations_are_told_apart() -> None:
    evaluations = [{"step": s, "returns": [r]} for s, r in ((1, 9.0), (2, 1.0), (3, 2.0), (4, 3.0))]
    summary = summarize_evaluations("hopper-medium", evaluations)
    assert summary["last_evaluations"]["mean_return"] == 2.0
    assert summary["best_evaluation"]["mean_return"] == 9.0
    assert summary["best_evaluation"]["step"] == 1
    assert summary["curve"] == {"steps": [1, 2, 3, 4], "mean_return": [9.0, 1.0, 2.0, 3.0]}
    assert summarize_evaluations("hopper-medium", []) == {
        "curve": None,
        "last_evaluations": None,
        "best_evaluation": None,
    }
