"""The command line, ``jetson-mamba``: it presents what others find out and do.

Exit codes: 0 done; 1 done, and the result is bad; 2 the command cannot run as it was given or
on this machine, with one line on stderr that says why.
"""

import sys
from typing import Callable, Optional, Sequence, Tuple

import typer

import jetson_mamba
from jetson_mamba import advice
from jetson_mamba.cli import run
from jetson_mamba.cli.bench import bench
from jetson_mamba.cli.copies import copies, diff
from jetson_mamba.cli.demo import demo
from jetson_mamba.cli.doctor import doctor
from jetson_mamba.cli.export import export
from jetson_mamba.cli.install import install
from jetson_mamba.cli.startup import disable, enable
from jetson_mamba.cli.status import status
from jetson_mamba.cli.verify import verify
from jetson_mamba.errors import CannotRun

app = typer.Typer(
    name="jetson-mamba",
    help="Makes the installed mamba-ssm run where it does not.",
    add_completion=False,
    rich_markup_mode="rich",
)
COMMANDS: Tuple[Callable[..., None], ...] = (
    *(doctor, status, install, verify, bench, export, demo),
    *(diff, copies, enable, disable),
)
for command in COMMANDS:
    app.command()(command)
app.command(context_settings=run.SETTINGS)(run.run)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"jetson-mamba {jetson_mamba.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line (``sys.argv`` without ``arguments``); the exit code."""
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        return int(command.main(given, prog_name="jetson-mamba", standalone_mode=False) or 0)
    except CannotRun as error:
        return _fail(str(error), 2)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("jetson_mamba", "vendored_overrides"):
            raise
        return _fail(
            f"jetson_mamba is not installed whole ({error}); {advice.repair()}",
            2,
        )
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except Exception as error:
        # What is wrong with the arguments. Releases of typer differ in whose class that is.
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        return _fail(f"{describe()} (jetson-mamba --help lists what there is)", 2)


def _fail(message: str, code: int) -> int:
    print(f"jetson-mamba: {' '.join(message.split())}", file=sys.stderr)
    return code
