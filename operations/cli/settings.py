"""`plant settings`."""

from __future__ import annotations

import os
import re
from typing import Any

import click

from operations.cli.listing import Output, output_option, show

SECRET_NAMES = frozenset({"master_key", "kafka_sasl_password"})
MASK = "********"


@click.command(name="settings")
@output_option
def command(output: Output) -> None:
    """Show settings and where each comes from.

    Strongest first: the environment, the stack's address file, the default. Secrets are masked.
    """
    show(settings_rows(), output, columns=("setting", "value", "source"))


def settings_rows() -> list[dict[str, Any]]:
    from pathlib import Path

    from runtime.settings import PREFIX, Settings, explanations, load_settings

    settings = load_settings()
    file = Path(settings.home) / "stack.env"
    in_file = file.read_text(encoding="utf-8") if file.exists() else ""
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
        rows.append({"setting": variable, "value": value, "source": source, "explanation": explanations()[name]})
    return rows


def masked(name: str, value: Any) -> Any:
    """The value without its secret part.

    >>> masked("database_url", "postgresql://plant_api:s3cret@db:5432/plant")
    'postgresql://plant_api:********@db:5432/plant'
    """
    if not isinstance(value, str) or not value:
        return value
    if name in SECRET_NAMES:
        return MASK
    without_userinfo = re.sub(r"(?<=://)([^:@/]*):[^@]*(?=@)", rf"\1:{MASK}", value)
    return re.sub(r"(?i)(password=)[^&\s]*", rf"\1{MASK}", without_userinfo)
