"""From a function's signature and docstring to a command line, with tyro.

What stands before the `*` of a signature is typed by position, what comes after it as an option.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from flowmdp.errors import ConfigurationError

METAVARS = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}


def read(
    function: Callable[..., Any],
    argv: Sequence[str],
    prog: str,
    groups: Mapping[str, Any] | None = None,
    known: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """The arguments by name that the user typed for a function.

    Args:
        function: Its signature says which arguments there are.
        argv: What the user typed.
        prog: The words before it.
        groups: What the function's own `**options` may be, by title: the arguments of another
            function, or the fields of a dataclass's instance, which are then the defaults.
        known: Arguments that are not typed here, and their values.
        **options: Of `tyro.cli`.

    Raises:
        ConfigurationError: For words that cannot be.
    """
    shown = io.StringIO()
    form = _form(function, groups or {}, known or {})
    look = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(form, prog=prog, args=argv, config=look, **options)
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise ConfigurationError(_unboxed(shown.getvalue())) from None


def _form(
    function: Callable[..., Any], groups: Mapping[str, Any], known: Mapping[str, Any]
) -> Callable[..., dict[str, Any]]:
    """A function with the signature as tyro needs it, which returns its arguments by name."""

    def collect(**typed: Any) -> dict[str, Any]:
        arguments = {**known}
        for name, value in typed.items():
            if name in groups:
                arguments |= value if isinstance(value, dict) else _given(value)
            else:
                arguments[name] = _flat(name, value)
        return arguments

    hints = get_type_hints(function)
    parameters = [
        parameter.replace(annotation=_argument(parameter, hints[parameter.name]))
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in known
    ]
    for title, group in groups.items():
        named = inspect.Parameter(title, inspect.Parameter.KEYWORD_ONLY)
        if callable(group):
            nested = arg(constructor=_form(group, {}, known))
            parameters.append(named.replace(annotation=Annotated[dict[str, Any], nested]))
        else:
            parameters.append(named.replace(annotation=type(group), default=group))
    changed: Any = collect
    changed.__signature__ = inspect.Signature(parameters)
    changed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    changed.__doc__ = re.sub(r"\n {8,}", " ", inspect.getdoc(function) or "")  # one line each
    return collect


def _argument(parameter: inspect.Parameter, hint: Any) -> Any:
    """The type of an argument, with how it is typed and shown."""
    shown: dict[str, Any] = {}
    several = get_origin(hint) is tuple
    if several or parameter.default is None:
        shown["help_behavior_hint"] = ""
    if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
        hint = Annotated[hint, Positional]
        shown["metavar"] = parameter.name.upper() + " ..." * several
    elif several:  # the option may be repeated, with some words after it each time
        shown["metavar"] = f"{METAVARS[get_args(hint)[0]]} ..."
        hint = Annotated[tuple[hint, ...], UseAppendAction]
    elif parameter.default is None:
        kind = get_args(hint)[0]
        shown["metavar"] = METAVARS.get(kind) or f"{{{','.join(get_args(kind))}}}"
    return Annotated[hint, arg(**shown)]


def _given(config: Any) -> dict[str, Any]:
    """The fields of a dataclass's instance by name."""
    for name, value in vars(config).items():
        _check_words(name, value)
    return {**vars(config)}


def _check_words(name: str, words: Any) -> None:
    if words == ():
        option = f"--{name.replace('_', '-')}"
        raise ConfigurationError(f"{option} has no value: write some after it, or leave it out")


def _flat(name: str, value: Any) -> Any:
    """The words of all occurrences of a repeated option, in their order."""
    if isinstance(value, tuple) and all(isinstance(words, tuple) for words in value):
        for words in value:
            _check_words(name, words)
        return tuple(chain.from_iterable(value))
    return value


def _unboxed(box: str) -> str:
    """The first paragraph under the title of tyro's box, what it suggests, and where help is."""
    lines = " ".join(line.strip("│╭╮╰╯ ") for line in box.splitlines())
    parts = [part.split() for part in re.split(r"[─-]{5,}", lines) if part.strip()]
    first = " ".join(parts[1]).removeprefix("Error parsing config: ").partition(" Got errors:")[0]
    first = re.sub(
        r"no type matching \{None\}\|(\w+) could be .* from \['(.*)'\]", r"'\2' is no \1", first
    )
    typed = re.findall(r"--[\w-]+", first)
    named = {word for part in parts if part[:2] == ["Perhaps", "you"] for word in part}
    options = [word for word in named if word.startswith("--")]
    near = [one for word in typed for one in get_close_matches(word, options, n=1)]
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{first}{hint} ({' '.join(parts[-1])})".replace(" .", ".")
