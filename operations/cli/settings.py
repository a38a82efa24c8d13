"""`plant settings`."""

from __future__ import annotations

import difflib
import os
from typing import Any

import click

from operations.cli.listing import Output, output_option, show


@click.command(name="settings")
@output_option
def command(output: Output) -> None:
    """Show settings and where each comes from.

    Strongest first: the environment, the stack's address file, the default. Secrets are masked. A value that can't be
    used is shown with the others, and is exit code 2; PLANT_ variables that no setting has are named.
    """
    from runtime.settings import load_settings, unknown_variables

    show(settings_rows(), output, columns=("setting", "value", "source"))
    for name in unknown_variables(os.environ):
        click.echo(f"Note: {name} is set, and there is no such setting.{_nearest(name)}", err=True)
    load_settings()


def _nearest(name: str) -> str:
    from runtime.settings import PREFIX, Settings

    near = difflib.get_close_matches(name, [PREFIX + field.upper() for field in Settings.__struct_fields__], 1)
    return f" Did you mean {near[0]}?" if near else ""


def settings_rows() -> list[dict[str, Any]]:
    from pathlib import Path

    from runtime.masking import masked
    from runtime.settings import PREFIX, Settings, descriptions, raw_settings, used_value
    from runtime.stack_file import STACK_FILE, read_stack_file

    given = raw_settings(os.environ)
    file = Path(given["home"]) / STACK_FILE
    in_file = read_stack_file(file.parent)
    explained = descriptions()
    rows = []
    for name in Settings.__struct_fields__:
        variable = PREFIX + name.upper()
        if os.environ.get(variable, "").strip():
            source = "environment"
        elif in_file.get(variable):
            source = str(file)
        else:
            source = "default"
        value = masked(name, used_value(name, given))
        rows.append({"setting": variable, "value": value, "source": source, "explanation": explained[name]})
    return rows
