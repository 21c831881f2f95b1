"""Every command that has --json prints one document in the same envelope, which is described."""

from __future__ import annotations

import ast
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import jetson_mamba as package
from jetson_mamba.cli import commands, main
from jetson_mamba.cli.schema import DOCUMENTS
from jetson_mamba.report import keys
from jetson_mamba.report.schema import schema, table
from tests.cli.bare import Bare
from tests.cli.command import jetson_mamba
from tests.cli.test_verify import transformers
from tests.hook.sandbox import Sandbox
from tools.releases import release_path

__all__ = ["transformers"]  # a fixture

validate: Any = import_module("jsonschema").validate  # which has no types


def document(command: str, text: str) -> dict[str, Any]:
    """What a command has printed, valid against its schema."""
    found: dict[str, Any] = json.loads(text)
    validate(found, schema(command, *DOCUMENTS[command]))
    assert list(found)[:2] == ["schema", "version"]
    assert found["schema"].startswith(f"jetson-mamba/{command}/")
    assert found["version"] == package.__version__
    assert found["machine"]["architecture"] and "board" in found["machine"]
    return found


def test_every_command_that_has_documents_is_described() -> None:
    with_json = {
        name
        for name, command in commands.program().commands.items()
        if any("--json" in option.opts for option in command.params)
    }
    assert with_json == set(DOCUMENTS)


@pytest.mark.parametrize("command", ["status", "diff", "copies"])
def test_what_is_read_of_an_installation(command: str, tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    done = jetson_mamba(command, "--json", folder=tmp_path, path=(sandbox.site,))
    found = document(command, done.stdout)
    assert "error" not in found


def test_what_computes(tmp_path: Path, transformers: Path) -> None:
    path = (transformers, release_path("1.0.1"))
    done = jetson_mamba("verify", "--device", "cpu", "--json", folder=tmp_path, path=path)
    rows = document("verify", done.stdout)["rows"]
    quick = ("--op", "causal_conv1d", "--device", "cpu", "--rep", "1")
    done = jetson_mamba("bench", *quick, "--json", folder=tmp_path)
    rows += document("bench", done.stdout)["rows"]
    # One spelling of every dtype.
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16", "float16"}


def test_what_changes_an_environment(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    for command in ("enable", "disable"):
        found = document(command, bare.command(command, "--json").stdout)
        assert found["takes_effect"] is (command == "enable")
    document("doctor", bare.command("doctor", "--json").stdout)
    # Without torch nothing can be installed.
    done = bare.command("install", "--dry-run", "--json")
    assert done.returncode == 2
    assert "torch is not installed" in document("install", done.stdout)["error"]


@pytest.mark.parametrize("command", sorted(DOCUMENTS))
def test_every_key_has_a_meaning_and_a_kind(command: str) -> None:
    rows = table(*DOCUMENTS[command])
    assert len(rows) == len({key for key, _, _ in rows})
    for key, kind, meaning in rows:
        assert key and kind and meaning


def test_nothing_is_described_that_is_not_there() -> None:
    from jetson_mamba.report.keys import CLOSED, MEANINGS

    defined = {
        name: set(each["properties"])
        for command, classes in DOCUMENTS.items()
        for name, each in schema(command, *classes)["$defs"].items()
    }
    defined.update(
        (each.__name__, set(MEANINGS[each.__name__]))
        for classes in DOCUMENTS.values()
        for each in classes
    )
    assert set(MEANINGS) == set(defined)
    assert all(fields <= set(MEANINGS[name]) for name, fields in defined.items())
    for field in CLOSED:
        kind, _, name = field.partition(".")
        assert name in defined[kind]


def test_a_copy_is_from_one_of_the_places_that_are_described() -> None:
    from jetson_mamba.hook import copies
    from jetson_mamba.report.keys import CLOSED

    tree = ast.parse(Path(copies.__file__).read_text("utf-8"))
    made = [
        ast.literal_eval(node.args[3])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_ready"
    ]
    assert len(made) > 2
    assert set(CLOSED["Target.copy"]) == {*made, None}


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "bench"]) == 0
    assert json.loads(capsys.readouterr().out) == schema("bench", *DOCUMENTS["bench"])
    assert main(["schema"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(DOCUMENTS)
    assert main(["schema", "--table", "bench"]) == 0
    assert "rows[].microseconds" in capsys.readouterr().out
    assert main(["schema", "demo"]) == 2
    assert "demo: expected one of doctor, " in capsys.readouterr().err


def test_a_reader_may_rely_on_the_values_of_a_closed_field() -> None:
    assert keys.CLOSED == {
        "Target.state": ("modified", "original", "not imported"),
        "Target.copy": ("bundled", "cached", "made", None),
        "KeptCopy.origin": ("bundled", "cached"),
        "Status.activated_by": ("import", "startup file", None),
        "TimedRow.direction": ("forward", "backward"),
    }
