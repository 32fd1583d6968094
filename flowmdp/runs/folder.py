"""The folder of one training run: which files it holds, and writing them so that none is ever half.

config.json     what was asked for: enough to start the same run again, or to continue it
checkpoint.zip  the agent, with optimisers and generators
replay.zip      what robots went through, for an agent that learns from them; with the checkpoint
progress.csv    the log, one line per interval; TensorBoard files lie beside it
history.json    evaluations during training, seconds and updates so far
curves.png      drawn from the three above
result.json     the run's outcome; written last, so its presence says that the run is complete

Whoever trains holds a lock on the folder, the operating system's (flock), as long as it lives.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flowmdp.errors import CheckpointError, ConfigurationError
from flowmdp.files import check_writable, locked, read_json, write_json
from flowmdp.schemas import RunConfig

STEP = re.compile("[0-9]{1,15}")
"""How a step is written in progress.csv."""


class RunFolder:
    """A run's folder and the files in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.checkpoint = path / "checkpoint.zip"
        self.replay = path / "replay.zip"
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
        check_writable(self.path)

    @contextmanager
    def created(self, config: dict[str, Any]) -> Iterator[None]:
        """Make the folder, write the run's configuration and hold the lock.

        Of several processes that do this at once, one gets the folder.

        Raises:
            ConfigurationError: When the folder holds a run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            self.check_free()
            write_json(self.config, config)
            yield

    @classmethod
    def open(
        cls, path: Path, schema: type[RunConfig] = RunConfig
    ) -> tuple[RunFolder, dict[str, Any]]:
        """An existing run and its configuration.

        Raises:
            CheckpointError: When there is no run, or its configuration cannot be read.
        """
        folder = cls(path)
        if not folder.config.exists():
            raise CheckpointError(
                f"{path} holds no run (no config.json): name a folder that `flowmdp train` made"
            )
        return folder, read_json(folder.config, schema)


def free_folder(path: Path, make: bool = False) -> Path:
    """`path`, or the first of path-2, path-3 ... that does not exist yet.

    With `make` it is made, so that no other process gets it.
    """
    candidate, n = path, 1
    while candidate.exists() or (make and not _made(candidate)):
        n += 1
        candidate = path.with_name(f"{path.name}-{n}")
    return candidate


def _made(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def progress_rows(path: Path) -> list[dict[str, str]]:
    """Rows of progress.csv, without what a kill or a full disk left unreadable.

    A last line without its end is left out: half a number may look like a number.

    Raises:
        CheckpointError: When the file is no log of a run.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1].decode(errors="replace")
    rows = csv.DictReader(whole.splitlines())
    try:
        if (rows.fieldnames or ["step"])[0] != "step":
            raise csv.Error("its first column is not step")
        return [row for row in rows if None not in row and STEP.fullmatch(row.get("step") or "")]
    except csv.Error as error:
        raise CheckpointError(
            f"{path} is no log of `flowmdp train` ({error}): remove it or restore it"
        ) from error


def read_progress(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Series of progress.csv: name -> (step, value) pairs, without cells that hold no number."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in progress_rows(path):
        step = int(row.pop("step"))
        for name, cell in row.items():
            with suppress(TypeError, ValueError):  # a row that is too short has None
                series.setdefault(name, []).append((step, float(cell)))
    return series
