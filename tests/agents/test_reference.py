"""Every algorithm computes what it computed when `reference.json` was recorded.

The last bits differ between processors, even with the instructions that all of them have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flowmdp.agents import ALGORITHMS
from tests.agents.reference import CASES, PORTABLE

ROOT = Path(__file__).resolve().parents[2]
STORED = json.loads(Path(__file__).with_name("reference.json").read_text())
HALVES = list(CASES)[::2], list(CASES)[1::2]


def test_the_record_is_whole() -> None:
    assert set(STORED["cases"]) == set(CASES)
    assert {case.split()[0] for case in CASES} == {*ALGORITHMS} - {"toy-bc"}


@pytest.mark.skipif(
    torch.__version__ != STORED["torch"], reason=f"the numbers are those of torch {STORED['torch']}"
)
@pytest.mark.parametrize("cases", HALVES, ids=["even", "odd"])
def test_no_number_has_moved(cases: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.agents.reference", *cases],
        env={**os.environ, **PORTABLE},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(run.stdout)["cases"]
    stored = {case: STORED["cases"][case] for case in cases}
    torch.testing.assert_close(found, stored, rtol=1e-5, atol=1e-6)
    assert all(found[case]["learned"] != found[case]["pretrained"] for case in cases)
