"""`plant doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from operations.cli.listing import Output, output_option, show
from runtime.redaction import redact

if TYPE_CHECKING:
    from operations.diagnosis import Diagnosis

COLOURS = {"good": "green", "note": "yellow", "wrong": "red"}


@click.command(name="doctor")
@output_option
@click.pass_context
def command(context: click.Context, output: Output) -> None:
    """Say what is missing or wrong, and what to do.

    Looks at this machine, the local stack's programs, the services that settings name, the database's revision and the
    topics. Changes nothing. Exit 3 when something is wrong; a note is no fault.
    """
    from operations.diagnosis import examine
    from runtime.settings import load_settings

    findings: list[Diagnosis] = []
    for finding in map(_redacted, examine(load_settings())):
        findings.append(finding)
        if output == "table":
            click.echo(f"{click.style(finding.verdict.ljust(6), fg=COLOURS[finding.verdict])} ", nl=False)
            click.echo(f"{finding.check}: {finding.found}")
            if finding.next_step:
                click.echo(f"       next: {finding.next_step}")
    if output != "table":
        show([msgspec.to_builtins(finding) for finding in findings], output)
    if any(finding.verdict == "wrong" for finding in findings):
        context.exit(3)


def _redacted(finding: Diagnosis) -> Diagnosis:
    return msgspec.structs.replace(finding, found=redact(finding.found), next_step=redact(finding.next_step))
