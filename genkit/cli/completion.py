"""Print the script that completes commands, flags and choices in a shell.

bash: eval "$(genkit completion bash)" in ~/.bashrc; zsh the same in ~/.zshrc; fish: genkit completion fish >
~/.config/fish/completions/genkit.fish
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from genkit.cli import _common

COMPLETE = "_GENKIT_COMPLETE"  # what click looks for when a shell asks


@click.command(
    epilog='bash and zsh: eval "$(genkit completion bash)" in ~/.bashrc or ~/.zshrc (with zsh for bash). '
    "fish: genkit completion fish > ~/.config/fish/completions/genkit.fish"
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands, flags and choices in SHELL."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click knows no completion for {shell}", ctx)
    completion = kind(ctx.find_root().command, {}, "genkit", COMPLETE)
    # `source()` would run the shell for its version first; the script itself is the same.
    _common.data(completion.source_template % completion.source_vars())
