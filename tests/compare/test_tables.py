"""The tables in README.md and docs/ are what the stored results say."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    """docs/tables.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tables"] = module
    spec.loader.exec_module(module)
    return module


def test_no_table_is_stale(tables: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_every_table_stands_somewhere(tables: ModuleType) -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in tables.pages())
    assert set(re.findall(r"<!-- table: (\S+) -->", pages)) == set(tables.TABLES)
    assert pages.count("<!-- table: ") == pages.count("<!-- end table -->")


def test_a_stale_table_is_named_and_mended(
    tables: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = tmp_path / "README.md"
    block = "<!-- table: speed-env -->\n{}<!-- end table -->"
    before = f"Text.\n\n{block}\n\n  {block}\n"
    page.write_text(before.format("", "  "))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "pages", lambda: [page])
    monkeypatch.setitem(tables.TABLES, "speed-env", lambda: "| a |\n|---|\n| 3 |")
    assert tables.main(["--check"]) == 1
    assert capsys.readouterr().out == "README.md: speed-env\n" * 2
    assert page.read_text() == before.format("", "  "), "--check writes nothing"
    assert tables.main([]) == 0
    inner = "\n| a |\n|---|\n| 3 |\n\n"
    indented = "\n  | a |\n  |---|\n  | 3 |\n\n  "
    assert page.read_text() == before.format(inner, indented)
    assert tables.main(["--check"]) == 0
    page.write_text(page.read_text().replace("| 3 |", "| 4 |", 1))
    assert tables.main(["--check"]) == 1
    assert tables.main(["--chekc"]) == 2
