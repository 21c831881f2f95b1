"""The command `diff` shows what the copies change, without importing what it reads."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from jetson_mamba.report import changes
from tests.cli.command import REPOSITORY, jetson_mamba
from tests.hook.sandbox import Sandbox


def diff(sandbox: Sandbox, *arguments: str) -> subprocess.CompletedProcess[str]:
    (sandbox.site / "mamba_ssm" / "__init__.py").write_text("raise SystemExit('imported')\n")
    return jetson_mamba("diff", *arguments, folder=sandbox.folder, path=(sandbox.site,))


def test_the_diff_turns_the_source_into_the_copy(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    done = diff(sandbox, "selective_scan_interface")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(
        "--- installed/mamba_ssm/ops/selective_scan_interface.py\n"
        "+++ modified/mamba_ssm/ops/selective_scan_interface.py\n@@ "
    )
    code = (
        f"import jetson_mamba, {'mamba_ssm.ops.selective_scan_interface'} as m; print(m.__file__)"
    )
    (sandbox.site / "mamba_ssm" / "__init__.py").write_text("")
    copy = Path(sandbox.output(code)).read_text()
    patched = sandbox.folder / "patched.py"
    patched.write_text(sandbox.interface.read_text())
    subprocess.run(["patch", "--quiet", str(patched)], input=done.stdout, text=True, check=True)
    # The cached file ends with the line that vouches for it.
    assert copy.startswith(patched.read_text())
    assert copy[len(patched.read_text()) :].startswith("# sha256 ")


def test_without_a_name_all_targets_are_shown(tmp_path: Path) -> None:
    done = diff(Sandbox(tmp_path))
    assert done.stdout.count("--- installed/") == 2
    unknown, unchanged = done.stderr.splitlines()
    assert unknown.startswith(
        "mamba_ssm.ops.triton.ssd_combined: mamba_chunk_scan_combined is left as it is: neither it "
    )
    assert unchanged == "mamba_ssm.utils.generation: it needs no change"


def test_as_json_each_target_is_told(tmp_path: Path) -> None:
    found = json.loads(diff(Sandbox(tmp_path), "--json").stdout)["changes"]
    assert [bool(each["diff"]) for each in found] == [True, True, False]
    assert found[2]["reason"] == "it needs no change"
    assert [[way["what"] for way in each["left_out"]] for each in found] == [
        [],
        ["mamba_chunk_scan_combined"],
        [],
    ]


def test_a_target_that_is_not_understood_gives_exit_code_1_and_the_reason(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.interface.write_text("import selective_scan_cuda\nselective_scan_cuda.other(1)\n")
    done = diff(sandbox, "mamba_ssm.ops.selective_scan_interface")
    assert done.returncode == 1
    assert "selective_scan_cuda" in done.stderr


def test_a_name_that_is_no_target_is_refused_with_those_that_are(tmp_path: Path) -> None:
    done = diff(Sandbox(tmp_path), "interface")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "interface: expected one of mamba_ssm.ops.selective_scan_interface, " in line


def test_without_mamba_ssm_it_says_so(tmp_path: Path) -> None:
    done = jetson_mamba("diff", folder=tmp_path)
    assert done.returncode == 2
    assert "mamba_ssm is not installed; install it: jetson-mamba install" in done.stderr


def test_on_a_terminal_it_is_coloured(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "jetson_mamba", "diff", "ssd_combined"],
        stdout=terminal,
        env={
            **{name: value for name, value in os.environ.items() if name != "NO_COLOR"},
            "PYTHONPATH": os.pathsep.join((str(sandbox.site), str(REPOSITORY))),
            "TERM": "xterm",
        },
        cwd=tmp_path,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            read = os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        shown += read
    os.close(main)
    assert process.wait() == 0
    assert b"\x1b[32m+" in shown and b"\x1b[31m-" in shown


def test_neither_torch_nor_mamba_ssm_is_imported(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    code = """
    import sys
    from jetson_mamba.cli import main
    assert main(["diff"]) == 0
    assert main(["copies"]) == 0
    assert not {"torch", "mamba_ssm"} & set(sys.modules)
    """
    done = sandbox.run(code, recorder=False, options=("-B",))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"a", ["a\n"]),
        (b"a\nb", ["a\n", "b\n"]),
        (b"a\n\nb\n", ["a\n", "\n", "b\n"]),
        (b"a\r\nb\rc\r\n", ["a\n", "b\n", "c\n"]),
        (b"# -*- coding: latin-1 -*-\n\xe9", ["# -*- coding: latin-1 -*-\n", "\u00e9\n"]),
        (b"\xef\xbb\xbfa\n", ["a\n"]),
        (b"a\x0cb\n", ["a\x0cb\n"]),
    ],
)
def test_every_line_has_one_end(data: bytes, lines: list[str]) -> None:
    assert changes._lines(data) == lines
