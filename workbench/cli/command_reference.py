"""The reference of the command line as Markdown, made from the commands themselves.

`python -m workbench.cli.command_reference > docs/command-line.md` writes the page; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import typer

from workbench.cli.main import app

_HEAD = """# Command line
Every verb has `--json`, which prints one JSON document on stdout at the end; progress and messages go to stderr.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | done, with failed units, or damaged parts found |
| 2 | usage |
| 3 | no or ambiguous checkpoints |
| 4 | run written by a newer version |
| 5 | run not writable or disk full |
| 6 | run locked by another scan |
| 130 | interrupted; run it again to go on |
"""


def command_line_reference() -> str:
    """Every verb with its arguments and flags, one section each."""
    sections = [_HEAD, *(_section(name, command) for name, command in _verbs("workbench", typer.main.get_command(app)))]
    return "\n".join(sections)


def _verbs(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands below a group, each under its full name, in the order of `--help`."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for verb, below in command.commands.items():
        yield from _verbs(f"{name} {verb}", below)


def _section(name: str, command: Any) -> str:
    parameters = [p for p in command.params if p.name != "help"]
    arguments = " ".join(_usage(p) for p in parameters if p.param_type_name == "argument")
    usage = f"{name} {arguments} [OPTIONS]"
    lines = [f"## {name.removeprefix('workbench ')}", "```", usage.replace("  ", " "), "```"]
    lines += [" ".join(_text(command.help).split()), ""]
    lines += ["| argument or flag | meaning |", "|---|---|"]
    lines += [f"| {_names(p)} | {_cell(getattr(p, 'help', None))} |" for p in parameters]
    return "\n".join(lines) + "\n"


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()) + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_cell(parameter.metavar or parameter.name.upper())}`"
    flags = [*parameter.opts, *parameter.secondary_opts]
    takes = "" if parameter.is_flag else f" {parameter.metavar or _type_name(parameter)}"
    return ", ".join(f"`{flag}{takes}`" for flag in flags)


def _type_name(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    value_type = (get_args(annotation) or (annotation,))[0]  # list[str] takes one text at a time
    name = getattr(value_type, "__name__", "str")  # a Literal's first value is a text
    return {"str": "TEXT"}.get(name, name.upper())


def _cell(text: str | None) -> str:
    return " ".join(_text(text).split()).replace("|", "\\|")


def _text(text: str | None) -> str:
    return text or ""


if __name__ == "__main__":
    print(command_line_reference(), end="")
