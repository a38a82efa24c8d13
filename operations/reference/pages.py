"""`python -m operations.reference.pages [FILE …]`: writes pages and pictures of `docs/` that are made from code.

Without names of files under `docs/` it writes all of them.
A test compares what is committed with what this makes.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args, get_origin, get_type_hints

import click
import msgspec
from prometheus_client.metrics import MetricWrapperBase

from operations.cli.main import cli
from operations.reference.contracts import CONTRACTS
from operations.reference.database import database_page
from operations.reference.events import events_page
from operations.reference.read_models import read_models_page
from runtime import metrics
from runtime.settings import PREFIX, Settings, descriptions

DOCS: Final = Path(__file__).parents[2] / "docs"
MADE_BY: Final = "by `python -m operations.reference.pages`."
HELP_COLUMNS: Final = 100


def generated() -> dict[Path, str]:
    """Return the content of every generated file by its path."""
    pages = {DOCS / name: make() for name, make in PAGES.items()}
    pictures = DOCS / "diagrams"
    drawings = runpy.run_path(str(pictures))["drawings"]()
    return pages | {pictures / name: content for name, content in drawings.items()}


def settings_page() -> str:
    """Return a table with a row for each setting."""
    lines = [
        "# Settings",
        "",
        f"Generated from `runtime/settings.py` and `runtime/kafka_settings.py` {MADE_BY}",
        "",
        "Values come, strongest first, from the environment, from `stack.env` in the folder that `PLANT_HOME` names",
        "(written by `plant up`), and from the defaults here. `plant settings` shows what holds now, and from where.",
        "",
        "| variable | type | default | meaning |",
        "|---|---|---|---|",
    ]
    hints = get_type_hints(Settings)
    explained = descriptions()
    for field in msgspec.structs.fields(Settings):
        default = f"`{field.default}`" if field.default != "" else ""
        lines.append(
            f"| `{PREFIX}{field.name.upper()}` | {_kind(hints[field.name])} | {default} | {explained[field.name]} |"
        )
    return "\n".join(lines) + "\n"


def _kind(hint: Any) -> str:
    """Return a type in plain words."""
    if get_args(hint) and get_origin(hint) is not None and all(isinstance(value, str) for value in get_args(hint)):
        return ", ".join(f"`{value}`" for value in get_args(hint))
    return {str: "text", int: "number", float: "number"}[hint]


def cli_page() -> str:
    """Return the help of `plant` and of every command."""
    parts = ["# Command line\n", f"Generated from the commands' own help {MADE_BY}\n"]
    for path, text in _helps(cli, ("plant",), None):
        parts.append(f"{'#' * min(4, len(path) + 1)} {' '.join(path)}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def _helps(
    command: click.Command, path: tuple[str, ...], parent: click.Context | None
) -> Iterator[tuple[tuple[str, ...], str]]:
    settings = command.context_settings
    context = click.Context(command, info_name=path[-1], parent=parent, terminal_width=HELP_COLUMNS, **settings)
    with context:
        lines = command.get_help(context).splitlines()
        yield path, "\n".join(line.rstrip() for line in lines)
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                yield from _helps(below, (*path, name), context)


def metrics_page() -> str:
    """Return a table with a row for each metric, in the order in which they are declared."""
    lines = [
        "# Metrics",
        "",
        f"Generated from `runtime/metrics.py` {MADE_BY}",
        "",
        "`plant ingress` and `plant api` serve them at `/metrics` of their admin addresses, as Prometheus text. A "
        "counter's name ends with `_total` there.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            lines.append(f"| `{metric._name}` | {metric._type} | {labels} | {metric._documentation} |")
    return "\n".join(lines) + "\n"


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "reference/settings.md": settings_page,
    "reference/cli.md": cli_page,
    "reference/metrics.md": metrics_page,
    "reference/events.md": events_page,
    "reference/database.md": database_page,
    "reference/read-models.md": read_models_page,
    **CONTRACTS,
}
"""What makes each file that can be written by itself; pictures are made together."""


def main(names: Sequence[str]) -> None:
    """Write what differs, and name it."""
    asked = {DOCS / name: PAGES[name]() for name in names} if names else generated()
    for path, content in asked.items():
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")
            click.echo(path.relative_to(DOCS.parent))


if __name__ == "__main__":
    main(sys.argv[1:])
