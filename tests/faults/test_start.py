"""The ways to start Python: options, archives, folders that are no site, no home."""

from __future__ import annotations

import os
import sys
import zipapp
from pathlib import Path

import pytest

from tests.faults.declared import fault
from tests.faults.environment import (
    PACKAGES,
    PROGRAM,
    STARTUP,
    Environment,
    copy_package,
    in_cache,
    served,
)
from tests.hook import test_import
from tests.hook.sandbox import RECORDER, Sandbox

STARTED = "import jetson_mamba; assert jetson_mamba.activated_by == 'startup file'\n"
SERVED = "the startup file serves it"

fault(
    __name__,
    "`mamba_ssm` itself is inside a zip archive",
    "it stays as it is, and one warning says so",
)(test_import.test_a_source_that_is_not_a_plain_file_is_left_alone)


@pytest.mark.parametrize("option", ["-I", "-E", "-B", "-P", "-O", "-OO", "-u", "-X dev"])
@fault(__name__, "Python runs with `-I`, `-E`, `-B`, `-P`, `-O`, `-OO`, `-X dev`", SERVED)
def test_an_option_of_python(environment: Environment, option: str) -> None:
    if option == "-P" and sys.version_info < (3, 11):
        pytest.skip("Python has -P from 3.11 on")
    for _ in range(2):
        path = served(environment, STARTED, options=tuple(option.split()))
        assert in_cache(environment, path)
    bytecode = list(environment.cache.rglob("*.pyc"))
    assert option != "-B" or not bytecode


@fault(
    __name__,
    "Python runs with `-S`, and reads no startup file",
    "nothing is touched; a program that imports jetson_mamba is served",
)
def test_without_site(environment: Environment) -> None:
    path = f"import sys; sys.path.insert(0, {str(environment.site)!r})\n"
    options = ("-S", "-W", "error")
    active = path + "print(any('jetson' in type(each).__module__ for each in sys.meta_path))"
    assert environment.output(active, options=options, recorder=False) == "False"
    printed = environment.output(path + RECORDER + PROGRAM, options=options, recorder=False)
    assert in_cache(environment, printed.split(maxsplit=1)[1])


@fault(__name__, "the program is a zip application", SERVED)
def test_a_zip_application(environment: Environment) -> None:
    program = environment.folder / "program"
    program.mkdir()
    (program / "__main__.py").write_text(STARTED + RECORDER + PROGRAM)
    zipapp.create_archive(program, environment.folder / "program.pyz")
    result, path = environment.output(run_file("program.pyz"), recorder=False).split(maxsplit=1)
    assert result == "selective_scan_fwd"
    assert in_cache(environment, path)


@fault(
    __name__,
    "jetson_mamba itself is inside a zip application",
    "the program imports it and is served",
)
def test_jetson_mamba_in_a_zip_application(environment: Environment) -> None:
    environment.uninstall()
    program = environment.folder / "program"
    program.mkdir()
    for package in PACKAGES:
        copy_package(package, program)
    check = "assert 'program.pyz' in jetson_mamba.__file__\n"
    (program / "__main__.py").write_text(RECORDER + check + PROGRAM)
    zipapp.create_archive(program, environment.folder / "program.pyz")
    result, path = environment.output(run_file("program.pyz"), recorder=False).split(maxsplit=1)
    assert result == "selective_scan_fwd"
    assert in_cache(environment, path)


@fault(
    __name__,
    "everything was installed with `pip install --target`, where Python reads no startup file",
    "nothing is touched; who imports jetson_mamba, or calls `site.addsitedir`, is served",
)
def test_an_installation_into_a_target_folder(environment: Environment) -> None:
    environment.uninstall()
    target = environment.folder / "target"
    target.mkdir()
    (environment.site / "mamba_ssm").rename(target / "mamba_ssm")
    for package in PACKAGES:
        copy_package(package, target)
    (target / STARTUP.name).write_bytes(STARTUP.read_bytes())
    on_path = {"PYTHONPATH": str(target)}
    active = "import sys; print('jetson_mamba' in sys.modules)"
    assert environment.output(active, environment=on_path, recorder=False) == "False"
    assert in_cache(environment, served(environment, environment=on_path))
    added = f"import site; site.addsitedir({str(target)!r})\n{STARTED}{RECORDER}{PROGRAM}"
    printed = environment.output(added, recorder=False)
    assert in_cache(environment, printed.split(maxsplit=1)[1])


@fault(
    __name__,
    "`PYTHONPYCACHEPREFIX` moves bytecode elsewhere",
    "the copy runs, its bytecode is there",
)
def test_bytecode_elsewhere(environment: Environment) -> None:
    elsewhere = environment.folder / "bytecode"
    settings = {"PYTHONPYCACHEPREFIX": str(elsewhere), "PYTHONDONTWRITEBYTECODE": ""}
    for _ in range(2):
        copy = served(environment, STARTED, environment=settings)
        assert in_cache(environment, copy)
    assert len(list(elsewhere.rglob(f"{Path(copy).stem}*.pyc"))) == 1
    assert list(environment.cache.rglob("*.pyc")) == []


# The user database, with a user whose home is given, or without the user.
USERS = """
import os, pwd
def user(number, home={home!r}):
    if home is None:
        raise KeyError(number)
    return pwd.struct_passwd(["", "", 0, 0, "", home, ""])
pwd.getpwuid = user
del os.environ["HOME"]
"""


@pytest.mark.parametrize("known", [True, False], ids=["known user", "unknown user"])
@fault(
    __name__,
    "`HOME` is not set, and the user may not be in the user database",
    "copies are kept in the user's home, else in a private folder among the temporary ones",
)
def test_no_home(sandbox: Sandbox, known: bool) -> None:
    temporary, home_of_user = sandbox.folder / "temporary", sandbox.folder / "home"
    for folder in (temporary, home_of_user):
        folder.mkdir()
    home = USERS.format(home=str(home_of_user) if known else None)
    settings = {
        "JETSON_MAMBA_CACHE": "",
        "XDG_CACHE_HOME": "",
        "HOME": "/",
        "TMPDIR": str(temporary),
    }
    path = served(sandbox, home, environment=settings)
    private = f"temporary/jetson_mamba-{os.getuid()}"
    expected = sandbox.folder / ("home/.cache/jetson_mamba" if known else private)
    folder = Path(path).parent
    assert folder == expected / "copies"
    assert list((temporary if known else home_of_user).iterdir()) == []
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    assert not (sandbox.folder / "~").exists()
    assert served(sandbox, home, environment=settings) == path


def run_file(name: str) -> str:
    """Code that runs a file in an interpreter of its own, with the same options."""
    command = f"[sys.executable, '-W', 'error', {name!r}]"
    return f"import subprocess, sys; sys.exit(subprocess.call({command}))"
