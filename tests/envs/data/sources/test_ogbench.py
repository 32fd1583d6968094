"""OGBench's files: imported as OGBench loads them, refused in one line, fetched from a server."""

from __future__ import annotations

import contextlib
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from flowmdp.cli import main
from flowmdp.envs.data import dataset_info, list_datasets, load_dataset
from flowmdp.envs.data.sources import ogbench as importing
from flowmdp.envs.data.sources.build import make_recorded
from flowmdp.envs.data.sources.ogbench import download_ogbench, import_ogbench
from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.tasks import get_task
from flowmdp.errors import DatasetError
from tests.envs.built import leftovers

ogbench = pytest.importorskip("ogbench.utils")

TASK, ID = "puzzle-3x3-play", "ogbench/puzzle-3x3-play-v0"
Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def recorded() -> Iterator[gym.Env[Any, Any]]:
    with make_recorded(get_task(TASK)) as env:
        yield env


@pytest.fixture(autouse=True)
def fast(recorded: gym.Env[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator is loaded once."""
    monkeypatch.setattr(importing, "make_recorded", lambda row: contextlib.nullcontext(recorded))


def rows(n: int = 9) -> Arrays:
    """Two episodes, of 3 transitions and of the rest."""
    rng = np.random.default_rng(0)
    return {
        "observations": rng.standard_normal((n, 55)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, 5)).astype(np.float32),
        "terminals": np.isin(np.arange(n), (3, n - 1)),
        "qpos": rng.standard_normal((n, 23)).astype(np.float32),
        "qvel": rng.standard_normal((n, 23)).astype(np.float32),
        "button_states": rng.integers(0, 2, (n, 9)),
    }


def write(path: Path, **changed: Any) -> Path:
    """A file of these rows; None leaves an array out."""
    arrays = {key: array for key, array in (rows() | changed).items() if array is not None}
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "puzzle-3x3-play-v0.npz"


def test_the_transitions_are_those_that_ogbench_loads(path: Path) -> None:
    assert import_ogbench(write(path), TASK) == ID
    theirs = ogbench.load_dataset(str(path), add_info=True)
    for task in (TASK, f"{TASK}-sparse-task3"):
        ours = load_dataset(task, "ogbench")
        for name in ("observations", "actions", "next_observations"):
            np.testing.assert_array_equal(getattr(ours, name), theirs[name])
        ends = ours.terminations | ours.truncations
        assert (ends >= theirs["terminals"].astype(bool)).all()


def test_info_tells_how_often_each_goal_is_reached(path: Path) -> None:
    """Shares by OGBench's own function; the second episode begins in the goal of task 1."""
    buttons = rows()["button_states"]
    with make_outer(f"{TASK}-task1") as outer:
        buttons[4:6] = outer.unwrapped._target_button_states  # type: ignore[attr-defined]
    import_ogbench(write(path, button_states=buttons), TASK)
    info = dataset_info(f"{TASK}-sparse-task2", "ogbench")
    assert info["episodes_in_success"]["task1"] == 0.5
    assert info["steps_in_success"]["task1"] == pytest.approx(2 / 7)
    assert info["length"]["max"] == 4 and info["episodes"] == 2 and "return" not in info
    np.testing.assert_allclose(
        info["action_mean"], np.delete(rows()["actions"], [3, 8], 0).mean(0), atol=1e-4
    )


def test_the_command_imports_by_the_name_of_the_file(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "import", str(write(path))]) == 0
    assert f"{ID} is in" in capsys.readouterr().out
    assert main(["data", "import", str(path)]) == 2
    assert "there already: keep it, or replace it with --force" in capsys.readouterr().err
    assert main(["data", "import", str(path), "--force", "--task", f"{TASK}-task1"]) == 0
    assert main(["data", "import", str(path.rename(path.with_name("mine.npz")))]) == 2
    assert "mine.npz does not tell which task it belongs to: add --task" in capsys.readouterr().err


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[400] ^= 255
    path.write_bytes(data)


def foreign(path: Path) -> None:
    path.write_text("no data")


nan = np.full((9, 55), np.nan, np.float32)
ODD: dict[str, tuple[Any, str]] = {
    "torn": (torn, r"cannot read .*download it again"),
    "flipped": (flipped, r"cannot read .*download it again"),
    "foreign": (foreign, r"cannot read .*give OGBench's file, like puzzle-3x3-play-v0\.npz"),
    "absent": (Path.unlink, "does not exist: name OGBench's file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "does not exist"),
    "D4RL's": ({"qpos": None, "terminals": None}, "no file of puzzle-3x3-play: it lacks"),
    "another scene's": ({"observations": np.zeros((9, 40), "f4")}, r"of shape \(40,\), but puzzle"),
    "another scene's states": ({"qpos": np.zeros((9, 21), "f4")}, r"qpos of shape \(21,\), but"),
    "NaN": ({"observations": nan}, "NaN or infinite observations in 9"),
    "outside": ({"actions": np.full((9, 5), 2.0)}, r"actions outside .* --clip-actions|clip_act"),
    "text": ({"actions": np.full((9, 5), "a")}, "actions that are no numbers"),
    "objects": ({"actions": np.full((9, 5), None)}, "cannot read"),
    "a number": ({"terminals": np.float32(1)}, "terminals that are one number"),
    "half a button": ({"button_states": np.full((9, 9), 0.5)}, "other than 0 and 1"),
    "no button": ({"button_states": np.full((9, 9), 2)}, "button_states other than 0 and 1"),
    "lengths": ({"actions": np.zeros((8, 5), "f4")}, "different lengths .*actions 8"),
    "no end": ({"terminals": np.zeros(9, bool)}, "does not end with the end of an episode"),
    "no rows": ({key: array[:0] for key, array in rows().items()}, "does not end"),
    "one row": ({"terminals": np.ones(9, bool)}, "an episode without a transition"),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_files_are_one_line_and_leave_nothing(
    odd: str, path: Path, datasets_path: Path
) -> None:
    change, line = ODD[odd]
    write(path, **(change if isinstance(change, dict) else {}))
    if callable(change):
        change(path)
    with pytest.raises(DatasetError, match=line) as error:
        import_ogbench(path, TASK)
    assert "\n" not in str(error.value)
    assert list_datasets() == {} and leftovers(datasets_path) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("puzzle-3x3-play-v0-val.npz", r"is for validation: import puzzle-3x3-play-v0\.npz"),
        ("scene-play-v0.npz", "file of scene-play, not of puzzle-3x3-play: import it with --task"),
        ("puzzle-4x6-play-v0.npz", r"not of puzzle-3x3-play: import puzzle-3x3-play-v0\.npz"),
    ],
)
def test_files_of_other_names_are_refused(name: str, line: str, path: Path) -> None:
    other = write(path).rename(path.with_name(name))
    with pytest.raises(DatasetError, match=line):
        import_ogbench(other, TASK)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; what is called torn is promised longer than it is."""

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def send_header(self, keyword: str, value: str) -> None:
        longer = keyword == "Content-Length" and Path(str(self.directory), "torn").exists()
        super().send_header(keyword, str(int(value) + 1000) if longer else value)


@pytest.fixture
def server(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    handler = functools.partial(Handler, directory=str(path.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{served.server_port}"
        monkeypatch.setattr(ogbench, "DATASET_URL", url)
        yield url
        served.shutdown()


def test_downloads_from_a_server(path: Path, server: str, datasets_path: Path) -> None:
    write(path)
    assert main(["data", "download", f"{TASK}-task2"]) == 0
    assert list(list_datasets()) == [ID] and leftovers(datasets_path) == []
    path.unlink()
    assert download_ogbench(TASK) == ID  # is there


@pytest.mark.parametrize("fault", ["torn", "missing", "no server", "no file of OGBench"])
def test_a_download_that_fails_is_one_line(
    fault: str,
    path: Path,
    server: str,
    datasets_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(path)
    if fault == "torn":
        path.with_name("torn").touch()
    elif fault == "missing":
        path.unlink()
    elif fault == "no server":
        server = "http://127.0.0.1:9"
        monkeypatch.setattr(ogbench, "DATASET_URL", server)
    else:
        path.write_text("<html>not found</html>")
    assert main(["data", "download", TASK, "--source", "ogbench"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    if fault == "no file of OGBench":
        assert "cannot read" in line
    else:
        assert line.startswith(f"flowmdp: cannot download {server}/{path.name} (")
        assert line.endswith(f"fetch the file elsewhere and `flowmdp data import {path.name}`")
    assert list_datasets() == {} and leftovers(datasets_path) == []
