"""What to do is a command that works when it is typed, for each way of installing this package."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from jetson_mamba import advice
from jetson_mamba.installing.plan import plan
from jetson_mamba.installing.situation import Situation, Torch
from jetson_mamba.installing.tools import tool
from jetson_mamba.releases import instead, libraries, together
from tests.faults.environment import copy_package
from tests.hook.sandbox import Sandbox
from tests.hook.test_import import UNKNOWN_FORM, stub_extensions
from tools.releases import MAMBA_SSM

TARGET = "mamba_ssm.ops.selective_scan_interface"
PIP = f"{sys.executable} -m pip install --force-reinstall --no-deps"
# Without site a virtual environment is not known as one, and may be of a Python that is managed.
ALLOWED = {"PIP_BREAK_SYSTEM_PACKAGES": "1"}

# Earlier ones are told of an earlier release.
newest = pytest.mark.skipif(
    sys.version_info < (3, 10), reason="the newest release is for Pythons from 3.10 on"
)


class Project:
    """This project as an installer leaves it in a folder, to look at and to break."""

    def __init__(self, folder: Path) -> None:
        self.site = folder / "installed"
        for package in ("jetson_mamba", "vendored_overrides"):
            copy_package(package, self.site)
        (self.site / "pip").mkdir()
        (self.site / "pip" / "__init__.py").touch()

    def record(self, direct_url: object = None) -> None:
        """Metadata; where it came from is what pip writes down."""
        folder = self.site / "jetson_mamba-0.1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: jetson-mamba\nVersion: 0.1.0\n"
        )
        if direct_url is not None:
            (folder / "direct_url.json").write_text(
                direct_url if isinstance(direct_url, str) else json.dumps(direct_url)
            )

    def repair(self) -> str:
        """What it says of itself."""
        return subprocess.run(
            [
                *(sys.executable, "-I", "-S", "-c"),
                "import sys; sys.path.insert(0, sys.argv[1]); "
                "from jetson_mamba import advice; print(advice.repair())",
                str(self.site),
            ],
            env={**os.environ, **ALLOWED},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize("record", [None, "{"])
def test_where_nobody_knows_where_it_came_from_no_command_is_made_up(
    project: Project, record: str | None
) -> None:
    """A pip before 20.1 does not record it, and no index has it."""
    project.record(record)
    assert project.repair().startswith("put the files that are missing in ")


def test_a_wheel_from_a_file_comes_from_the_file(project: Project, tmp_path: Path) -> None:
    wheel = tmp_path / "a wheel.whl"
    wheel.touch()
    project.record({"url": wheel.as_uri(), "archive_info": {}})
    assert project.repair() == f"{PIP} {shlex.quote(str(wheel))}"
    wheel.unlink()
    assert project.repair().startswith("put the files that are missing in ")


def test_a_repository_is_named_with_the_commit(project: Project) -> None:
    vcs = {"vcs": "git", "commit_id": "abc123"}
    project.record({"url": "https://example.org/x.git", "vcs_info": vcs})
    assert project.repair() == f"{PIP} git+https://example.org/x.git@abc123"


def test_an_archive_is_named_by_its_address(project: Project) -> None:
    project.record({"url": "https://example.org/x.whl", "archive_info": {}})
    assert project.repair() == f"{PIP} https://example.org/x.whl"


def test_by_its_name_where_an_index_has_it_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "_editable", lambda: False)
    monkeypatch.setattr(advice, "_direct_url", dict)
    assert advice.origin() == ("index", None) and advice.again() is None
    monkeypatch.setattr(advice, "ON_AN_INDEX", True)
    monkeypatch.setattr(advice, "installed", lambda name: SimpleNamespace(version="0.1.0"))
    assert advice.again() == f"{PIP} jetson-mamba==0.1.0"


@pytest.mark.parametrize("made", ["wheel", "checkout"])
def test_how_it_was_installed_is_what_the_installer_wrote(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"url": tmp_path.as_uri(), ("dir_info" if made == "checkout" else "archive_info"): {}}
    monkeypatch.setattr(advice, "_editable", lambda: False)
    monkeypatch.setattr(advice, "_direct_url", lambda: told)
    assert advice.origin() == (made, str(tmp_path))


def test_the_extras_are_those_that_are_declared() -> None:
    """And no advice names one by this project's name, which no index has."""
    tomllib = pytest.importorskip("tomllib")
    declared = tomllib.loads((advice_folder() / "pyproject.toml").read_text())
    extras = declared["project"]["optional-dependencies"]
    assert {name: tuple(words) for name, words in extras.items()} == advice.EXTRAS
    always = [each for each in declared["project"]["dependencies"] if ";" not in each]
    assert tuple(sorted(always)) == advice.COMMANDS
    named = advice.extra("cuda13", "--upgrade")
    assert shlex.split(named)[-3:] == list(advice.EXTRAS["cuda13"])


def advice_folder() -> Path:
    return Path(advice.HERE)


