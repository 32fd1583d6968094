"""What the site takes from the code: algorithms, tasks, the command's help, the API reference.

Whatever is registered gets its place without an edit here: an algorithm in `ALGORITHMS`, a task in
`TASKS`, a subcommand, a module. Pages of their own go to `docs/reference/` and, for an algorithm
without a hand-written page, to `docs/algorithms/generated/`; git ignores both. In hand-written
pages `<!-- generated: NAME -->` is replaced by the text of that name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import itertools
import os
import pkgutil
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from unittest import mock

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
PACKAGES = {
    "flowmdp": "Environments",
    "flowmdp.mdp": "The mathematics of the flow MDP",
    "flowmdp.agents": "Agents",
    "flowmdp.agents.core": "Parts of the agents",
    "flowmdp.envs": "Tasks",
    "flowmdp.envs.data": "Data",
    "flowmdp.envs.data.sources": "Sources of data",
    "flowmdp.envs.robots": "Robots",
    "flowmdp.runs": "One run",
    "flowmdp.compare": "Many runs",
}
"""Packages of the reference, in its order; the command has a page of its own."""


# -- Markdown ------------------------------------------------------------------------------------


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; line ends and bars inside cells are made safe."""
    cells = [[" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in rows]
    lines = [list(header), ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def code(value: Any) -> str:
    """A value as the user types it in Python, as inline code."""
    return f"`{value!r}`"


def plain(text: str) -> str:
    """Text of a docstring for Markdown: outside code, signs of markup mean themselves."""
    spans = re.split(r"(`[^`]+`|\$[^$]+\$)", text)
    return "".join(s if i % 2 else re.sub(r"([*_<])", r"\\\1", s) for i, s in enumerate(spans))


# -- algorithms ----------------------------------------------------------------------------------


def algorithm_page(name: str, cls: type, written: str | None = None) -> str:
    """The page of an algorithm: what was written by hand, then what the code says.

    Args:
        name: What users type.
        cls: The algorithm's class.
        written: Markdown of the hand-written part, with its heading; None takes the docstring of
            the class's module.
    """
    module = sys.modules[cls.__module__]
    docstring = inspect.getdoc(module) or inspect.getdoc(cls) or ""
    introduction, logged = split_logged(docstring)
    parts = [
        written.strip() if written else f"# {cls.__name__}\n\n{docstring_markdown(introduction)}",
        f"## Command\n\n```sh\nflowmdp train {name} hopper-medium --seed 1\n```",
        f"## Hyper-parameters\n\n{hyperparameter_table(cls)}\n{settings(cls)}",
    ]
    if logged:
        parts.append(f"## Logged\n\nUnder `train/`:\n\n{logged_table(logged)}")
    parts.append(f"## Reference\n\n{reference(module, cls)}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def hyperparameter_table(cls: Any) -> str:
    """Name, type and range, default and meaning of every field of the algorithm's config."""
    config = getattr(cls, "config_class", None)  # TODO main
    if config is None:
        return ""
    from flowmdp.agents.core.config import documented

    hints, meanings = get_type_hints(config, include_extras=True), documented(config)
    rows = [
        (
            f"`{field.name}`",
            type_text(hints[field.name]),
            code(default_of(field)),
            plain(meanings[field.name]),
        )
        for field in dataclasses.fields(config)
    ]
    return table(("Name", "Type and range", "Default", "Meaning"), rows)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a config's field."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def type_text(hint: Any) -> str:
    """A type with its range in words: "float in (0, inf)", "int ≥ 1", "one of `a`, `b`"."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [range_text(rule) for rule in parts[1:]]
        return " ".join([type_text(parts[0]), *filter(None, bounds)])
    if origin is Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in parts)
    if origin is tuple:
        return f"tuple of {type_text(parts[0])}"
    if parts:
        return " or ".join(type_text(part) for part in parts)
    return "None" if hint is type(None) else str(getattr(hint, "__name__", hint))


def range_text(rule: Any) -> str:
    """The range that a config's field declares; empty for other annotations."""
    if hasattr(rule, "interval"):
        return "" if rule.interval == "(-inf, inf)" else f"in {rule.interval}"
    least = getattr(rule, "least", None)
    return "" if least is None else f"≥ {least}"


def algorithm_toctree() -> str:
    """The pages of all algorithms, in their order."""
    from flowmdp.agents import ALGORITHMS

    pages = (name if is_written(name) else f"generated/{name}" for name in ALGORITHMS)
    lines = "\n".join(f"algorithms/{page}" for page in pages)
    return f"```{{toctree}}\n:hidden:\n\n{lines}\n```"


def is_written(name: str) -> bool:
    """Whether an algorithm has a hand-written page."""
    return (DOCS / f"algorithms/{name}.md").exists()


def settings(cls: Any) -> str:
    """What else belongs to a usual run: steps, environment, how it acts, the paper's setting."""
    lines = [f"A usual run takes {cls.default_steps:,} gradient steps of the policy (`--steps`)."]
    if cls.only_flow_steps is not None:
        lines.append(f"It acts in `flow_steps={cls.only_flow_steps}`.")
    if cls.acts_at_mean:
        lines.append("As in its paper, it acts without noise, from $x_0 = 0$.")
    if cls.environment:
        lines.append(f"Its flow environment is made with {arguments(cls.environment)}.")
    if cls.paper:
        lines.append(f"The paper's setting (`--paper`) is {arguments(cls.paper)}.")
    return " ".join(lines)


def arguments(values: Any) -> str:
    """Named values as they are typed in a call."""
    if not isinstance(values, Mapping):
        values = dataclasses.asdict(values)
    return ", ".join(f"`{name}={value!r}`" for name, value in values.items())


LOGGED = re.compile(r"^Logged(?: \(train/\))?:\n((?:[ ]+.*\n?|\n)+)", re.MULTILINE)


def split_logged(docstring: str) -> tuple[str, str]:
    """A module's docstring without its section of logged keys, and that section."""
    found = LOGGED.search(docstring)
    if found is None:
        return docstring, ""
    return docstring.replace(found[0], "").strip(), textwrap.dedent(found[1]).strip()


def logged_table(section: str) -> str:
    """The entries "key, key: meaning" of the section of logged keys."""
    entries = re.split(r"\n(?=\S)", section)
    pairs = [entry.split(":", 1) for entry in entries]
    rows = [
        (
            ", ".join(f"`{key.strip().removeprefix('train/')}`" for key in keys.split(",")),
            plain(meaning),
        )
        for keys, meaning in pairs
    ]
    return table(("Key", "Meaning"), rows)


def docstring_markdown(docstring: str) -> str:
    """A plain docstring as Markdown: its text escaped, its indented blocks kept."""
    paragraphs = docstring.split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else plain(p) for p in paragraphs)


def reference(module: Any, cls: Any) -> str:
    """Autodoc of the algorithm's class, its config and the public functions of its file."""
    public = [
        value
        for key, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not key.startswith("_")
    ]
    functions = [value for value in public if inspect.isfunction(value)]
    config = getattr(cls, "config_class", None)
    classes = [value for value in public if inspect.isclass(value) and value not in (cls, config)]
    lines = [f".. py:module:: {module.__name__}", "", f".. autoclass:: {cls.__name__}"]
    lines += ["   :members:", "   :show-inheritance:", ""]
    if config is not None:
        lines += [f".. autoclass:: {config.__module__}.{config.__name__}", ""]
    for value in functions:
        lines += [f".. autofunction:: {value.__name__}", ""]
    for value in classes:
        lines += [f".. autoclass:: {value.__name__}", "   :members:", ""]
    return "```{eval-rst}\n" + "\n".join(lines).strip() + "\n```"


# -- tasks ---------------------------------------------------------------------------------------


def task_table() -> str:
    """Every task: where its data comes from, the robot, horizon and reference returns."""
    from flowmdp.envs.tasks import TASKS

    rows = [
        (
            f"`{task.name}`",
            ", ".join(source for source in task.datasets),
            f"`{task.outer_env[task.default_source]}`",
            str(task.horizon),
            number(task.reference_min),
            number(task.reference_max),
        )
        for task in TASKS.values()
    ]
    return table(("Task", "Sources", "Robot", "Horizon", "Score 0", "Score 100"), rows)


def number(value: float | None) -> str:
    """A return with one decimal; a dash where nobody measured one."""
    return "–" if value is None else f"{value:.1f}"


# -- the command ---------------------------------------------------------------------------------


def command_reference() -> str:
    """Every subcommand's help, and that of `train` for every algorithm."""
    from flowmdp.agents import ALGORITHMS

    parts = []
    for words in subcommands(()):
        parts.append(help_section(words))
        if words == ("train",):
            parts += [help_section((*words, name)) for name in ALGORITHMS]
    return "\n\n".join(parts)


def help_text(words: tuple[str, ...]) -> str:
    """What `flowmdp WORDS --help` prints, in one line per option."""
    from flowmdp.cli import main

    printed = io.BytesIO()
    wide = mock.patch.dict(os.environ, {"COLUMNS": "2000"})
    stream = io.TextIOWrapper(printed, encoding="utf-8", write_through=True)
    with wide, contextlib.redirect_stdout(stream), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return printed.getvalue().decode()


def subcommands(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Every subcommand below the words that has no subcommands of its own."""
    usage = help_text(words).split("\n", 1)[0]
    choices = re.search(r"\{([\w,-]+)\}$", usage.strip())
    if choices is None or words == ("train",):
        return [words]
    return [found for word in choices[1].split(",") for found in subcommands((*words, word))]


def help_section(words: tuple[str, ...]) -> str:
    """The help of one subcommand as Markdown."""
    usage, _, rest = help_text(words).partition("\n")
    text, _, boxes = rest.partition("╭")
    lines = [
        f"{'###' if len(words) > 1 and words[0] == 'train' else '##'} flowmdp {' '.join(words)}"
    ]
    lines += [f"```text\n{usage.removeprefix('usage: ')}\n```", help_prose(text.strip())]
    lines.append(help_options(boxes))
    return "\n\n".join(part for part in lines if part)


def help_prose(text: str) -> str:
    """A description: paragraphs, with runs of indented lines as code."""
    parts = []
    for indent, run in itertools.groupby(
        text.splitlines(), lambda line: line and line[:1].isspace()
    ):
        block = list(run)
        if indent:
            parts.append("\n".join(["```text", textwrap.dedent("\n".join(block)), "```"]))
        elif block[0]:
            parts.append(plain(" ".join(block)))
    return "\n\n".join(parts)


def help_options(boxes: str) -> str:
    """The boxes of options as definition lists; `--help` itself and subcommands are left out."""
    entries: list[list[str]] = []
    title = ""
    for line in boxes.splitlines():
        if "─" in line:
            title = line.strip("╭╮╰╯─ ") or title
        if not line.startswith("│") or title == "subcommands":
            continue
        content = line.strip("│").removeprefix(" ").rstrip()
        if content.startswith(" "):
            entries[-1][1] += " " + content.strip()
        elif content:
            invocation, _, meaning = content.partition("  ")
            entries.append([invocation, meaning.strip()])
    shown = [entry for entry in entries if not entry[0].startswith("-h,")]
    return "\n\n".join(f"`{invocation}`\n: {plain(meaning)}" for invocation, meaning in shown)


# -- API reference -------------------------------------------------------------------------------


def reference_pages(documented_elsewhere: set[str]) -> dict[str, str]:
    """File name -> Markdown of the API reference: an index, and one page per module.

    Args:
        documented_elsewhere: Modules that a page by hand or an algorithm's page documents.
    """
    pages, index = {}, ["# API reference", "", "One page per module; private names are left out."]
    for package, title in PACKAGES.items():
        modules = [package, *modules_of(package)]
        names = []
        for name in modules:
            module = importlib.import_module(name)
            if name in documented_elsewhere or not has_content(module):
                continue
            pages[f"{name}.md"] = module_page(name)
            names.append(name)
        if names:
            toctree = "\n".join(names)
            index += ["", f"## {title}", "", f"```{{toctree}}\n:maxdepth: 1\n\n{toctree}\n```"]
    pages["examples.md"] = examples_page()
    pages["behaviors.md"] = "```{include} ../../envs/behaviors/README.md\n```\n"
    index += ["", "## More", "", "```{toctree}\n:maxdepth: 1\n\nexamples\nbehaviors\n```"]
    pages["index.md"] = "\n".join(index) + "\n"
    return pages


def modules_of(package: str) -> list[str]:
    """The modules directly in a package, without packages and private ones."""
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return [f"{package}.{m.name}" for m in found if not m.ispkg and not m.name.startswith("_")]


def has_content(module: Any) -> bool:
    """Whether a module defines anything public, so that a page is worth it."""
    own = (getattr(value, "__module__", "") for key, value in vars(module).items() if key[0] != "_")
    return module.__name__ in own


def module_page(name: str) -> str:
    """Autodoc of one module."""
    return (
        f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n"
        "   :show-inheritance:\n```\n"
    )


def examples_page() -> str:
    """The example scripts, whole."""
    parts = ["# Examples", "Scripts of `examples/`, each with an importable `main()`."]
    for path in sorted((ROOT / "examples").glob("*.py")):
        parts.append(f"## {path.name}\n\n```{{literalinclude}} ../../examples/{path.name}\n```")
    return "\n\n".join(parts) + "\n"


# -- Sphinx --------------------------------------------------------------------------------------

MARKS: dict[str, Callable[[], str]] = {
    "algorithms": algorithm_toctree,
    "command": command_reference,
    "tasks": task_table,
}


def _write(folder: Path, pages: dict[str, str]) -> None:
    """Make the folder hold these pages and nothing else; what is the same is not touched."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in pages:
            path.unlink() if path.is_file() else shutil.rmtree(path)
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def links_inside(text: str, docname: str) -> str:
    """The text with its links to scripts and policies leading to their pages on the site."""
    up = "../" * docname.count("/")
    text = re.sub(r"\]\((\.\./)+examples/(\w+)\.py\)", rf"]({up}reference/examples.md#\2py)", text)
    return re.sub(r"\]\((\.\./)+envs/behaviors/README.md\)", f"]({up}reference/behaviors.md)", text)


def _on_start(app: Sphinx) -> None:
    from flowmdp.agents import ALGORITHMS

    missing = {
        f"{name}.md": algorithm_page(name, cls)
        for name, cls in ALGORITHMS.items()
        if not is_written(name)
    }
    _write(DOCS / "algorithms/generated", missing)
    elsewhere = {cls.__module__ for cls in ALGORITHMS.values()}
    for page in DOCS.glob("*.md"):
        elsewhere |= set(re.findall(r"automodule:: ([\w.]+)", page.read_text()))
    _write(DOCS / "reference", reference_pages(elsewhere))


def _on_source(app: Sphinx, docname: str, source: list[str]) -> None:
    from flowmdp.agents import ALGORITHMS

    folder, _, name = docname.rpartition("/")
    text = source[0]
    if folder == "algorithms" and name in ALGORITHMS:
        text = algorithm_page(name, ALGORITHMS[name], text)
    for mark, make in MARKS.items():
        if f"<!-- generated: {mark} -->" in text:
            text = text.replace(f"<!-- generated: {mark} -->", make())
    source[0] = links_inside(text, docname)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("builder-inited", _on_start)
    app.connect("source-read", _on_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
