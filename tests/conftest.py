"""Every test runs offline, without a display, on one thread, away from the user's own files."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_HOME = tempfile.TemporaryDirectory(prefix="flowmdp-tests-")
# Set before anything imports numpy, torch, minari or matplotlib; subprocesses inherit them.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    MINARI_DATASETS_PATH=f"{_HOME.name}/datasets",
    FLOWMDP_CACHE=f"{_HOME.name}/cache",
    MPLCONFIGDIR=f"{_HOME.name}/matplotlib",
    MPLBACKEND="Agg",
    HF_HUB_OFFLINE="1",
    COLUMNS="120",
)
os.environ.pop("DISPLAY", None)
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):  # a shell's background job begins with them ignored
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)
os.environ.pop("WAYLAND_DISPLAY", None)


import numpy as np  # noqa: E402
import torch  # noqa: E402

import tests.agents.toy_algorithm  # noqa: E402, F401  (registers an algorithm of our own)


@pytest.fixture(autouse=True, scope="session")
def offline() -> Iterator[None]:
    """Connections to other machines fail at once; pipes and the loopback stay open."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost", "::1"):
            return connect(self, address)
        raise OSError(f"tests are offline; something tried to reach {address}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test leaves to the global generators is the same in every order of the tests."""
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def datasets_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Minari store per test; a test that wants a shared one points the variable there."""
    path = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(path))
    return path


@pytest.fixture(scope="session")
def hopper_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Minari store, built once, that holds hopper-medium with only 3,000 steps."""
    from flowmdp.envs.data import build_dataset

    store = tmp_path_factory.mktemp("hopper-store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(store))
        build_dataset("hopper-medium", steps=3_000, seed=0, progress=False)
    return store


@pytest.fixture
def hopper_data(hopper_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Points Minari at the small hopper-medium dataset; the test must not change it."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(hopper_store))
    return hopper_store


@pytest.fixture(scope="session")
def runs(hopper_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of one finished tiny run of every algorithm; tests copy what they change."""
    from flowmdp.agents import ALGORITHMS
    from flowmdp.cli import main
    from tests.runs.tiny_run import tiny_run

    folders = {name: tmp_path_factory.mktemp("runs") / name for name in ALGORITHMS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(hopper_store))
        for name, folder in folders.items():
            assert main(tiny_run(name, folder)) == 0
    return folders


@pytest.fixture(scope="session")
def gl() -> str:
    """A working OpenGL backend; tests that draw robots are skipped without one."""
    from flowmdp.envs.robots.rendering import choose_backend
    from flowmdp.errors import RenderingError

    try:
        return choose_backend()
    except RenderingError as error:
        pytest.skip(str(error))
