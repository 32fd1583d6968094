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
    """A Markdown table, numbers to the right; line ends and bars inside cells are made safe."""
    cells = [[" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in rows]
    numeric = [
        all(re.fullmatch(r"[-–\d.]+", cell) for cell in column)
        for column in zip(*cells, strict=True)
    ]
    lines = [list(header), ["---:" if right else "---" for right in numeric], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def code(value: Any) -> str:
    """A value as the user types it in Python, as inline code."""
    return f"`{value!r}`"


def plain(text: str) -> str:
    """Text of a docstring for Markdown: outside code, signs of markup mean themselves."""
    spans = re.split(r"(`[^`]+`|\$[^$]+\$)", text)
    return "".join(s if i % 2 else re.sub(r"([*_<])", r"\\\1", s) for i, s in enumerate(spans))


# -- algorithms ----------------------------------------------------------------------------------


def algorithms() -> dict[str, type]:
    """Whatever has a page: the algorithms of `flowmdp train`, and those that learn on the robot."""
    from flowmdp.agents import ALGORITHMS, FlowPPO

    return {**ALGORITHMS, FlowPPO.name: FlowPPO}


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
        f"## Hyper-parameters\n\n{hyperparameter_table(cls)}",
    ]
    if hasattr(cls, "default_steps"):  # it learns offline
        parts[1] += f"\n{settings(cls)}"
        command = f"## Command\n\n```sh\nflowmdp train {name} hopper-medium --seed 1\n```"
        parts.insert(1, command)
    if logged:
        parts.append(f"## Logged\n\nUnder `train/`:\n\n{logged_table(logged)}")
    parts.append(f"## Reference\n\n{reference(module, cls)}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def hyperparameter_table(cls: Any) -> str:
    """Name, type and range, default and meaning of every field of the algorithm's config."""
    from flowmdp.agents.core.config import documented

    config = cls.config_class
    hints, meanings = get_type_hints(config, include_extras=True), documented(config)
    fields = {field.name: field for field in dataclasses.fields(config)}
    rows = [
        (f"`{name}`", type_text(hints[name]), code(default_of(fields[name])), plain(meaning))
        for name, meaning in meanings.items()
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
    pages = (name if is_written(name) else f"generated/{name}" for name in algorithms())
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
    config = cls.config_class
    classes = [value for value in public if inspect.isclass(value) and value not in (cls, config)]
    lines = [f".. py:module:: {module.__name__}", "", f".. autoclass:: {cls.__name__}"]
    lines += ["   :members:", "   :show-inheritance:", ""]
    lines += [f".. autoclass:: {config.__name__}", ""]
    for value in functions:
        lines += [f".. autofunction:: {value.__name__}", ""]
    for value in classes:
        lines += [f".. autoclass:: {value.__name__}", "   :members:", ""]
    return "```{eval-rst}\n" + "\n".join(lines).strip() + "\n```"


# -- tasks ---------------------------------------------------------------------------------------


def task_table() -> str:
    """Every task: where its data comes from, the robot, horizon and reference returns.

    Those that differ in goal and reward only stand in one line.
    """
    from flowmdp.envs.tasks import families

    rows = [
        (
            f"`{name}`",
            ", ".join(source for source in task.datasets),
            f"`{task.outer_env[task.source()]}`",
            str(task.horizon),
            *(("0 %", "100 %") if task.success else map(number, task.references or (None, None))),
        )
        for name, (task, *_) in families().items()
    ]
    return table(("Task", "Sources", "Robot", "Horizon", "Score 0", "Score 100"), rows)


def number(value: float | None) -> str:
    """A return with one decimal; a dash where nobody measured one."""
    return "–" if value is None else f"{value:.1f}"


# -- the command ---------------------------------------------------------------------------------


def command_reference() -> str:
    """Every subcommand's help, and that of `train` for every algorithm."""
    from flowmdp.cli import COMMANDS

    parts = []
    for name in COMMANDS:
        parts += train_sections() if name == "train" else [help_section(name)]
    return "\n\n".join(parts)


def train_sections() -> list[str]:
    """The help of `train`: what all algorithms share, then what each adds."""
    from flowmdp.agents import ALGORITHMS

    helps = {name: Help.of(help_text(f"train {name}")) for name in ALGORITHMS}
    first = next(iter(helps.values()))
    shared = {
        title: options
        for title, options in first.options.items()
        if all(found.options.get(title) == options for found in helps.values())
    }
    text = Help.of(help_text("train")).text
    parts = ["## flowmdp train", "```text\nflowmdp train ALGORITHM TASK [OPTIONS]\n```"]
    parts += [help_prose(text), help_options(shared)]
    for name, found in helps.items():
        own = {title: options for title, options in found.options.items() if title not in shared}
        parts += [f"### flowmdp train {name}", help_options(own)]
    return parts


def help_text(words: str) -> str:
    """What `flowmdp WORDS --help` prints, its boxes in one column (tyro makes two from 130 on)."""
    from flowmdp.cli import main

    printed = io.BytesIO()
    wide = mock.patch.dict(os.environ, {"COLUMNS": "129"})
    stream = io.TextIOWrapper(printed, encoding="utf-8", write_through=True)
    with wide, contextlib.redirect_stdout(stream), contextlib.suppress(SystemExit):
        main([*words.split(), "--help"])
    return printed.getvalue().decode()


def help_section(name: str) -> str:
    """The help of one command as Markdown."""
    found = Help.of(help_text(name))
    usage = f"```text\n{found.usage}\n```"
    parts = [f"## flowmdp {name}", usage, help_prose(found.text)]
    return "\n\n".join([*parts, help_options(found.options)])


@dataclasses.dataclass(frozen=True)
class Help:
    """A printed help text, taken apart.

    Attributes:
        usage: Its first line.
        text: The description.
        options: Title of a box -> option -> meaning; without `--help` and subcommands.
    """

    usage: str
    text: str
    options: dict[str, dict[str, str]]

    @classmethod
    def of(cls, printed: str) -> Help:
        """Take a text apart that tyro printed in one line per paragraph."""
        usage, _, rest = printed.removeprefix("usage: ").partition("\n")
        text, *boxes = rest.split("╭─ ")
        options: dict[str, dict[str, str]] = {}
        for box in boxes:
            title, *lines = box.splitlines()
            rows = [line.strip("│").removeprefix(" ").rstrip() for line in lines if line[0] == "│"]
            if rule := [i for i, row in enumerate(rows) if row.startswith("──")]:
                rows = rows[rule[0] + 1 :]  # before it stands what the box is about
            if title.startswith("subcommands"):
                continue
            options[title.rstrip("─╮ ")] = found = dict[str, str]()
            for row in filter(None, rows):
                if row.startswith(" "):
                    last = next(reversed(found))
                    found[last] = f"{found[last]} {row.strip()}".strip()
                else:
                    option, _, meaning = row.partition("  ")
                    found[option] = meaning.strip()
            found.pop("-h, --help", None)
        return cls(usage, text.strip(), {key: box for key, box in options.items() if box})


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


def help_options(options: dict[str, dict[str, str]]) -> str:
    """Boxes of options as definition lists, under their titles where there are several."""
    parts = []
    for title, box in options.items():
        if len(options) > 1:
            parts.append(f"**{title.capitalize()}**")
        parts += [f"`{option}`\n: {plain(meaning) or '–'}" for option, meaning in box.items()]
    return "\n\n".join(parts)


# -- API reference -------------------------------------------------------------------------------


def reference_pages(documented_elsewhere: set[str]) -> dict[str, str]:
    """File name -> Markdown of the API reference: an index, and one page per module.

    Args:
        documented_elsewhere: Modules that a page by hand or an algorithm's page documents.
    """
    pages: dict[str, str] = {}
    for package, title in PACKAGES.items():
        names = [
            name
            for name in modules_of(package)
            if name not in documented_elsewhere and has_content(name)
        ]
        pages |= {f"{name}.md": module_page(name) for name in names}
        short = [f"{name.rpartition('.')[2]} <{name}>" for name in names]
        others = sorted(name for name in documented_elsewhere if name.rpartition(".")[0] == package)
        links = ", ".join(f"[`{name}`](#{name})" for name in others)
        parts = [f"# {title}", automodule(package), exports(package), toctree(short)]
        parts += [f"On pages of their own: {links}."] if others else []
        pages[f"{package}.md"] = "\n\n".join(parts) + "\n"
    pages["examples.md"] = examples_page()
    pages["behaviors.md"] = "```{include} ../../envs/behaviors/README.md\n```\n"
    index = toctree([*PACKAGES, "examples", "behaviors"], depth=2)
    pages["index.md"] = f"# API reference\n\nOne page per module.\n\n{index}\n"
    return pages


def exports(package: str) -> str:
    """Links to what a package offers under its own name but defines in its modules."""
    homes = {
        name: getattr(value, "__module__", "")
        for name, value in vars(importlib.import_module(package)).items()
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
    }
    links = [
        f"[`{name}`](#{home}.{name})"
        for name, home in sorted(homes.items())
        if home.startswith(f"{package}.")
    ]
    return f"`from {package} import ...` offers {', '.join(links)}." if links else ""


def toctree(entries: list[str], depth: int = 1) -> str:
    """Links to pages, which also stand in the navigation."""
    lines = "\n".join(entries)
    return f"```{{toctree}}\n:maxdepth: {depth}\n\n{lines}\n```" if entries else ""


def modules_of(package: str) -> list[str]:
    """The modules directly in a package, without packages and private ones."""
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return [f"{package}.{m.name}" for m in found if not m.ispkg and not m.name.startswith("_")]


def has_content(name: str) -> bool:
    """Whether a module defines anything public."""
    module = importlib.import_module(name)
    own = (getattr(value, "__module__", "") for key, value in vars(module).items() if key[0] != "_")
    return module.__name__ in own


def module_page(name: str) -> str:
    """The page of one module."""
    return f"# {name}\n\n{automodule(name)}\n"


def automodule(name: str) -> str:
    """Autodoc of one module."""
    options = ("   :members:", "   :show-inheritance:")
    lines = (f".. automodule:: {name}", *(options if has_content(name) else ()))
    return "\n".join(["```{eval-rst}", *lines, "```"])


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
    missing = {
        f"{name}.md": algorithm_page(name, cls)
        for name, cls in algorithms().items()
        if not is_written(name)
    }
    _write(DOCS / "algorithms/generated", missing)
    elsewhere = {cls.__module__ for cls in algorithms().values()}
    for page in DOCS.glob("*.md"):
        elsewhere |= set(re.findall(r"automodule:: ([\w.]+)", page.read_text()))
    _write(DOCS / "reference", reference_pages(elsewhere))


def _on_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """An algorithm's docstring without its list of hyper-parameters: the page has a table."""
    if obj in algorithms().values() and "Hyper-parameters:" in lines:
        start = lines.index("Hyper-parameters:")
        end = next((i for i in range(start + 1, len(lines)) if lines[i][:1].strip()), len(lines))
        del lines[start:end]


def _on_source(app: Sphinx, docname: str, source: list[str]) -> None:
    folder, _, name = docname.rpartition("/")
    text, known = source[0], algorithms()
    if folder == "algorithms" and name in known:
        text = algorithm_page(name, known[name], text)
    for mark, make in MARKS.items():
        if f"<!-- generated: {mark} -->" in text:
            text = text.replace(f"<!-- generated: {mark} -->", make())
    source[0] = links_inside(text, docname)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("builder-inited", _on_start)
    app.connect("source-read", _on_source)
    app.connect("autodoc-process-docstring", _on_docstring, priority=50)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
