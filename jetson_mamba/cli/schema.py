"""``jetson-mamba schema``: which keys the documents have that other commands print."""

import json
from typing import Dict, Optional, Tuple

import typer

from jetson_mamba.cli import output, tables
from jetson_mamba.errors import CannotRun
from jetson_mamba.installing.plan import Outcome
from jetson_mamba.report import documents, keys
from jetson_mamba.report import schema as schemas
from jetson_mamba.report.doctor import Report
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.status import Status

# By command; the fields of several classes stand beside each other.
DOCUMENTS: Dict[str, Tuple[type, ...]] = {
    "doctor": (Facts, Report),
    "status": (Status,),
    "install": (Outcome,),
    "verify": (documents.Verification,),
    "bench": (documents.Timings,),
    "diff": (documents.Changes,),
    "copies": (documents.Copies,),
    "enable": (documents.Enabled,),
    "disable": (documents.Disabled,),
}


def schema(
    command: Optional[str] = typer.Argument(
        None,
        help="The command whose documents to describe. Default: all.",
        autocompletion=lambda: list(DOCUMENTS),
    ),
    as_table: bool = typer.Option(False, "--table", help="Print it for people, as a table."),
) -> None:
    """Print the JSON Schema of what a command prints with --json."""
    if command is not None and command not in DOCUMENTS:
        raise CannotRun(f"{command}: expected one of {', '.join(DOCUMENTS)}")
    wanted = DOCUMENTS if command is None else {command: DOCUMENTS[command]}
    if not as_table:
        found = {name: schemas.schema(name, *classes) for name, classes in wanted.items()}
        print(json.dumps(found if command is None else found[command], indent=2))
        return
    console = output.console()
    shown = tables.Records("key", "meaning", title="every document", wraps=("meaning",))
    for key, meaning in keys.ENVELOPE.items():
        shown.add(key, meaning)
    shown.show(console)
    for name, classes in wanted.items():
        shown = tables.Records("key", "kind", "meaning", title=name, wraps=("kind", "meaning"))
        for row in schemas.table(*classes):
            shown.add(*row)
        shown.show(console)
        output.say(console, "")
