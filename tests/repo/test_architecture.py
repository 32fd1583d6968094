"""Who may import whom, what an import costs, what the wheel holds, how long a file may be."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = [path for path in sorted((ROOT / "flowmdp").glob("*.py")) if path.name != "make.py"]
AGENTS = sorted((ROOT / "agents").rglob("*.py"))
ENVS = sorted((ROOT / "envs").rglob("*.py"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SOURCES = sorted(
    path
    for folder in ("flowmdp", "agents", "envs", "examples", "tests", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)


def imported(source: str) -> Iterator[str]:
    """Every module named by an import anywhere in the source, with the names drawn from it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction: write flowmdp.x"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def offenders(files: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    """`file: module` for every import of a forbidden package or of something inside it."""
    return [
        f"{path.relative_to(ROOT)}: {module}"
        for path in files
        for module in imported(path.read_text())
        if any(module == name or module.startswith(f"{name}.") for name in forbidden)
    ]


def test_walker_sees_every_form_of_import() -> None:
    source = "import a.b\nfrom c import d\ndef f():\n    from flowmdp import envs\n"
    assert list(imported(source)) == ["a.b", "c", "c.d", "flowmdp", "flowmdp.envs"]


def test_agents_and_envs_never_meet() -> None:
    assert offenders(AGENTS, ("flowmdp.envs", "flowmdp.cli", "flowmdp.make", "examples")) == []
    assert offenders(ENVS, ("flowmdp.agents", "flowmdp.cli", "flowmdp.make", "examples")) == []


def test_the_core_imports_neither() -> None:
    """Only the table of tasks is read, by `flowmdp/__init__.py`, to register the ids."""
    found = offenders(CORE, ("flowmdp.agents", "flowmdp.envs", "flowmdp.cli"))
    assert [line for line in found if "__init__.py: flowmdp.envs" not in line] == []
    for line in found:
        assert line.startswith("flowmdp/__init__.py: flowmdp.envs"), line
        assert line.split(": ")[1] == "flowmdp.envs" or "flowmdp.envs.tasks" in line, line


def test_nobody_imports_the_top_level_folders() -> None:
    assert offenders(SOURCES, ("agents", "envs")) == []


def test_nothing_but_the_command_imports_the_command() -> None:
    others = [*CORE, ROOT / "flowmdp" / "make.py", *AGENTS, *ENVS, *EXAMPLES]
    assert offenders(others, ("flowmdp.cli",)) == []


@pytest.mark.parametrize("module", ["flowmdp", "flowmdp.envs.tasks", "flowmdp.cli"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "mujoco", "minari", "stable_baselines3", "matplotlib", "imageio"}
    assert heavy & set(run.stdout.split()) == set()


def test_files_are_short() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: n for path, n in lengths.items() if n > 450} == {}
    assert {path: n for path, n in lengths.items() if path.parts[0] == "examples" and n > 80} == {}


def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """Built from a copy, offline: what `pip install flowmdp` would put into site-packages."""
    copy = tmp_path / "source"
    skip = shutil.ignore_patterns(".git", ".*_cache", "__pycache__", "*.egg-info", "build", "runs")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=skip)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--quiet", "--wheel-dir", str(tmp_path), str(copy)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("flowmdp-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"flowmdp"}
    for folder in ("agents", "envs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".safetensors", ".zip"):
                assert f"flowmdp/{path.relative_to(ROOT)}" in names
    assert {"flowmdp/py.typed", "flowmdp/cli/__init__.py", "flowmdp/mdp.py"} <= names
    assert any(name.startswith("flowmdp/envs/behaviors/") for name in names)
