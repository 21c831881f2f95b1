"""What an installation puts into an environment, what that does, and that it goes away again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("jetson_mamba", "vendored_overrides")
PROJECT = (*PACKAGES, "tools", "pyproject.toml", "README.md", "LICENSE", ".gitignore")
STARTUP = ("jetson_mamba.pth", "jetson_mamba.start", "_jetson_mamba_start.py")
BUNDLED = "vendored_overrides/copies/ssd_combined-0123456789abcdef.py"
LOOK = (
    "import sys; print([type(each).__module__ for each in sys.meta_path]); "
    "print(getattr(sys.modules.get('jetson_mamba'), 'activated_by', None))"
)


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed, away from this repository's own Python path."""
    done = subprocess.run(
        [os.fspath(each) for each in command],
        cwd=cwd,
        env={
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("JETSON_MAMBA", "PYTHON"))
            },
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def build(kind: str, tree: Path, folder: Path) -> Path:
    """Call the build backend as pip would; the path of what it builds."""
    folder.mkdir()
    call = f"from hatchling import build; print(build.build_{kind}({str(folder)!r}))"
    name = run(sys.executable, "-c", call, cwd=tree).stdout.split()[-1]
    return folder / name


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a release is built from: with a bundled copy, which git ignores."""
    tree = tmp_path_factory.mktemp("tree")
    for name in PROJECT:
        source = REPOSITORY / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "copies")
            shutil.copytree(source, tree / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, tree / name)
    (tree / BUNDLED).parent.mkdir()
    (tree / BUNDLED).write_text("BUNDLED = True\n")
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the tree."""
    return build("wheel", tree, tmp_path_factory.mktemp("built") / "wheel")


class Environment:
    """A virtual environment that holds one wheel and nothing else, not even pip."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        self.pip("install", "--no-deps", "--no-index", os.fspath(wheel))
        self.site = next(folder.glob("lib/python*/site-packages"))

    def pip(self, *arguments: str) -> None:
        """Run this interpreter's pip on the environment."""
        pip = (sys.executable, "-m", "pip", "--python", os.fspath(self.python), "--quiet")
        run(*pip, *arguments, cwd=self.folder)

    def look(self, **environment: str) -> tuple[str, str]:
        """The finders of a bare interpreter, and what activated the package in it."""
        done = run(self.python, "-c", LOOK, cwd=self.folder, **environment)
        assert done.stderr == ""
        finders, activated_by = done.stdout.splitlines()
        return finders, activated_by


def names(archive: Path) -> set[str]:
    """The paths in a wheel, without its metadata."""
    with ZipFile(archive) as file:
        return {name for name in file.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_packages_the_bundled_copies_and_the_startup_files(
    tree: Path, wheel: Path
) -> None:
    sources = {
        path.relative_to(tree).as_posix()
        for package in PACKAGES
        for path in (tree / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert BUNDLED in sources
    assert any(name.endswith(".cuh") for name in sources)
    # Both where Python looks for them and where `jetson-mamba enable` takes them from.
    assert {f"jetson_mamba/startup/{name}" for name in STARTUP} <= sources
    assert names(wheel) == sources | set(STARTUP)


def test_the_wheel_is_pure_and_small(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size < 1_000_000


def test_a_wheel_built_from_the_sdist_is_the_same(tree: Path, wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", tree, tmp_path / "sdist")
    shutil.unpack_archive(sdist, tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert names(build("wheel", unpacked, tmp_path / "wheel")) == names(wheel)


def test_nothing_that_a_board_has_of_its_own_is_required(wheel: Path) -> None:
    with ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        lines = file.read(metadata).decode().splitlines()
    required = {
        re.split(r"[^\w.-]", line.partition(": ")[2], maxsplit=1)[0]
        for line in lines
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    }
    assert required == {"importlib-resources", "rich", "typer"}
    extras = {line.partition(": ")[2] for line in lines if line.startswith("Provides-Extra: ")}
    assert extras == {"cuda12", "cuda13", "demo", "export", "torch", "triton"}


@pytest.mark.parametrize("address", ["https://forge.example/someone/jetson-mamba", ""])
def test_the_links_are_those_of_where_it_is_built(
    address: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPOSITORY_URL", address)
    with ZipFile(build("wheel", tree, tmp_path / "wheel")) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        told = re.findall(
            r"^Project-URL: (\w+), (\S+)$", file.read(metadata).decode(), re.MULTILINE
        )
    assert [name for name, _ in told] == (
        ["Repository", "Issues", "Changelog", "Documentation"] if address else []
    )
    assert all(link.startswith(address) for _, link in told)


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_installing_activates_every_interpreter_and_uninstalling_ends_it(
    kind: str, tree: Path, tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "venv", build(kind, tree, tmp_path / kind))
    (record,) = environment.site.glob("jetson_mamba-*.dist-info/RECORD")
    listed = {line.partition(",")[0] for line in record.read_text().splitlines()}
    for name in STARTUP:
        assert name in listed
        packaged = tree / "jetson_mamba" / "startup" / name
        assert (environment.site / name).read_bytes() == packaged.read_bytes()

    finders, activated_by = environment.look()
    assert finders.startswith("['jetson_mamba.finder'")
    assert activated_by == "startup file"
    assert "jetson_mamba" not in environment.look(JETSON_MAMBA="off")[0]

    environment.pip("uninstall", "--yes", "jetson-mamba")
    assert [path for path in environment.site.rglob("*") if "jetson" in path.name] == []
    assert "jetson_mamba" not in environment.look()[0]


def test_a_startup_file_without_its_package_is_silent(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv", wheel)
    for package in PACKAGES:
        shutil.rmtree(environment.site / package)
    assert (environment.site / "jetson_mamba.pth").exists()
    finders, activated_by = environment.look()
    assert "jetson_mamba" not in finders
    assert activated_by == "None"


def test_a_wheel_without_bundled_copies_says_so(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "tree", ignore=shutil.ignore_patterns("copies"))
    (tmp_path / "wheel").mkdir()
    call = f"from hatchling import build; build.build_wheel({str(tmp_path / 'wheel')!r})"
    told = run(sys.executable, "-c", call, cwd=tmp_path / "tree").stderr
    assert "vendored_overrides/copies is empty" in told and "make copies" in told
    call = f"from hatchling import build; build.build_wheel({str(tmp_path)!r})"
    assert "is empty" not in run(sys.executable, "-c", call, cwd=tree).stderr
