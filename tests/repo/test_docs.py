"""The documentation: its code runs with smaller budgets, its links and generated pages hold."""

from __future__ import annotations

import gc
import importlib.util
import pkgutil
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
import torch

import flowmdp
from flowmdp.agents import ALGORITHMS, DFDir
from flowmdp.arguments import AtLeast, Range
from flowmdp.envs.tasks import families

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [
    page
    for pattern in ("*.md", "algorithms/*.md", "lab/*.md")
    for page in sorted(DOCS.glob(pattern))
]
OTHER_LIBRARIES = "works_with.md"  # tests/repo/test_works_with.py runs its code
WITH_CODE = [
    page for page in PAGES if "```python\n" in page.read_text() and page.name != OTHER_LIBRARIES
]
BUDGETS = {
    **{"100_000": "4_096", "30_000": "5", "10_000": "110"},
    **{"9_000": "5", "5_000": "5", "3_000": "4", "2_000": "5", "1_000": "5", "200": "40"},
}
"""Numbers of steps in the pages -> in this test."""


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


def test_there_are_pages_with_code() -> None:
    expected = {"start.md", "flow_mdp.md", "data.md", "own_robot.md"}
    assert expected <= {page.name for page in WITH_CODE}


@pytest.mark.filterwarnings(
    "ignore::UserWarning:minari.utils",  # a dataset without an author
    "ignore:Implicitly cleaning up:ResourceWarning",  # the folder of Minari's recorder
)
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_of_the_page_runs(
    page: Path,
    hopper_store: Path,
    datasets_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(hopper_store, datasets_path)  # a page may record a dataset of its own
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    number = re.compile(rf"\b({'|'.join(BUDGETS)})\b")
    names: dict[str, Any] = {}
    for block in blocks:
        exec(number.sub(lambda found: BUDGETS[found[0]], block), names)
    names.clear()
    gc.collect()


def anchors(page: Path) -> set[str]:
    """What `page.md#...` may name: its headings, as GitHub and MyST spell them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", [*PAGES, *DOCS.parent.glob("*.md")], ids=lambda page: page.name)
def test_links_of_the_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("https://", "#flowmdp.")):  # Sphinx checks names of the reference
            continue
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def extension(name: str) -> ModuleType:
    """A module of docs/_ext, which is on Sphinx's path only."""
    spec = importlib.util.spec_from_file_location(f"docs_ext_{name}", DOCS / f"_ext/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_markdown_of_docstrings_becomes_rst() -> None:
    to_rst = extension("docstrings").to_rst
    docstring = """|u|_2 and `x_t` and *one* of $x^2$.

## Table
| A | B    |
|---|------|
| 1 | long |
|   | cell |

Text:
- first *a* b*
  goes on

More.

    code * here

Args:
    x_t: Norm |x|.
    **kwargs: Others.

Logged (train/):
    loss: the
        loss."""
    assert to_rst(docstring.splitlines()) == [
        r"\|u\|\_2 and ``x_t`` and *one* of :math:`x^2`.",
        "",
        "",
        ".. rubric:: Table",
        "",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - A",
        "     - B",
        "   * - 1",
        "     - long cell",
        "",
        "",
        "Text:",
        "",
        r"- first *a* b\*",
        "  goes on",
        "",
        "More.",
        "",
        "",
        "::",
        "",
        "    code * here",
        "",
        "",
        "Args:",
        r"    x_t: Norm \|x\|.",
        "    **kwargs: Others.",
        "",
        "**Logged (train/)**",
        "",
        "- loss: the",
        "  loss.",
        "",
    ]


def test_every_task_and_command_is_on_the_site() -> None:
    generated = extension("generated")
    tasks = generated.task_table()
    assert all(f"`{name}`" in tasks for name in families())
    command = generated.command_reference()
    for words in ("tasks", "data build", "train", "eval", "record", "plot", "bench", "report"):
        assert f"## flowmdp {words}\n" in command
    assert all(f"### flowmdp train {name}\n" in command for name in ALGORITHMS)
    assert "`--episodes INT`\n: Episodes of each" in command and "╭" not in command
    df_dir, iql = (
        re.findall(rf"### flowmdp train {name}\n(.*?)\n#", command, re.DOTALL)[0]
        for name in ("df-dir", "iql")
    )
    assert "`--objective {" in df_dir and "`--objective {" not in iql and "`--beta " in iql
    shared = command.count("`--episodes INT`\n: Episodes of each")
    assert shared == 2, "options that all algorithms share stand once, under train and finetune"


def test_an_algorithm_without_a_page_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generated = extension("generated")
    docstring = "Toy of a_n.\n\nLogged (train/):\n    loss, other: of\n        both."
    monkeypatch.setattr(sys.modules[DFDir.__module__], "__doc__", docstring)
    page = generated.algorithm_page("toy", DFDir)
    assert page.startswith("# DFDir\n\nToy of a\\_n.\n\n## Command")
    assert "flowmdp train toy hopper-medium" in page
    assert "| `loss`, `other` | of both. |" in page
    assert "| `gamma` | float in [0, 1) | `0.99` | " in page
    assert "| `objective` | one of `endpoint`, `advantage`, `direction` | `'endpoint'` | " in page
    assert ".. autoclass:: DFDir\n" in page
    written = generated.algorithm_page("toy", DFDir, "# Toy\n\nBy hand.\n")
    assert written.startswith("# Toy\n\nBy hand.\n\n## Command")


def test_types_and_ranges_in_words() -> None:
    type_text = extension("generated").type_text
    assert type_text(Annotated[float, Range("[0, 1)")] | None) == "float in [0, 1) or None"
    assert type_text(tuple[Annotated[int, AtLeast(1)], ...]) == "tuple of int ≥ 1"
    assert type_text(Literal["a", "b"]) == "one of `a`, `b`"
    assert type_text(bool) == "bool"


def test_the_reference_holds_every_package_and_module() -> None:
    generated = extension("generated")
    found = list(pkgutil.walk_packages(flowmdp.__path__, "flowmdp."))
    packages = {"flowmdp"} | {module.name for module in found if module.ispkg}
    assert packages - set(generated.PACKAGES) == {"flowmdp.cli"}
    pages = generated.reference_pages({"flowmdp.env"})
    modules = {module.name for module in found if not module.ispkg}
    listed = {name.removesuffix(".md") for name in pages}
    algorithms = {cls.__module__ for cls in ALGORITHMS.values()} & modules
    assert len(algorithms) > 7 and algorithms <= listed and "flowmdp.mdp.solver" in listed
    assert {name for name in modules - listed if not name.startswith("flowmdp.cli")} == {
        "flowmdp.env"
    }
    assert "[`flowmdp.env`](#flowmdp.env)" in pages["flowmdp.md"]
    assert "[`DFDir`](#flowmdp.agents.df_dir.DFDir)" in pages["flowmdp.agents.md"]
