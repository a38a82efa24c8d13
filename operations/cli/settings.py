"""`plant settings`."""

from __future__ import annotations

import os
import re
from typing import Any

import click

from operations.cli.listing import Output, output_option, show


@click.command(name="settings")
@output_option
def command(output: Output) -> None:
    """Show settings and where each comes from.

    Strongest first: the environment, the stack's address file, the default. Secrets are masked.
    """
    show(settings_rows(), output, columns=("setting", "value", "source"))


def settings_rows() -> list[dict[str, Any]]:
    from pathlib import Path

    from runtime.masking import masked
    from runtime.settings import PREFIX, Settings, descriptions, load_settings

    settings = load_settings()
    file = Path(settings.home) / "stack.env"
    in_file = file.read_text(encoding="utf-8") if file.exists() else ""
    explained = descriptions()
    rows = []
    for name in Settings.__struct_fields__:
        variable = PREFIX + name.upper()
        if os.environ.get(variable):
            source = "environment"
        elif re.search(rf"^{variable}=.", in_file, re.MULTILINE):
            source = str(file)
        else:
            source = "default"
        value = masked(name, getattr(settings, name))
        rows.append({"setting": variable, "value": value, "source": source, "explanation": explained[name]})
    return rows
