"""The page on read models: what each is fed from, what its tables hold, and which queries there are."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator
from types import FunctionType
from typing import Final

from operations.reference.database import commented_tables
from projections.install import VIEWS
from projections.read_model import READ_MODELS, ReadModel
from projections.staged_names import EVENT_TABLES, table_of
from schemas.events import EVENT_TYPES

_FIRST_WORDS: Final = re.compile(r"^Read model `\w+`: ")
"""What the comment on a model's first table begins with."""


def read_models_page() -> str:
    """Return a section for each read model that workers keep."""
    lines = [
        "# Read models",
        "",
        "Generated from the folders of `projections/` by `python -m operations.reference.pages`.",
        "",
        "A worker keeps all of them, in the transaction that writes a batch's records to the log. Their tables can be",
        f"made again from the log at any time. The views in the schema `{VIEWS}` show the live build. Query them in a",
        "transaction that names the tenant `genesis`, as the functions of `queries.py` do. [The database](database.md)",
        "has every column and right.",
        "",
    ]
    for model in READ_MODELS:
        lines += _section(model)
    return "\n".join(lines).rstrip() + "\n"


def _section(model: ReadModel) -> Iterator[str]:
    off = " Off until an operator resumes it." if model.starts_paused else ""
    yield from (f"## {model.name}", "", f"Version {model.version}. Made from {_sources(model)}.{off}", "")
    yield from ("| view | rows |", "|---|---|")
    said = commented_tables(model.tables_text)
    about = {table: _FIRST_WORDS.sub("", said.get(table, {}).get("about", "")) for table in model.tables}
    yield from (f"| `{VIEWS}.{table}` | {text[:1].upper() + text[1:]} |" for table, text in about.items())
    if queries := list(_queries(model)):
        yield from ("", "| query | answer |", "|---|---|")
    for function in queries:
        yield f"| `{_call(function)}` | {_paragraphs(inspect.getdoc(function) or '')} |"
    yield ""


def _sources(model: ReadModel) -> str:
    """Return the event types that a model reads, in words."""
    if model.reads == EVENT_TABLES:
        return "events of every type"
    return ", ".join(f"`{event_type}`" for event_type in EVENT_TYPES if table_of(event_type) in model.reads)


def _queries(model: ReadModel) -> Iterator[FunctionType]:
    """Yield the public queries of a model, which are coroutines, in their order."""
    if importlib.util.find_spec(f"projections.{model.name}.queries") is None:
        return
    module = importlib.import_module(f"projections.{model.name}.queries")
    for name, value in vars(module).items():
        if inspect.iscoroutinefunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
            yield value


def _call(function: FunctionType) -> str:
    return f"{function.__name__}({', '.join(inspect.signature(function).parameters)})"


def _paragraphs(docstring: str) -> str:
    return " ".join(docstring.split())
