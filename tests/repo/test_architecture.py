"""Who may import whom, what an import costs, what the wheel holds, how long a file may be."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).resolve().parents[2]
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


PACKAGE = {
    "flowmdp." * (path.parts[0] != "flowmdp")
    + ".".join(path.with_suffix("").parts).removesuffix(".__init__"): ROOT / path
    for folder in ("flowmdp", "agents", "envs")
    for path in (file.relative_to(ROOT) for file in (ROOT / folder).rglob("*.py"))
    if not (path.parts[0] == "flowmdp" and path.parts[1] in ("agents", "envs"))
}
"""Module -> file, of everything that is installed."""

ROOMS = ("cli", "compare", "runs", "agents", "envs")
"""Packages beside the core, which is everything else; a room may import what follows it."""


def edges(lazy: bool) -> dict[str, set[str]]:
    """Module -> the modules that it imports; imports for type checkers only do not count.

    Args:
        lazy: With those inside functions.
    """
    found: dict[str, set[str]] = {}
    for module, path in PACKAGE.items():
        tree = ast.parse(path.read_text())
        checked = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
        typed = [node for node in checked if ast.unparse(node.test) == "TYPE_CHECKING"]
        skipped = {child for node in typed for child in ast.walk(node)}
        nodes = ast.walk(tree) if lazy else iter(tree.body)
        source = "\n".join(
            ast.unparse(node)
            for node in nodes
            if isinstance(node, ast.Import | ast.ImportFrom) and node not in skipped
        )
        found[module] = {name for name in imported(source) if name in PACKAGE} - {module}
    return found


def room(module: str) -> str:
    """The package beside the core that a module stands in, or "core"."""
    name = module.split(".")[1] if "." in module else ""
    return name if name in ROOMS else "core"


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, whichever way around."""
    components = networkx.strongly_connected_components(networkx.DiGraph(graph))
    return [sorted(group) for group in components if len(group) > 1]


def test_a_circle_would_be_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_there_is_no_circle_among_modules() -> None:
    assert len(PACKAGE) > 60 and sum(map(len, edges(lazy=True).values())) > 200
    assert circles(edges(lazy=True)) == []


def test_imports_point_one_way() -> None:
    """Cli -> compare -> runs -> agents and envs, which never meet, -> core."""
    wrong = []
    for module, targets in edges(lazy=True).items():
        for target in targets:
            here, there = room(module), room(target)
            if here == "core":
                # `import flowmdp` reads the table of tasks; `make` puts all together when called
                allowed = there == "core" or (module, target) == ("flowmdp", "flowmdp.envs.tasks")
                allowed |= module == "flowmdp.make" and there in ("agents", "envs")
            elif there == "core" or here == there:
                allowed = True
            else:
                allowed = ROOMS.index(here) < ROOMS.index(there) and here != "agents"
            if not allowed:
                wrong.append(f"{module} imports {target}")
    assert wrong == []


def test_algorithms_stand_on_the_core_alone() -> None:
    """What one needs of another would be a part, and belong to agents/core."""
    for module, targets in edges(lazy=True).items():
        if room(module) == "agents" and module.count(".") == 2:
            assert all(
                target.startswith("flowmdp.agents.core.")
                for target in targets
                if room(target) == "agents"
            ), module


def test_only_the_command_and_its_tests_import_the_command() -> None:
    users = [path for path in SOURCES if path.parts[-3] != "flowmdp" or path.parent.name != "cli"]
    found = [
        path.relative_to(ROOT)
        for path in users
        if any(
            name == "flowmdp.cli" or name.startswith("flowmdp.cli.")
            for name in imported(path.read_text())
        )
    ]
    assert {path.parts[0] for path in found} <= {"tests", "docs"}


def offenders(files: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    """`file: module` for every import of a forbidden package or of something inside it."""
    return [
        f"{path.relative_to(ROOT)}: {module}"
        for path in files
        for module in imported(path.read_text())
        if any(module == name or module.startswith(f"{name}.") for name in forbidden)
    ]


def test_nobody_imports_the_top_level_folders() -> None:
    assert offenders(SOURCES, ("agents", "envs")) == []


@pytest.mark.parametrize("module", ["flowmdp", "flowmdp.envs.tasks", "flowmdp.cli"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "mujoco", "minari", "stable_baselines3", "matplotlib", "imageio"}
    assert heavy & set(run.stdout.split()) == set()


def test_the_house_stays_small() -> None:
    """An example fits a screen or two; an algorithm is one file that reads whole."""
    for path in PACKAGE.values():
        assert len(path.read_text().splitlines()) <= 600, path.name
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, path.name
    for path in (ROOT / "agents").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path.name


def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """Built from a copy, offline: what `pip install flowmdp` would put into site-packages."""
    copy = tmp_path / "source"
    skip = shutil.ignore_patterns(".git", ".*_cache", "__pycache__", "*.egg-info", "_build")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=skip)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--quiet", "--wheel-dir", str(tmp_path), str(copy)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("flowmdp-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    top = {name.split("/")[0].split("-")[0] for name in names}
    assert top == {"flowmdp", "flowmdp_command.py"}
    for folder in ("agents", "envs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".safetensors", ".zip"):
                assert f"flowmdp/{path.relative_to(ROOT)}" in names
    assert {"flowmdp/py.typed", "flowmdp/cli/__init__.py", "flowmdp/mdp/spec.py"} <= names
    assert any(name.startswith("flowmdp/envs/behaviors/") for name in names)
