"""The command `plant`: finds subcommands, and turns every error that they raise into three lines and an exit code.

A subcommand's module is imported only when it is run, so `plant --help` stays quick. Add one by a line in COMMANDS
and a module that holds a click command or group called `command`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click
from click.shell_completion import CompletionItem

from runtime.errors import PlantError
from runtime.library_lines import leave_out_library_lines
from runtime.process import prepare_process
from runtime.redaction import redact, redact_uncaught_errors, redacted_traceback

EXIT_UNEXPECTED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

EXAMPLES = """
Examples:

\b
  plant up                      start Kafka and Postgres on this machine
  plant demo                    the main job, on real input
  plant publish events.jsonl    put events on the topic
  plant consume --follow        read them back
  plant audit verify            recompute the hash chain

stdout is data, everything else goes to stderr.

Exit codes: 0 good, 1 unexpected, 2 usage, 3 the check said no, 4 something needed is unreachable, 130 interrupted.
"""


class Entry(NamedTuple):
    """Where a command lives, and its line in `plant --help` (equal to the command's own first line)."""

    module: str
    section: str
    line: str


def _entry(name: str, section: str, line: str) -> Entry:
    return Entry(f"operations.cli.{name}", section, line)


LOCAL, EVENTS, SERVICES, DATA, SETUP = "Local stack", "Events", "Services", "Data and proof", "Set-up"

COMMANDS: dict[str, Entry] = {
    "up": _entry("up", LOCAL, "Start Kafka and Postgres on this machine."),
    "down": _entry("down", LOCAL, "Stop the local stack; its data is kept."),
    "status": _entry("status", LOCAL, "Show what runs, and where; exit 3 unless all of it does."),
    "demo": _entry("demo", LOCAL, "Run the main job on real input."),
    "topics": _entry("topics", EVENTS, "List Kafka topics, and make the missing ones."),
    "schemas": _entry("schemas", EVENTS, "Show event schemas, and refuse incompatible changes."),
    "publish": _entry("publish", EVENTS, "Publish events from a file."),
    "webhook": _entry("webhook", EVENTS, "Send one signed webhook, or verify one."),
    "consume": _entry("consume", EVENTS, "Print events from the topic."),
    "replay": _entry("replay", EVENTS, "Write a slice of history again, as the log has it."),
    "endpoints": _entry("endpoints", EVENTS, "Manage the endpoints that subscribers get events at."),
    "deliveries": _entry("deliveries", EVENTS, "Look up what became of deliveries, and send them again."),
    "dead-letters": _entry("dead_letters", EVENTS, "Find, redrive and skip records that could not be applied."),
    "ingress": _entry("ingress", SERVICES, "Serve the webhooks that bring events in."),
    "worker": _entry("worker", SERVICES, "Run one worker until Ctrl-C."),
    "deliverer": _entry("deliverer", SERVICES, "Send deliveries to endpoints until Ctrl-C."),
    "api": _entry("api", SERVICES, "Serve the read models to readers with a token."),
    "dispatcher": _entry("dispatcher", SERVICES, "Match events to endpoints until Ctrl-C."),
    "relay": _entry("relay", SERVICES, "Publish direct changes, and dead letters, until Ctrl-C."),
    "embed": _entry("embed", SERVICES, "Compute embeddings of skills until Ctrl-C."),
    "db": _entry("db", DATA, "Migrate the database, and say where it is."),
    "seed": _entry("seed", DATA, "Load ESCO's skills and occupations as entities."),
    "entities": _entry("entities", DATA, "Look after entities."),
    "projections": _entry("projections", DATA, "Show, rebuild, pause and check read models."),
    "keys": _entry("keys", DATA, "Manage the keys that sign webhooks."),
    "producers": _entry("producers", DATA, "Say what each producer may send."),
    "tokens": _entry("tokens", DATA, "Manage the tokens that readers of the API have."),
    "audit": _entry("audit", DATA, "Verify the audit chain."),
    "recover": _entry("recover", DATA, "Fill an empty database from the topics."),
    "doctor": _entry("doctor", SETUP, "Say what is missing or wrong, and what to do."),
    "settings": _entry("settings", SETUP, "Show settings and where each comes from."),
    "completion": _entry("completion", SETUP, "Print the script that completes commands in your shell."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; name the nearest ones for a name that there is not."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise _with_suggestion(error, args[0], list(COMMANDS)) from None

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = importlib.import_module(entry.module).command
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return names and lines from the table: completing a command imports no module."""
        names = [
            CompletionItem(name, help=entry.line) for name, entry in COMMANDS.items() if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                rows = [(name.ljust(width), entry.line) for name, entry in COMMANDS.items() if entry.section == section]
                formatter.write_dl(rows)


def _with_suggestion(error: click.UsageError, name: str, names: Sequence[str]) -> click.UsageError:
    near = difflib.get_close_matches(name, names)
    if near and "Did you mean" not in error.message:
        error.message = f"{error.message} Did you mean {' or '.join(near)}?"
    return error


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"plant {version('plant')}")
        ctx.exit()


@click.command(name="plant", cls=LazyGroup, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, envvar="PLANT_DEBUG", help="Show the traceback of an error.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Print the version."
)
def cli(debug: bool) -> None:
    """Plant: signed webhooks in, read models and a hash-chained audit log out, exactly once."""


CLOSED_STREAMS: set[str] = set()
"""The standard streams that were closed when this process started, by name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process with its code."""
    closed = prepare_process()
    redact_uncaught_errors()
    CLOSED_STREAMS.update(closed)
    given = list(sys.argv[1:] if arguments is None else arguments)
    leave_out_library_lines(debug=_debugged(given))
    code = run(given)
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()  # It was said already: Python would fail again at exit.
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit code."""
    try:
        result = cli.main(args=arguments, prog_name="plant", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.ClickException as error:
        return _show_usage_error(error)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return EXIT_INTERRUPTED
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # click ends at one; no standard stream of ours raises it
            return _show_unexpected(error.__context__, arguments)
        raise
    except PlantError as error:
        return _show_error(error, arguments, error.what, error.why, error.next_step, error.exit_code)
    except Exception as error:
        from operations.cli.refusals import explain

        if (refusal := explain(error)) is not None:
            return _show_error(error, arguments, refusal.what, refusal.why, refusal.next_step, refusal.exit_code)
        return _show_unexpected(error, arguments)


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _described(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _show_usage_error(error: click.ClickException) -> int:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "plant"
    group = context.command if context else None
    wrong = re.match(r"No such command '([^']+)'", error.message)
    if context and wrong and isinstance(error, click.UsageError) and isinstance(group, click.Group):
        _with_suggestion(error, wrong[1], group.list_commands(context))
    message = error.format_message()
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        message = f"{error.message} Did you mean {' or '.join(error.possibilities)}?"
    _print_error(message, "", f"{path} --help")
    return error.exit_code


def _show_error(error: BaseException, arguments: list[str], what: str, why: str, next_step: str, exit_code: int) -> int:
    if _debugged(arguments):
        click.echo(redacted_traceback(error), nl=False, err=True)
    _print_error(what, why, next_step)
    return exit_code


def _show_unexpected(error: BaseException, arguments: list[str]) -> int:
    again = f"plant --debug {shlex.join(arguments)}"
    return _show_error(error, arguments, "Something unexpected went wrong.", _described(error), again, EXIT_UNEXPECTED)


def _debugged(arguments: Sequence[str]) -> bool:
    return "--debug" in arguments or bool(os.environ.get("PLANT_DEBUG"))


def _print_error(what: str, why: str, next_step: str) -> None:
    """Print what went wrong, why, and one command to run next, without secrets. A full or closed stderr takes none."""
    with contextlib.suppress(OSError):
        click.echo(f"{click.style('error', fg='red', bold=True)}: {redact(what)}", err=True)
        if why:
            click.echo(f"  why: {redact(why)}", err=True)
        if next_step:
            click.echo(f" next: {redact(next_step)}", err=True)
