"""The command `install` in environments of its own, with an index of its own."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.cli.bare import Bare
from tests.cli.command import REPOSITORY

SETUP = """\
import os, setuptools
assert os.environ["MAMBA_SKIP_CUDA_BUILD"] == os.environ["MAMBA_FORCE_BUILD"] == "TRUE"
import torch  # as upstream's setup does, without isolation
setuptools.setup(
    name="mamba-ssm", version="{version}", packages=["mamba_ssm"],
    install_requires=["torch==99", "quack"],
)
"""


class Index:
    """A folder that pip finds distributions in, and nowhere else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def wheel(self, name: str, version: str = "1.0", requires: str = "") -> None:
        """A wheel that holds one empty module."""
        info = f"{name}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        if requires:
            metadata += f"Requires-Dist: {requires}\n"
        with zipfile.ZipFile(self.folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
            wheel.writestr(f"{info}/METADATA", metadata)
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", f"{name}/__init__.py,,\n")

    def mamba_ssm(self, version: str, code: str) -> None:
        """A source distribution whose setup is as demanding as upstream's."""
        files = {"setup.py": SETUP.format(version=version), "mamba_ssm/__init__.py": code}
        with tarfile.open(self.folder / f"mamba_ssm-{version}.tar.gz", "w:gz") as archive:
            for name, text in files.items():
                member = tarfile.TarInfo(f"mamba_ssm-{version}/{name}")
                member.size = len(text.encode())
                archive.addfile(member, BytesIO(text.encode()))


class Environment(Bare):
    """An environment with pip, what a build needs, and a torch from a vendor."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "pip", "setuptools", "wheel", "packaging")
        self.index = Index(folder / "index")
        self.environment.update(
            PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(self.index.folder)
        )
        self.index.mamba_ssm("2.2.4", "import einops, transformers\n__version__ = '2.2.4'\n")
        self.index.mamba_ssm("2.2.5", "import absent\n__version__ = '2.2.5'\n")
        for name in ("einops", "transformers", "huggingface_hub", "triton"):
            self.index.wheel(name)
        (self.site / "torch").mkdir()
        (self.site / "torch" / "__init__.py").write_text("__version__ = '2.3.0+vendor'\n")
        info = self.site / "torch-2.3.0+vendor.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: torch\nVersion: 2.3.0+vendor\n"
        )

    def put_dependencies(self) -> None:
        """Have everything that comes along there already."""
        for name in ("einops", "transformers", "huggingface_hub", "triton"):
            (self.site / f"{name}.py").touch()

    def names(self) -> set[str]:
        """What lies in its site-packages."""
        return {path.name for path in self.site.iterdir()} - {"__pycache__"}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def test_a_dry_run_shows_the_commands_and_changes_nothing(environment: Environment) -> None:
    before = environment.names()
    done = environment.command("install", "mamba-ssm==2.2.4", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "torch 2.3.0+vendor stays as it is." in done.stdout
    first, second = (line.strip() for line in done.stdout.splitlines() if " install " in line)
    assert first.endswith("install einops transformers huggingface-hub triton torch==2.3.0+vendor")
    assert second.startswith("MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE ")
    assert "install --no-build-isolation --no-deps" in second
    assert second.endswith("mamba-ssm==2.2.4")
    assert environment.names() == before


def test_it_installs_builds_without_compiling_and_verifies_the_import(
    environment: Environment,
) -> None:
    done = environment.command("install", "mamba-ssm==2.2.4", "--yes", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["installed"], found["failure"]) == ("2.2.4", None)
    assert found["torch"] == "2.3.0+vendor"
    assert "einops 1.0" in found["packages"]
    names = environment.names()
    assert {"mamba_ssm", "einops", "transformers", "torch-2.3.0+vendor.dist-info"} <= names
    assert not any(name.startswith("quack") for name in names)
    again = environment.command("install", "mamba-ssm==2.2.4", "--dry-run", "--json")
    assert json.loads(again.stdout)["packages"] == []
    assert len(json.loads(again.stdout)["commands"]) == 1


def test_a_release_that_cannot_be_imported_is_exit_code_1_with_the_reason(
    environment: Environment,
) -> None:
    environment.put_dependencies()
    done = environment.command("install", "mamba-ssm==2.2.5", "--yes", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["installed"] is None
    assert found["failure"] == "ModuleNotFoundError: No module named 'absent'"


def test_a_release_that_pip_does_not_find_is_exit_code_1(environment: Environment) -> None:
    environment.put_dependencies()
    done = environment.command("install", "mamba-ssm==7", "--yes")
    assert done.returncode == 1
    assert "pip failed: MAMBA_SKIP_CUDA_BUILD=TRUE" in done.stdout
    assert "mamba_ssm" not in environment.names()


def test_where_a_dependency_wants_another_torch_it_refuses(environment: Environment) -> None:
    environment.index.wheel("einops", "2.0", "torch==99")
    (environment.index.folder / "einops-1.0-py3-none-any.whl").unlink()
    environment.index.wheel("torch", "99")
    before = environment.names()
    done = environment.command("install", "--yes")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "pip cannot tell what it would install beside torch 2.3.0+vendor: " in line
    assert environment.names() == before


def test_where_pip_would_put_a_torch_over_one_that_it_has_no_record_of_it_refuses(
    environment: Environment,
) -> None:
    """A torch that was built in place has no metadata, so that pip cannot be told to keep it."""
    (environment.site / "torch-2.3.0+vendor.dist-info" / "METADATA").unlink()
    (environment.site / "torch-2.3.0+vendor.dist-info").rmdir()
    environment.index.wheel("einops", "2.0", "torch")
    environment.index.wheel("torch", "99")
    before = environment.names()
    done = environment.command("install", "--yes")
    assert done.returncode == 2
    assert "pip would replace torch unknown by 99" in done.stderr
    assert environment.names() == before


def test_it_asks_first_and_no_answer_is_no(environment: Environment) -> None:
    environment.put_dependencies()
    before = environment.names()
    done = environment.command("install", "mamba-ssm==2.2.4")
    assert done.returncode == 130
    assert environment.names() == before

    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [str(environment.python), "-m", "jetson_mamba", "install", "mamba-ssm==2.2.4"],
        env=environment.environment,
        cwd=environment.folder,
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    os.write(main, b"n\n")
    output, _ = process.communicate(timeout=60)
    os.close(main)
    os.close(terminal)
    assert process.returncode == 130
    assert "Run this?" in output
    assert environment.names() == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("numpy", "--yes"), "numpy: expected mamba-ssm, or mamba-ssm and a version"),
        (("mamba-ssm @ file:///x", "--yes"), "expected mamba-ssm"),
        (("--json",), "expected --yes or --dry-run"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[str, ...], expected: str, environment: Environment
) -> None:
    done = environment.command("install", *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert expected in line


def test_without_torch_it_says_so(tmp_path: Path) -> None:
    done = Bare(tmp_path).command("install", "--yes")
    assert done.returncode == 2
    assert "torch is not installed" in done.stderr


@pytest.mark.parametrize("version", ["3.10", "3.12"])
def test_everything_that_is_required_has_a_wheel_for_aarch64(version: str) -> None:
    """As pip on a board with that Python resolves it."""
    from hatchling.metadata.core import ProjectMetadata

    required = ProjectMetadata(str(REPOSITORY), None).core.dependencies
    assert required
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-"),
            *("--ignore-installed", "--target", "nowhere", "--only-binary", ":all:"),
            *("--python-version", version, "--implementation", "cp"),
            *("--platform", "manylinux2014_aarch64", "--platform", "manylinux_2_17_aarch64"),
            *required,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "connection broken" in done.stderr or "Temporary failure" in done.stderr:
        pytest.skip("needs a package index")
    assert done.returncode == 0, done.stderr
    files = [each["download_info"]["url"] for each in json.loads(done.stdout)["install"]]
    assert {"typer", "rich"} <= {Path(file).name.split("-")[0] for file in files}
    for file in files:
        assert file.endswith(("-any.whl", "aarch64.whl"))
