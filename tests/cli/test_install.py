"""The command `install` in environments of its own, with an index of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
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


# What the trial of a block asks of a torch and of a block.
TORCH = """
__version__ = {version!r}
class version:
    cuda, hip = {cuda!r}, None
class cuda:
    is_available = staticmethod(bool)
class Tensor:
    sum = to = lambda self, *_: self
    backward = lambda self: None
    all = lambda self: {finite}
randn = lambda *_: Tensor()
isfinite = lambda out: out
manual_seed = lambda seed: None
"""
BLOCKS = """
import einops
__version__ = {version!r}
class Mamba:
    def __init__(self, width, **sizes):
        {body}
    to = lambda self, device: self
    __call__ = lambda self, given: given
class Mamba2(Mamba):
    pass
"""
# A pip of another version: those before 22.2 know no --dry-run, and the oldest nothing of torch's.
OTHER_PIP = """
import os, runpy, sys
sys.path.remove({folder!r})
for name in [each for each in sys.modules if each.partition(".")[0] == "pip"]:
    del sys.modules[name]
if {version!r} < "22.2" and {{"--dry-run", "--report"}} & set(sys.argv):
    sys.exit("no such option: --dry-run")
with open({log!r}, "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
print("words of pip's own")
runpy.run_module("pip", run_name="__main__", alter_sys=True)
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
        for release in ("2.2.4", "2.3.2.post1"):
            self.index.mamba_ssm(
                release, BLOCKS.format(version=release, body="import transformers")
            )
        self.index.mamba_ssm("2.2.5", BLOCKS.format(version="2.2.5", body="raise OSError('out')"))
        for name in ("einops", "huggingface_hub"):
            self.index.wheel(name)
        for version in ("4.57.6", "5.24.0"):
            self.index.wheel("transformers", version, requires="huggingface_hub")
        self.torch("2.3.0+vendor")

    def torch(self, version: str, cuda: str | None = None, finite: bool = True) -> None:
        """A torch of that version, and nothing that pip could bring in its place."""
        for old in self.site.glob("torch-*.dist-info"):
            shutil.rmtree(old)
        (self.site / "torch").mkdir(exist_ok=True)
        text = TORCH.format(version=version, cuda=cuda, finite=finite)
        (self.site / "torch" / "__init__.py").write_text(text)
        self.record("torch", version)

    def record(self, name: str, version: str) -> None:
        """What pip keeps of an installation."""
        info = self.site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def other_pip(self, version: str) -> Path:
        """Put a pip of another version before the one that is there; the file that it logs to."""
        folder = self.folder / "other"
        (folder / "pip").mkdir(parents=True)
        (folder / "pip" / "__init__.py").write_text(f"__version__ = {version!r}\n")
        log = self.folder / "pip.log"
        (folder / "pip" / "__main__.py").write_text(
            OTHER_PIP.format(folder=str(folder), version=version, log=str(log))
        )
        self.environment["PYTHONPATH"] = f"{folder}{os.pathsep}{self.environment['PYTHONPATH']}"
        return log

    def put_dependencies(self) -> None:
        """Have everything that comes along there already."""
        for name in ("einops", "transformers", "huggingface_hub"):
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
    assert re.search(r"torch +2.3.0\+vendor +2.3.0\+vendor +stays as it is", done.stdout)
    first, second = (line.strip() for line in done.stdout.splitlines() if " install " in line)
    assert "--prefer-binary einops 'transformers<5' torch==2.3.0+vendor" in first
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
    brought = {"einops 1.0", "transformers 4.57.6", "huggingface_hub 1.0"}
    assert set(found["packages"]) == brought
    names = environment.names()
    assert {"mamba_ssm", "einops", "transformers", "torch-2.3.0+vendor.dist-info"} <= names
    assert not any(name.startswith("quack") for name in names)
    again = environment.command("install", "mamba-ssm==2.2.4", "--dry-run", "--json")
    assert json.loads(again.stdout)["packages"] == []
    assert len(json.loads(again.stdout)["commands"]) == 1


def test_a_release_whose_block_fails_is_exit_code_1_with_the_reason(
    environment: Environment,
) -> None:
    environment.put_dependencies()
    done = environment.command("install", "mamba-ssm==2.2.5", "--yes", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["installed"] is None
    assert found["failure"].startswith(
        "mamba_ssm does not work: a block of Mamba on the CPU fails: OSError: out; "
    )


def test_a_release_that_pip_does_not_find_is_exit_code_1(environment: Environment) -> None:
    environment.put_dependencies()
    done = environment.command("install", "mamba-ssm==7", "--yes")
    assert done.returncode == 1
    assert "this failed: MAMBA_SKIP_CUDA_BUILD=TRUE" in done.stdout
    assert "Could not find a version that satisfies the requirement mamba-ssm==7" in done.stdout
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
    assert "pip would replace torch 2.3.0+vendor by 99" in done.stderr
    assert environment.names() == before


def test_beside_a_torch_before_2_6_transformers_below_5_takes_the_place_of_5(
    environment: Environment,
) -> None:
    """Row 1, in a working block."""
    environment.run("-m", "pip", "install", "--quiet", "einops", "transformers==5.24.0")
    done = environment.command("install", "--yes", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["packages"] == ["transformers 4.57.6"]
    assert found["installed"] == "2.3.2.post1"


@pytest.mark.parametrize("version", ["20.0.2", "22.0.2"])
def test_a_pip_that_cannot_say_beforehand_what_it_would_do(
    environment: Environment, version: str
) -> None:
    """Row 4: those of JetPack 5 and 6."""
    log = environment.other_pip(version)
    done = environment.command("install", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mamba_ssm 2.3.2.post1 runs a block of each kind." in done.stdout
    assert "words of pip's own" not in done.stdout
    first, second = log.read_text().splitlines()
    assert "torch==2.3.0+vendor" in first and "--no-build-isolation" in second


def test_such_a_pip_does_without_a_triton_that_it_does_not_find(environment: Environment) -> None:
    """Row 2: JetPack 5 has none."""
    environment.other_pip("20.0.2")
    environment.torch("2.2.0+nv23.11", cuda="11.4")
    environment.index.wheel("numpy", "1.26.4")
    done = environment.command("install", "--yes", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert "triton==2.2.0" in found["commands"][0]
    assert found["installed"] == "2.3.2.post1"


@pytest.mark.parametrize("there", [True, False])
def test_the_triton_that_goes_with_torch_comes_along_where_there_is_one(
    environment: Environment, there: bool
) -> None:
    """Row 3."""
    environment.torch("2.5.0+vendor", cuda="12.6")
    environment.index.wheel("triton", "3.9.0")
    if there:
        environment.index.wheel("triton", "3.1.0")
    done = environment.command("install", "--yes", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("triton 3.1.0" in json.loads(done.stdout)["packages"]) == there
    assert ("triton" in environment.names()) == there


def test_numpy_and_pydantic_stay_as_they_are(environment: Environment) -> None:
    environment.record("numpy", "1.26.4")
    (environment.site / "numpy.py").touch()
    environment.index.wheel("numpy", "2.2.0")
    (environment.index.folder / "einops-1.0-py3-none-any.whl").unlink()
    environment.index.wheel("einops", requires="numpy>=1.17")
    done = environment.command("install", "--yes", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not any("numpy" in each for each in json.loads(done.stdout)["packages"])
    assert "numpy-1.26.4.dist-info" in environment.names()


def test_where_they_must_change_it_says_so(environment: Environment) -> None:
    environment.record("numpy", "1.26.4")
    (environment.site / "numpy.py").touch()
    environment.index.wheel("numpy", "2.2.0")
    (environment.index.folder / "einops-1.0-py3-none-any.whl").unlink()
    environment.index.wheel("einops", requires="numpy>=2")
    done = environment.command("install", "--dry-run", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "numpy 2.2.0" in json.loads(done.stdout)["packages"]


def test_an_environment_without_pip_gets_the_one_that_python_brings(tmp_path: Path) -> None:
    """Row 4: as uv makes them, where uv itself is not there."""
    environment = Environment(tmp_path)
    for each in environment.site.glob("pip*"):
        each.unlink()
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    done = environment.command("install", "--yes", "--json", PATH=str(nothing))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["commands"][0].endswith("-m ensurepip")
    assert found["installed"] == "2.3.2.post1"
    assert "torch-2.3.0+vendor.dist-info" in environment.names()


def test_uv_serves_where_it_is(tmp_path: Path) -> None:
    uv = shutil.which("uv", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    if uv is None:
        pytest.skip("needs uv")
    environment = Environment(tmp_path)
    for each in environment.site.glob("pip*"):
        each.unlink()
    done = environment.command(
        *("install", "--yes", "--json"),
        **{"UV": uv, "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(environment.index.folder)},
        **{"UV_CACHE_DIR": str(tmp_path / "uv"), "UV_NO_CONFIG": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert {"einops 1.0", "transformers 4.57.6"} <= set(found["packages"])
    assert found["installed"] == "2.3.2.post1"
    assert all(f"{uv} pip install --python" in each for each in found["commands"])
    assert "torch-2.3.0+vendor.dist-info" in environment.names()


def test_what_pip_says_is_shown_when_it_is_asked_for(environment: Environment) -> None:
    environment.other_pip("20.0.2")
    done = environment.command("install", "--yes", "--verbose")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "words of pip's own" in done.stderr


def test_a_block_of_numbers_that_are_not_finite_is_a_failure(environment: Environment) -> None:
    environment.torch("2.3.0+vendor", finite=False)
    done = environment.command("install", "--yes")
    assert done.returncode == 1
    assert "a block of Mamba on the CPU gives numbers that are not finite" in done.stdout


def test_one_that_works_is_left_alone(environment: Environment) -> None:
    assert environment.command("install", "mamba-ssm==2.2.4", "--yes").returncode == 0
    done = environment.command("install", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["commands"], found["installed"]) == ([], "2.2.4")


def test_it_asks_first_and_no_answer_is_no(environment: Environment) -> None:
    environment.put_dependencies()
    before = environment.names()
    done = environment.command("install", "mamba-ssm==2.2.4")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "jetson-mamba: no answer; pass --yes"
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
    assert process.returncode == 1
    assert "Run this?" in output and "nothing is installed" in output
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
    from hatchling.plugin.manager import PluginManager

    required = ProjectMetadata(str(REPOSITORY), PluginManager()).core.dependencies
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
