"""Rows of a table's results: put by several processes at once, and in order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from flowmdp.compare.results import key_of
from flowmdp.files import put_line, read_lines


def test_two_benches_on_one_table_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.jsonl"
    code = (
        "import sys; from pathlib import Path; from flowmdp.files import put_line\n"
        "for n in range(40): put_line(Path(sys.argv[1]), {'k': n * 3 + int(sys.argv[2])}, "
        "lambda row: row['k'])"
    )
    command = [sys.executable, "-c", code, str(path)]
    writers = [subprocess.Popen([*command, str(n)]) for n in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert read_lines(path) == [{"k": k} for k in range(120)], "all of them, in order"
    assert list(path.parent.iterdir()) == [path]


def test_a_row_replaces_the_one_of_the_same_run(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    row = {"task": "t", "source": "s", "dataset_id": "d", "label": "b", "seed": 1, "x": 1}
    for more in ({}, {"label": "a"}, {"seed": 0}, {"x": 2}):
        put_line(path, {**row, **more}, key_of)
    found = [(one["label"], one["seed"], one["x"]) for one in read_lines(path)]
    assert found == [("a", 1, 1), ("b", 0, 1), ("b", 1, 2)]
