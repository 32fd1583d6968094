"""Docstrings for autodoc: this project writes them in Markdown with Google's sections.

`to_rst` turns the Markdown into reStructuredText and leaves the sections to napoleon, which runs
after it. What a docstring may hold: headings, tables, lists, indented code, `code`, *emphasis*,
$formulas$, and plain text in which |u|, a_{n-1} and x * y mean themselves.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx

GOOGLE = ("Args", "Attributes", "Raises", "Returns", "Yields", "Warns")
SECTION = re.compile(rf"({'|'.join(GOOGLE)}):$")
TITLED = re.compile(r"([A-Z][^.|]*):$")
ENTRY = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*(?: \([^)]*\))?: +)(.*)$")
LIST = re.compile(r"([-*]|\d+\.) +")
SPAN = re.compile(r"(``.+?``|`[^`]+`|\$[^$]+\$|(?<![\w*])\*[A-Za-z_]+\*(?![\w*]))")


def inline(text: str) -> str:
    """The same text for reStructuredText: code and formulas marked, all else escaped."""
    parts = []
    for part in SPAN.split(text):
        if part.startswith("``"):
            parts.append(part)
        elif part.startswith("`") and part.endswith("`") and len(part) > 2:
            parts.append(f"`{part}`")
        elif part.startswith("$") and part.endswith("$") and len(part) > 2:
            parts.append(f":math:`{part[1:-1]}`")
        elif SPAN.fullmatch(part):
            parts.append(part)
        else:
            parts.append(re.sub(r"([\\*|_`])", r"\\\1", part))
    return "".join(parts)


def table_rows(lines: list[str]) -> list[list[str]]:
    """Cells of a Markdown table; a row that opens with an empty cell goes on with the one above."""
    rows: list[list[str]] = []
    for line in lines:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            continue
        if rows and not cells[0]:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
        else:
            rows.append(cells)
    return rows


def _table(lines: list[str]) -> Iterator[str]:
    yield from ("", ".. list-table::", "   :header-rows: 1", "")
    for row in table_rows(lines):
        for column, cell in enumerate(row):
            yield f"   {'* -' if column == 0 else '  -'} {inline(cell)}"
    yield ""


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines that belong together: a table, an indented block, one line of text."""
    i = 0
    while i < len(lines):
        first, end = lines[i], i + 1
        if first.startswith("|") and first.rstrip().endswith("|"):
            while end < len(lines) and lines[end].startswith("|"):
                end += 1
        elif first.startswith(" "):
            while end < len(lines) and (not lines[end].strip() or lines[end].startswith(" ")):
                end += 1
            while not lines[end - 1].strip():
                end -= 1
        yield lines[i:end]
        i = end


def _section(lines: list[str]) -> Iterator[str]:
    """The body of a section of Google's: names stay as napoleon wants them."""
    for line in lines:
        indent, text = line[: len(line) - len(line.lstrip())], line.lstrip()
        entry = ENTRY.match(text)
        yield indent + (entry[1] + inline(entry[2]) if entry else inline(text))


def _entries(lines: list[str]) -> Iterator[str]:
    """The body of a titled section of ours, one bullet per entry."""
    yield ""
    for line in textwrap.dedent("\n".join(lines)).splitlines():
        bullet = "  " if line.startswith(" ") or not line else "- "
        yield bullet + inline(line.strip())
    yield ""


def to_rst(lines: list[str]) -> list[str]:
    """A docstring's lines, without their common indent, as reStructuredText."""
    result: list[str] = []
    before, in_list = "", False
    for block in _blocks(lines):
        first = block[0]
        if first.startswith(" ") and in_list:
            result += [
                line[: len(line) - len(line.lstrip())] + inline(line.strip()) for line in block
            ]
            continue
        in_list = in_list and not first.strip()
        if first.startswith("|") and len(block) > 1:
            result += _table(block)
        elif first.startswith(" ") and SECTION.match(before):
            result += _section(block)
        elif first.startswith(" ") and TITLED.match(before) and ">>>" not in first:
            result[-1] = f"**{inline(before[:-1])}**"
            result += _entries(block)
        elif first.startswith(" "):
            result += ["", "::", "", *block, ""]
        elif first.startswith("#"):
            result += ["", f".. rubric:: {inline(first.lstrip('# '))}", ""]
        elif mark := LIST.match(first):
            if not in_list and before.strip() and not LIST.match(before):
                result.append("")
            result.append(f"- {inline(first[mark.end() :])}" if mark[1] in "-*" else inline(first))
            in_list = True
        else:
            result.append(first if SECTION.match(first) or ">>>" in first else inline(first))
        before = block[-1]
    return result


def _on_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    lines[:] = to_rst(lines)
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\")  # else napoleon takes what stands before a colon for a type


def _on_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, arguments: str, result: str
) -> tuple[str, str] | None:
    """Aliases of types by their names alone."""
    alias = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")
    return tuple(text and alias.sub(r"\1", text) for text in (arguments, result))  # type: ignore


def setup(app: Sphinx) -> dict[str, bool]:
    """Run before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _on_docstring, priority=100)
    app.connect("autodoc-process-signature", _on_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
