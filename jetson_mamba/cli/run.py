"""``jetson-mamba run``: a script or a module with the hook, as ``python`` runs it."""

from typing import List, Optional

import typer

from jetson_mamba.hook import runner

# What stands after the script belongs to the script, whatever it looks like.
SETTINGS = {"ignore_unknown_options": True, "allow_interspersed_args": False}
ARGUMENTS = typer.Argument(None, metavar="[ARGS]...", help="What the script is given.")


def run(
    script: str = typer.Argument(..., metavar="SCRIPT", help="A file, or with -m a module."),
    arguments: Optional[List[str]] = ARGUMENTS,
    as_module: bool = typer.Option(
        False, "-m", help="SCRIPT is the name of a module, as for `python -m`."
    ),
) -> None:
    """Run a script as `python` would, with the overrides active.

    Processes that the script starts are served by the startup file only: `jetson-mamba enable`.
    """
    (runner.run_module if as_module else runner.run_script)(script, arguments or [])
