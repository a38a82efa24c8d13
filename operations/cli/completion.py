"""`plant completion`."""

from __future__ import annotations

import click


@click.command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that completes commands in your shell.

    \b
    bash:  plant completion bash >> ~/.bashrc
    zsh:   plant completion zsh >> ~/.zshrc
    fish:  plant completion fish > ~/.config/fish/completions/plant.fish
    """
    from click.shell_completion import get_completion_class

    from operations.cli.main import cli

    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(completer(cli, {}, "plant", "_PLANT_COMPLETE").source())
