"""What the tests need comes by uv as by pip."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools import install

CONFIGURED = """
[global]
index-url = https://own/simple
extra-index-url =
    file:///one/simple
    file:///two/simple
constraint = /constraints.txt
cert = /certificates.pem
[install]
pre = true
index-url = https://stronger/simple
[download]
find-links = /elsewhere
"""


def test_uv_is_told_what_pip_is_configured_with(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text(CONFIGURED)
    kept = {name: each for name, each in os.environ.items() if not name.startswith("PIP_")}
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        # The file of this test stands above those of the machine.
        env={**kept, "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_FIND_LINKS": "/a /b"},
        capture_output=True,
        text=True,
        check=True,
    )
    options, variables = install.as_uv(install.settings(listed.stdout))
    pairs = list(zip(options, options[1:]))
    assert ("--default-index", "https://stronger/simple") in pairs
    assert "https://own/simple" not in options
    assert [each for option, each in pairs if option == "--index"] == [
        "file:///one/simple",
        "file:///two/simple",
    ]
    assert [each for option, each in pairs if option == "--find-links"] == ["/a", "/b"]
    assert ("--constraints", "/constraints.txt") in pairs
    assert ("--prerelease", "allow") in pairs
    assert variables == {"SSL_CERT_FILE": "/certificates.pem"}


@pytest.mark.parametrize(
    ("requirements", "codes", "programs", "expected"),
    [
        ("torch==2\nuv==0.13.9\n", [0, 0], ["pip", "uv"], 0),
        ("uv==0.13.9\n", [0, 2, 0], ["pip", "uv", "pip"], 0),
        ("uv==0.13.9\n", [0, 2, 1], ["pip", "uv", "pip"], 1),
        ("uv==0.13.9\n", [1, 1], ["pip", "pip"], 1),
        ("torch==2\n", [0], ["pip"], 0),
    ],
    ids=["uv", "uv fails", "both fail", "no uv to be had", "none pinned"],
)
def test_pip_does_what_uv_cannot(
    requirements: str,
    codes: list[int],
    programs: list[str],
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(requirements)
    wanted = ["--requirement", str(file), "--editable", "."]
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        ran.append(command)
        return SimpleNamespace(returncode=codes[len(ran) - 1])

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(subprocess, "check_output", lambda *_, **__: "")
    monkeypatch.setattr(sys, "argv", ["install", *wanted])
    assert install.main() == expected
    assert ["uv" if each[0].endswith("uv") else each[2] for each in ran] == programs
    assert all(each[-len(wanted) :] == wanted for each in ran if each[-1] != "uv==0.13.9")
