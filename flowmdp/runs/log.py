"""Where the logged numbers of a run go: progress.csv, TensorBoard, the terminal."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import (
    HumanOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
)

from flowmdp.files import replace_file
from flowmdp.runs.folder import RunFolder, progress_rows


class ProgressFile(KVWriter):
    """A CSV log with the step in its first column, which an interrupted run can continue.

    SB3's own CSV writer empties the file when it opens it and leaves the step out.

    Args:
        path: The file; lines it already holds stay, but for a last one that was never finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns = ["step"]
        if path.exists():
            with path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
            progress_rows(path)  # refuses another file
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
                self.columns = next(csv.reader(file), []) or self.columns

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Append one line; new names become new columns."""
        row = {
            name: value
            for name, value in key_values.items()
            if "csv" not in key_excluded.get(name, ()) and isinstance(value, int | float)
        }
        new = [name for name in row if name not in self.columns]
        if new or not self.path.exists():
            self.columns += new
            self._rewrite(lambda _: True)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow({"step": step, **row})

    def forget_after(self, pretrain_step: int, train_step: int) -> None:
        """Drop lines that a checkpoint at these steps does not know of; it will log them again."""
        if self.path.exists():
            self._rewrite(
                lambda row: (
                    int(row["step"]) <= (pretrain_step if _is_pretraining(row) else train_step)
                )
            )

    def _rewrite(self, keep: Callable[[dict[str, str]], bool]) -> None:
        rows = [row for row in progress_rows(self.path) if keep(row)]

        def write(temporary: Path) -> None:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows(rows)

        replace_file(self.path, write)

    def close(self) -> None:
        """Nothing stays open between two lines."""


def _is_pretraining(row: dict[str, str]) -> bool:
    return any(cell for name, cell in row.items() if name.startswith("pretrain/"))


def make_logger(folder: RunFolder, progress: ProgressFile, verbose: bool) -> Logger:
    """progress.csv; TensorBoard files where tensorboard is installed; tables if asked for."""
    outputs: list[KVWriter] = [progress]
    if importlib.util.find_spec("tensorboard") is not None:
        outputs.append(TensorBoardOutputFormat(str(folder.path)))
    if verbose:
        outputs.append(HumanOutputFormat(sys.stdout))
    return Logger(str(folder.path), outputs)
