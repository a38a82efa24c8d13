"""A group of subcommands, such as `plant keys`, whose help has a whole sentence for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import click
from click.shell_completion import CompletionItem

SENTENCE_MAX: Final = 1_000
"""Characters of a command's first sentence. click's own bound is the rest of a line, and it cuts there."""


class CommandGroup(click.Group):
    """A click group that cuts no sentence, neither in its help nor where a shell completes."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self._lines(ctx)))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        lines = self._lines(ctx)
        names = [CompletionItem(name, help=line) for name, line in lines if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def _lines(self, ctx: click.Context) -> Iterator[tuple[str, str]]:
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                yield name, command.get_short_help_str(SENTENCE_MAX)
