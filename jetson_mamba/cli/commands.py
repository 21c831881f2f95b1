"""Puts the commands together on typer, with exit codes that are this command line's own.

typer itself ends the process at an interrupt or a closed pipe, each release of it in another way.
So a command raises these wrapped in an exception that typer lets pass, and :func:`carry_out`
unwraps it.
"""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any, Callable, Sequence

import typer
from typer import completion as typers_completion

import jetson_mamba
from jetson_mamba.cli import run
from jetson_mamba.cli.bench import bench
from jetson_mamba.cli.completion import COMPLETE, completion
from jetson_mamba.cli.copies import copies, diff
from jetson_mamba.cli.demo import demo
from jetson_mamba.cli.doctor import doctor
from jetson_mamba.cli.export import export
from jetson_mamba.cli.install import install
from jetson_mamba.cli.output import error_document
from jetson_mamba.cli.schema import schema
from jetson_mamba.cli.startup import disable, enable
from jetson_mamba.cli.status import status
from jetson_mamba.cli.verify import verify
from jetson_mamba.errors import CannotRun

PROGRAM = "jetson-mamba"
COMMANDS: tuple[Callable[..., None], ...] = (
    *(doctor, status, install, verify, bench, export, demo),
    *(diff, copies, enable, disable, schema, completion),
)
app = typer.Typer(
    name=PROGRAM,
    help="Makes the installed mamba-ssm run where it does not.",
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Stopped(Exception):
    """An interrupt or an error of the operating system, on its way past typer."""


def _past_typer(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def wrapped(*arguments: Any, **keywords: Any) -> None:
        try:
            command(*arguments, **keywords)
        except (KeyboardInterrupt, OSError) as error:
            raise Stopped from error

    # Else the lines of the help would end where those of the text here do.
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    wrapped.__doc__ = "\n\n".join(" ".join(each.split()) for each in paragraphs)
    return wrapped


for command in COMMANDS:
    app.command()(_past_typer(command))
app.command(cls=run.AsPython, context_settings=run.SETTINGS)(run.run)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {jetson_mamba.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        expose_value=False,
        help="Print the version.",
    ),
) -> None:
    pass


def program() -> Any:
    """The group of commands, as typer makes it of ``app``; every one knows ``--version``."""
    if COMPLETE in os.environ:
        typers_completion.completion_init()  # type: ignore[attr-defined]
    group: Any = typer.main.get_command(app)
    version = next(each for each in group.params if each.name == "version")
    for each in group.commands.values():
        each.params.append(version)
    return group


def carry_out(given: Sequence[str]) -> int:
    """Run a command; the exit code. Raises CannotRun, KeyboardInterrupt and OSError."""
    try:
        code = int(program().main(list(given), prog_name=PROGRAM, standalone_mode=False) or 0)
        if code != 130:
            return code
        cause: BaseException | None = KeyboardInterrupt()
    except Stopped as stopped:
        cause = stopped.__cause__
    except (CannotRun, ModuleNotFoundError):
        raise
    except SystemExit as ended:
        # typer's and rich's answer to a closed pipe or an interrupt while they write or read. A
        # program that `run` has run ends as it likes.
        cause = ended.__context__
        programs = given[0] == "run" and not set(given[1:2]) & set(run.HELP)
        if programs or not isinstance(cause, (KeyboardInterrupt, BrokenPipeError)):
            raise
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # What is wrong with the arguments. Releases of typer differ in whose class that is.
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        path = getattr(getattr(error, "ctx", None), "command_path", PROGRAM)
        raise CannotRun(f"{describe()} ({path} --help lists what there is)") from error
    assert cause is not None
    raise cause


def tell_as_json(given: Sequence[str], message: str) -> None:
    """Print an error as a document, where that was asked of a command that prints documents."""
    names: list[str] = [each for each in given if not each.startswith("-")]
    command = program().commands.get(names[0]) if names else None
    if command is None or not any(each.name == "as_json" for each in command.params):
        return
    if "--json" in given:
        error_document(names[0], message)
