"""Several seeds in one process: each run is what it is alone, to the last bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from flowmdp.agents import DFDiv
from flowmdp.agents.core import checkpoint
from flowmdp.cli import main
from tests.runs.tiny_run import failure, tiny_run

RUN = "import sys; from flowmdp.cli import main; sys.exit(main(sys.argv[1:]))"


def seeds(out: Path, *more: str, steps: int = 20) -> list[str]:
    """The command for seeds 1 and 2."""
    return tiny_run("df-div", out, "--seeds", "1", "2", *more, steps=steps)


def outcome(folder: Path) -> dict[str, Any]:
    """All that does not depend on the clock, the weights too."""
    result = json.loads((folder / "result.json").read_text())
    kept = ("seed", "config", "flow", "returns", "last_evaluations", "best_evaluation")
    _, manifest, tensors = checkpoint.read(folder / "checkpoint.zip")
    rows = (folder / "progress.csv").read_text().splitlines()
    timed = rows[0].split(",").index("time/updates_per_second")
    cells = [[c for i, c in enumerate(row.split(",")) if i != timed] for row in rows]
    weights = {name: tensor.tolist() for name, tensor in tensors.items()}
    counts = {name: manifest[name] for name in manifest if name != "saved"}
    return {**{name: result[name] for name in kept}, "w": weights, "log": cells, "n": counts}


def test_each_run_is_what_it_is_alone(
    hopper_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for way, cache in (("together", "a"), ("alone", "b")):
        monkeypatch.setenv("FLOWMDP_CACHE", str(tmp_path / cache))  # nothing is shared
        if way == "together":
            assert main(seeds(tmp_path / way)) == 0
        else:
            for seed in ("1", "2"):
                out = tmp_path / way / f"seed{seed}"
                assert main(tiny_run("df-div", out, "--seed", seed)) == 0
    together, alone = (
        [outcome(tmp_path / way / f"seed{seed}") for seed in (1, 2)]
        for way in ("together", "alone")
    )
    assert together == alone
    assert together[0]["w"] != together[1]["w"]


def test_ctrl_c_saves_all_and_one_command_continues(
    hopper_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken, whole, steps = tmp_path / "broken", tmp_path / "whole", 60
    often = ("--eval-every", "30", "--save-every", "1000")
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *seeds(broken, *often, steps=steps)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FLOWMDP_CACHE": str(tmp_path / "cache")},
    )
    log = broken / "seed2" / "progress.csv"
    while process.poll() is None and not (log.exists() and "policy_loss" in log.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    folders = [str(broken / f"seed{seed}") for seed in (1, 2)]
    assert process.returncode == 130
    assert f"continue with: flowmdp train --resume {' '.join(folders)}" in said
    assert main(["train", "--resume", *folders]) == 0
    assert main(seeds(whole, *often, steps=steps)) == 0
    for seed in ("seed1", "seed2"):
        assert outcome(broken / seed) == outcome(whole / seed)


def test_a_run_that_diverges_stops_no_other(
    hopper_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    update = DFDiv.update

    def diverging(self: DFDiv) -> dict[str, torch.Tensor]:
        info = update(self)
        return info if self.seed == 2 else {**info, "policy_loss": torch.tensor(torch.nan)}

    monkeypatch.setattr(DFDiv, "update", diverging)
    line = failure(capsys, *seeds(tmp_path))
    assert f"{tmp_path / 'seed1'}: training diverged at step 1" in line
    assert (tmp_path / "seed2" / "result.json").exists()
    assert not (tmp_path / "seed1" / "result.json").exists()


def test_what_cannot_run_together_is_refused(
    runs: dict[str, Path], hopper_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tiny_run("df-div", tmp_path / "new")
    for more in (("--seeds", "1", "1"), ("--seeds", "1", "2", "--seed", "3")):
        assert "--seeds 1 2 3, or --seed 1" in failure(capsys, *words, *more)
    assert "--seeds" in failure(capsys, *words, "--seeds", "1", "two")
    assert "--seeds has no value" in failure(capsys, *words, "--seeds")
    assert "--resume has no value" in failure(capsys, "train", "--resume")
    assert not (tmp_path / "new").exists()
    both = map(str, (runs["df-div"], runs["fql"]))
    line = failure(capsys, "train", "--resume", *both, "--steps", "40")
    assert "differ in algorithm: continue them one by one" in line