PYTHON = "/opt/a python"
NAMED = shlex.quote(PYTHON)
BRINGS = "sudo apt-get install python3-venv"
MAKES = f"{NAMED} -m venv --system-site-packages ~/mamba"


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"pip"}, f"{NAMED} -m pip"),
        ({"pip", "uv"}, f"{NAMED} -m pip"),
        ({"uv", "ensurepip"}, f"UV_PYTHON={NAMED} {{uv}} pip"),
        ({"ensurepip"}, f"{NAMED} -m ensurepip && {NAMED} -m pip"),
        (set(), f"{BRINGS} && {NAMED} -m ensurepip && {NAMED} -m pip"),
        # Debian's own Python refuses to bring one.
        ({"debians"}, f"sudo apt-get install python3-pip && {NAMED} -m pip"),
        ({"debians", "ensurepip"}, f"sudo apt-get install python3-pip && {NAMED} -m pip"),
        ({"debians", "ensurepip", "uv"}, f"UV_PYTHON={NAMED} {{uv}} pip"),
        # And has a pip that adds nothing to the system's packages, from Debian 12 on.
        ({"managed", "pip", "ensurepip"}, f"{MAKES} && ~/mamba/bin/python -m pip"),
        ({"managed", "pip", "uv"}, f"{BRINGS} && {MAKES} && ~/mamba/bin/python -m pip"),
        ({"managed", "debians"}, f"{BRINGS} && {MAKES} && ~/mamba/bin/python -m pip"),
    ],
)
def test_what_installs_is_there_or_is_brought_first(
    has: set[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every command that is advised ends with "No module named pip", or is refused."""
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", PYTHON)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for what, name in {
        **{"pip": "has_pip", "ensurepip": "has_ensurepip", "debians": "_is_debians"},
        "managed": "managed",
    }.items():
        monkeypatch.setattr(advice, name, lambda what=what: what in has)
    if "uv" in has:
        (tmp_path / "uv").touch(mode=0o755)
    assert advice.pip() == expected.format(uv=tmp_path / "uv")
    gone = advice.uninstall("x")
    if "managed" in has:
        assert gone == f"{NAMED} -m pip uninstall --break-system-packages --yes x"
    else:
        yes = "" if "UV_PYTHON" in expected else "--yes "
        assert gone == f"{advice.pip()} uninstall {yes}x"


def test_root_needs_no_sudo_which_a_container_does_not_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for user, expected in ((0, "apt-get install x"), (1000, "sudo apt-get install x")):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert advice.apt("x") == expected
        named = libraries.command("libcudss.so.0: cannot open shared object file", "6.2")
        assert named is not None and named.count("sudo ") == (3 if user else 0)


def test_where_nobody_is_root_there_is_no_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "geteuid")
    assert advice.apt("x") == "apt-get install x"


@pytest.mark.parametrize(
    ("text", "version"),
    [("# Pip.\n__version__ = '23.1'\n", "23.1"), ('__version__ = "9"', "9"), ("x = 1", "0")],
)
def test_the_version_of_a_pip_is_read_from_its_text(
    text: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not advice.has_pip() and advice.version_of_pip() == "0"
    assert not advice.has_ensurepip()
    (tmp_path / "ensurepip.py").touch()
    (tmp_path / "pip.py").write_text(text)
    importlib.invalidate_caches()
    assert advice.has_pip() and advice.version_of_pip() == version
    assert advice.has_ensurepip()


@pytest.mark.parametrize("there", ["beside", "of the user", "of another", "nowhere"])
def test_a_command_of_this_project_can_be_typed_where_the_shell_does_not_find_it(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `pip install --user`, until the next login, and in an environment not active."""
    folders = {each: tmp_path / each for each in ("beside", "of the user", "of another")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "jetson-mamba").touch(mode=0o755)
    schemes = {"posix_user": "of the user"}
    monkeypatch.setattr(
        sysconfig, "get_path", lambda name, scheme="": str(tmp_path / schemes.get(scheme, "beside"))
    )
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(folders.get(there, tmp_path / "nothing")))
    text = "run `jetson-mamba doctor`, or jetson-mamba install x; ~/jetson-mamba stays"
    told = advice.reachable(text)
    if there in ("beside", "of the user"):
        assert told == text
    else:
        own = f"{tmp_path / 'python'} -m jetson_mamba"
        assert told == f"run `{own} doctor`, or {own} install x; ~/jetson-mamba stays"


def test_a_new_environment_is_made_by_a_command_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is typed where pip may not add to the system's packages."""
    monkeypatch.setattr(advice, "managed", lambda: "EXTERNALLY-MANAGED")
    command = f"{advice.pip()} --version"
    done = subprocess.run(
        ["sh", "-c", command],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "mamba") in done.stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("recorded", [True, False])
def test_a_checkout_is_checked_out_again_by_a_command_that_works(
    project: Project, recorded: bool
) -> None:
    """Installed so that it can be edited, or found through PYTHONPATH."""
    if recorded:
        project.record({"url": project.site.as_uri(), "dir_info": {"editable": True}})
    assert project.repair().startswith(f"put the files that are missing in {project.site} back")
    for command in ("init -q", "add .", "-c user.name=x -c user.email=x commit -q -m x"):
        subprocess.run(["git", "-C", project.site, *command.split()], check=True)
    lost = project.site / "jetson_mamba" / "hook" / "copies.py"
    lost.unlink()
    subprocess.run(shlex.split(project.repair()), check=True, capture_output=True)
    assert lost.exists()


@pytest.mark.parametrize("triton", [None, "2.1.0", "3.1.0", "3.3.1", "3.4.0", "3.6.0"])
@pytest.mark.parametrize("python", [(3, minor) for minor in range(8, 16)])
def test_the_release_named_is_the_one_that_the_installer_would_choose(
    python: tuple[int, int], triton: str | None
) -> None:
    """Else the one refuses what the other advises: 2.3.2 fails on Python 3.9, 2.2.3 on 3.8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "version_info", (*python, 0, "final", 0))
        named = instead.known_release(triton)
    packages = {"triton": triton} if triton else {}
    here = Situation(python, "aarch64", Torch("2.8.0"), packages, tool=tool())
    assert plan(here).mamba == plan(here, f"mamba-ssm=={named}").mamba == f"mamba-ssm=={named}"


def test_the_newest_release_named_is_the_newest_that_these_tests_know() -> None:
    assert MAMBA_SSM[-1] == together.NEWEST


# A text that is refused.


def published(sandbox: Sandbox, version: str, text: str, direct_url: str | None = None) -> None:
    """Metadata of mamba-ssm in which ``text`` is what was installed."""
    folder = sandbox.site / f"mamba_ssm-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: mamba-ssm\nVersion: {version}\n"
    )
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    (folder / "RECORD").write_text(f"mamba_ssm/ops/selective_scan_interface.py,sha256={digest},\n")
    if direct_url is not None:
        (folder / "direct_url.json").write_text(direct_url)


@pytest.mark.parametrize(
    ("version", "altered", "direct_url", "release"),
    [
        ("9.0", False, None, together.NEWEST),  # the next release
        (together.NEWEST, False, None, None),  # the same text again
        ("2.2.4", False, None, None),  # one that should be understood
        ("2.2.4", True, None, "2.2.4"),  # somebody edited it
        (together.NEWEST, False, "{}", together.NEWEST),  # from a repository
        (None, False, None, None),  # a fork on the path
    ],
)
@newest
def test_a_refused_text_is_replaced_by_a_release_only_where_that_helps(
    sandbox: Sandbox,
    version: str | None,
    altered: bool,
    direct_url: str | None,
    release: str | None,
) -> None:
    stub_extensions(sandbox)
    sandbox.interface.write_text(UNKNOWN_FORM)
    if version is not None:
        published(sandbox, version, "other" if altered else UNKNOWN_FORM, direct_url)
    done = sandbox.run(f"import {TARGET}", options=("-S",))
    assert done.returncode == 0, done.stderr
    assert f"report {sandbox.interface} to the authors" in done.stderr
    assert "JETSON_MAMBA=off" in done.stderr
    install = f"jetson-mamba install mamba-ssm=={release}"
    assert ("jetson-mamba install" in done.stderr) == (release is not None)
    assert release is None or install in done.stderr


@pytest.mark.parametrize("version", ["9.0", "2.2.4"])
def test_a_text_that_was_not_installed_is_replaced_by_nothing(
    version: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that somebody laid beside those of the release, or one elsewhere."""
    published(sandbox, version, UNKNOWN_FORM)
    monkeypatch.setattr(sys, "path", [str(sandbox.site), *sys.path])
    own = sandbox.interface.with_name("own.py")
    for path in (own, sandbox.folder / "elsewhere.py"):
        path.write_text(UNKNOWN_FORM)
        assert instead.replacement(str(path)) is None
    assert instead.replacement(None) is None
    assert instead.for_a_text(None).startswith("report its text to the authors of jetson_mamba")


def test_advice_that_cannot_be_had_is_no_error(tmp_path: Path) -> None:
    """As with metadata that nobody can read; the module runs all the same."""
    sandbox = Sandbox(tmp_path)
    stub_extensions(sandbox)
    sandbox.interface.write_text(UNKNOWN_FORM)
    broken = "from jetson_mamba.releases import instead\ninstead.for_a_text = None\n"
    done = sandbox.run(broken + f"import {TARGET} as module\nprint(module.__file__)")
    assert done.stdout.strip() == str(sandbox.interface)
    assert "What to do: install jetson_mamba again, or set JETSON_MAMBA=off" in done.stderr


def test_looking_for_pip_asks_no_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of setuptools would switch distutils, and Triton 3.0 then cannot be imported."""
    asked: list[str] = []

    class Finder:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            asked.append(name)

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert advice.has_pip() and tool() is not None
    assert "pip" not in asked
