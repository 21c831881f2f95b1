"""``jetson-mamba run``: a program with the hook, in all the ways in which ``python`` runs one."""

import sys
from typing import Any, List, Optional

import typer
from typer.core import TyperCommand

from jetson_mamba.errors import CannotRun
from jetson_mamba.hook import runner

HELP = ("-h", "--help", "--version")
SETTINGS = {"allow_interspersed_args": False}
FORMS = "a file, -m MODULE, -c CODE, or - for stdin"


class AsPython(TyperCommand):
    """A command whose arguments are the program's, whatever they look like.

    Its own options are asked for before all others.
    """

    def parse_args(self, ctx: Any, args: List[str]) -> List[str]:
        """Take everything as it stands, but for a first word that asks for help."""
        return super().parse_args(ctx, args if args[:1] and args[0] in HELP else ["--", *args])


def run(
    arguments: Optional[List[str]] = typer.Argument(
        None,
        metavar="[-m MODULE | -c CODE | - | SCRIPT] [ARGS]...",
        help="What `python` takes: a file, a module, code, or - for a program on stdin.",
        show_default=False,
    ),
) -> None:
    """Run a program as `python` would, with the overrides active.

    Processes that the program starts are patched by the startup file only: `jetson-mamba enable`.
    """
    given = list(arguments or ())
    if given[:1] == ["--"]:
        del given[0]
        kind = "file"
    else:
        kind = _kind(given)
    if not given:
        raise CannotRun(f"run: Missing argument 'SCRIPT'; expected {FORMS}")
    first, *rest = given
    if kind == "-m":
        runner.run_module(first, rest)
    if kind == "-c":
        runner.run_code(first, rest)
    if kind == "-":
        runner.run_stdin(rest)
    runner.run_script(first, rest)


def _kind(given: List[str]) -> str:
    """In which form the program is given; takes an option of one away, but not its value."""
    option = given[0][:2] if given else ""
    if option in ("-m", "-c"):
        value = given.pop(0)[2:]
        if value:
            given.insert(0, value)
        elif not given:
            what = "the name of a module" if option == "-m" else "code"
            raise CannotRun(f"run {option}: expected {what} after it")
        return option
    if given[:1] == ["-"]:
        return "-"
    if option.startswith("-"):
        raise CannotRun(
            f"run {given[0]}: No such option; expected {FORMS}. Options of Python go before: "
            f"{sys.executable or 'python'} {given[0]} -m jetson_mamba run"
        )
    return "file"
