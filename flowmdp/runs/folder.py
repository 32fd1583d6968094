"""The folder of one training run: which files it holds, and writing them so that none is ever half.

config.json     what was asked for: enough to start the same run again, or to continue it
checkpoint.zip  the agent, with optimisers and generators
progress.csv    the log, one line per interval; TensorBoard files lie beside it
history.json    evaluations during training, seconds and updates so far
curves.png      drawn from the three above
result.json     the run's outcome; written last, so its presence says that the run is complete
"""

from __future__ import annotations

import csv
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowmdp.errors import CheckpointError, ConfigurationError
from flowmdp.files import naming, read_json, write_json


class RunFolder:
    """A run's folder and the files in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.checkpoint = path / "checkpoint.zip"
        self.progress = path / "progress.csv"
        self.history = path / "history.json"
        self.curves = path / "curves.png"
        self.result = path / "result.json"

    def check_free(self) -> None:
        """Check that a new run can be put here; leaves nothing behind.

        Raises:
            ConfigurationError: When the folder already holds a run, or is no folder.
            OSError: When it cannot be written.
        """
        if self.config.exists() or self.checkpoint.exists():
            raise ConfigurationError(
                f"{self.path} already holds a run: continue it with `flowmdp train --resume "
                f"{self.path}`, or choose another --out"
            )
        there = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not there.is_dir():
            raise ConfigurationError(f"{there} is a file: choose a folder with --out")
        with naming(self.path), tempfile.TemporaryFile(dir=there):
            pass

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder and write the run's configuration."""
        self.check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.config, config)

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, dict[str, Any]]:
        """An existing run and its configuration.

        Raises:
            CheckpointError: When there is no run, or its configuration cannot be read.
        """
        folder = cls(path)
        if not folder.config.exists():
            raise CheckpointError(
                f"{path} holds no run (no config.json): name a folder that `flowmdp train` made"
            )
        return folder, read_json(folder.config)


def free_folder(path: Path) -> Path:
    """`path`, or the first of path-2, path-3 ... that does not exist yet."""
    candidate, n = path, 1
    while candidate.exists():
        n += 1
        candidate = path.with_name(f"{path.name}-{n}")
    return candidate


def progress_rows(path: Path) -> list[dict[str, str]]:
    """Rows of progress.csv, without what a kill or a full disk left unreadable.

    A last line without its end is left out: half a number may look like a number.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1].decode(errors="replace")
    rows = csv.DictReader(whole.splitlines())
    return [row for row in rows if None not in row and (row.get("step") or "").isdecimal()]


def read_progress(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Series of progress.csv: name -> (step, value) pairs, without cells that hold no number."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in progress_rows(path):
        step = int(row.pop("step"))
        for name, cell in row.items():
            with suppress(TypeError, ValueError):  # a row that is too short has None
                series.setdefault(name, []).append((step, float(cell)))
    return series
