"""The code of docs/works_with.md runs for a few hundred steps, where its library is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mdp import cleanrl_ppo

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/works_with.md").read_text()
SECTIONS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
MODULES = {
    "sb3-contrib": "sb3_contrib",
    "SBX": "sbx",
    "TorchRL": "torchrl",
    "skrl": "skrl",
    "tianshou": "tianshou",
}


def test_every_library_has_a_row_and_a_section() -> None:
    rows = re.findall(r"^\| \[(\S+)\]\(#", PAGE, re.MULTILINE)
    assert set(rows) == set(SECTIONS) == {*MODULES, "CleanRL"}


@pytest.mark.slow
@pytest.mark.parametrize("library", MODULES)
def test_library_learns(library: str, tmp_path: Path) -> None:
    """In a process of its own: some set global state, and warn when they are imported."""
    pytest.importorskip(MODULES[library])
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS[library], re.DOTALL)
    small = code.replace("10_000", "300").replace("1_000)", "10)")
    run = subprocess.run(
        [sys.executable, "-c", small], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2_000:]


@pytest.mark.slow
def test_cleanrl_learns() -> None:
    (words,) = re.findall(r"cleanrl_ppo.py --env-id (.*)", SECTIONS["CleanRL"])
    env_id, _, gamma, _, lam = words.split()
    args = cleanrl_ppo.Args(
        env_id, total_timesteps=1_024, gamma=float(gamma), gae_lambda=float(lam)
    )
    assert cleanrl_ppo.main(args)


@pytest.mark.slow
def test_wandb_offline_keeps_the_log(hopper_data: Path, tmp_path: Path) -> None:
    """Slow, because W&B starts a service of its own."""
    pytest.importorskip("wandb")
    (code,) = re.findall(r"```py\n(.*?)```", (ROOT / "docs/recipes.md").read_text(), re.DOTALL)
    small = re.sub(r"\b\d+_000\b", "100", code)
    run = subprocess.run(
        [sys.executable, "-c", small], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2_000:]
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"q_gap" in log.read_bytes()
