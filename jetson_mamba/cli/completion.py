"""``jetson-mamba completion``: what a shell needs to complete commands, by typer's own means."""

from enum import Enum

import typer


class Shell(str, Enum):
    """The shells that typer completes for."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


# What asks the command line for completions.
COMPLETE = "_JETSON_MAMBA_COMPLETE"
# What a line in the shell's own startup file would be.
LINES = {
    Shell.bash: 'eval "$(jetson-mamba completion bash)"  # in ~/.bashrc',
    Shell.zsh: 'eval "$(jetson-mamba completion zsh)"  # in ~/.zshrc, after compinit',
    Shell.fish: "jetson-mamba completion fish | source  # in ~/.config/fish/config.fish",
}


def completion(shell: Shell = typer.Argument(..., help="bash, zsh or fish.")) -> None:
    """Print the lines that let a shell complete commands and options.

    For bash, `eval "$(jetson-mamba completion bash)"` in ~/.bashrc.
    """
    from typer import completion as typers

    print(f"# {LINES[shell]}")
    print(
        typers.get_completion_script(  # type: ignore[attr-defined]
            prog_name="jetson-mamba", complete_var=COMPLETE, shell=shell.value
        )
    )
