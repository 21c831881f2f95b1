"""What ``status()`` and ``jetson-mamba status`` say about a process."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import jetson_mamba
from jetson_mamba.cli import tables
from jetson_mamba.finder import TARGETS
from jetson_mamba.ops import causal_conv1d_fn
from jetson_mamba.report.status import Selected, Status
from tests.cli.command import jetson_mamba as command
from tests.hook.sandbox import Sandbox

INTERFACE = "mamba_ssm.ops.selective_scan_interface"
COMBINED = "mamba_ssm.ops.triton.ssd_combined"
GENERATION = "mamba_ssm.utils.generation"
PRINT = (
    "import dataclasses, json, sys\n"
    "assert 'torch' not in sys.modules\n"
    "print(json.dumps(dataclasses.asdict(jetson_mamba.status())))\n"
    "assert 'torch' not in sys.modules\n"
)


def status(sandbox: Sandbox, code: str, **environment: str) -> dict[str, Any]:
    """The status of an interpreter that has run ``code``."""
    # Without site-packages, where this package's own startup file may lie.
    done = sandbox.run(code + PRINT, options=("-S",), environment=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    found["targets"] = {target.pop("name"): target for target in found["targets"]}
    return found


def test_before_an_import_no_target_is_known(tmp_path: Path) -> None:
    found = status(Sandbox(tmp_path), "import jetson_mamba\n")
    assert (found["active"], found["activated_by"], found["mode"]) == (True, "import", "on")
    assert found["version"] == jetson_mamba.__version__
    assert list(found["targets"]) == list(TARGETS)
    for target in found["targets"].values():
        assert target == {
            "state": "not imported",
            "copy": None,
            "path": None,
            "edits": 0,
            "reason": None,
            "left_out": [],
        }
    assert found["backends"] == []


def test_a_modified_target_tells_its_copy_and_an_unchanged_one_why(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    code = f"import jetson_mamba, {INTERFACE}, {GENERATION}\n"
    for origin in ("made", "cached"):
        targets = status(sandbox, code)["targets"]
        assert targets[INTERFACE]["state"] == "modified"
        assert targets[INTERFACE]["copy"] == origin
        assert targets[INTERFACE]["edits"] > 3
        assert Path(targets[INTERFACE]["path"]).is_file()
        assert Path(targets[INTERFACE]["path"]).is_relative_to(sandbox.cache)
        assert targets[COMBINED]["state"] == "not imported"
        assert targets[GENERATION]["state"] == "original"
        assert targets[GENERATION]["path"] == str(sandbox.generation)
        assert targets[GENERATION]["reason"] == "it needs no change"


def test_a_target_that_is_not_understood_is_original_with_the_reason(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.generation.write_text("from transformers.generation import *\n")
    sandbox.interface.write_text("import selective_scan_cuda as cuda\nif not cuda: cuda.other(1)\n")
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import jetson_mamba, types, sys\n"
        "sys.modules['selective_scan_cuda'] = types.ModuleType('selective_scan_cuda')\n"
        "sys.stdout, stdout = sys.stderr, sys.stdout\n"
        f"import {INTERFACE}\n"
        "sys.stdout = stdout\n"
    )
    target = status(sandbox, code)["targets"][INTERFACE]
    assert target["state"] == "original"
    assert "selective_scan_cuda" in target["reason"]
    assert target["path"] == str(sandbox.interface)


def test_a_target_imported_too_early_is_original_with_the_reason(tmp_path: Path) -> None:
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        f"import {GENERATION}\n"
        "jetson_mamba.activate()\n"
    )
    found = status(Sandbox(tmp_path), code, JETSON_MAMBA="off")
    target = found["targets"][GENERATION]
    assert target["state"] == "original"
    assert "before jetson_mamba was activated" in target["reason"]


def test_the_mode_is_what_the_environment_says(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    off = status(sandbox, f"import {GENERATION}\n", JETSON_MAMBA="off")
    assert (off["active"], off["activated_by"], off["mode"]) == (False, None, "off")
    assert off["targets"][GENERATION]["state"] == "original"
    assert "not active" in off["targets"][GENERATION]["reason"]
    strict = status(sandbox, "", JETSON_MAMBA="strict")
    assert (strict["active"], strict["mode"]) == (True, "strict")


def test_each_case_of_an_op_tells_its_backend_and_those_passed_over() -> None:
    width = 3
    causal_conv1d_fn(torch.ones(1, 8, 5), torch.ones(8, width))
    (found,) = (
        backend
        for backend in jetson_mamba.status().backends
        if backend.op == "causal_conv1d"
        and backend.case.items()
        >= {"device": "cpu", "dtype": "float32", "width": str(width)}.items()
    )
    tried = [each.backend for each in found.passed_over] + [found.backend]
    assert tried == ["package", "extension", "cuda", "pytorch"][: len(tried)]
    assert all(each.reason for each in found.passed_over)


def test_a_backend_that_is_named_is_told_before_and_after_a_call() -> None:
    with jetson_mamba.backend(causal_conv1d="pytorch"):
        found = jetson_mamba.status()
        assert found.selections == (Selected("causal_conv1d", "pytorch", "jetson_mamba.backend"),)
        # Calls of tests before this one have rows already.
        before = dataclasses.replace(found, backends=())
        assert named_rows(before) == ["causal_conv1d pytorch named by jetson_mamba.backend"]
        causal_conv1d_fn(torch.ones(1, 2, 5), torch.ones(2, 4))
        rows = [row for row in jetson_mamba.status().backends if row.op == "causal_conv1d"]
        assert {(row.backend, row.passed_over) for row in rows} == {("pytorch", ())}
        named = named_rows(jetson_mamba.status())
        assert set(named) == {"causal_conv1d cpu pytorch named by jetson_mamba.backend"}
    assert jetson_mamba.status().selections == ()


def named_rows(found: Status) -> list[str]:
    """The rows of the table of backends that say by what a backend is named."""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(tables.backends(found.backends, found.selections))
    lines = (" ".join(line.split()) for line in console.export_text().splitlines())
    return [line for line in lines if "named by" in line]


def test_the_command_shows_what_the_variable_says(tmp_path: Path) -> None:
    done = command("status", folder=tmp_path, JETSON_MAMBA_BACKEND="selective_scan=pytorch")
    assert done.stdout.splitlines()[0].endswith(
        "(JETSON_MAMBA=on, JETSON_MAMBA_BACKEND=selective_scan=pytorch)"
    )
    done = command("status", "--json", folder=tmp_path, JETSON_MAMBA_BACKEND="cuda")
    found = json.loads(done.stdout)
    assert (found["backend_variable"], found["selections"]) == ("cuda", [])


def test_the_command_looks_ahead_without_importing_mamba_ssm(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    (sandbox.site / "mamba_ssm" / "__init__.py").write_text("raise SystemExit('imported')\n")
    for origin in ("made", "cached"):
        done = command("status", "--json", folder=tmp_path, path=(sandbox.site,))
        assert (done.returncode, done.stderr) == (0, "")
        interface, combined, generation, *norms = json.loads(done.stdout)["targets"]
        assert interface["state"] == combined["state"] == generation["state"] == "not imported"
        assert interface["copy"] == combined["copy"] == origin
        assert Path(interface["path"]).is_file()
        assert generation["copy"] is None
        assert generation["reason"] == "it needs no change"
        assert {each["reason"] for each in norms} == {"this release does not have it"}


def test_the_table_names_every_target_in_full_on_80_columns(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.combined.unlink()
    done = command("status", folder=tmp_path, path=(sandbox.site,))
    assert (done.returncode, done.stderr) == (0, "")
    assert "active, by " in done.stdout and "(JETSON_MAMBA=on)" in done.stdout
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert any(row.startswith("ops.selective_scan_interface not imported made ") for row in rows)
    assert any(row.startswith("ops.triton.ssd_combined not imported this") for row in rows)
    assert any(row.startswith("utils.generation not imported it") for row in rows)


def test_the_command_says_that_mamba_ssm_is_not_installed(tmp_path: Path) -> None:
    done = command("status", "--json", folder=tmp_path)
    assert done.returncode == 0
    reasons = {target["reason"] for target in json.loads(done.stdout)["targets"]}
    assert reasons == {"mamba_ssm is not installed"}


def test_the_version_is_printed(tmp_path: Path) -> None:
    done = command("--version", folder=tmp_path)
    assert done.stdout == f"jetson-mamba {jetson_mamba.__version__}\n"
    assert done.returncode == 0


def test_no_command_shows_the_help(tmp_path: Path) -> None:
    done = command(folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo" in done.stdout and "status" in done.stdout
