"""smp completion."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands in your shell.

    \b
    Examples:
      smp completion bash > ~/.local/share/bash-completion/completions/smp
      smp completion zsh > ~/.zfunc/_smp
      smp completion fish > ~/.config/fish/completions/smp.fish
    """
    from click.shell_completion import get_completion_class

    root = click.get_current_context().find_root()
    kind = get_completion_class(shell)
    if kind is None:
        raise click.BadParameter(f"no completion for {shell}")
    click.echo(kind(root.command, {}, "smp", "_SMP_COMPLETE").source())
