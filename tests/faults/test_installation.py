"""Faults of what is installed: half of a package, two of one, finders that misbehave."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipapp
from pathlib import Path

import pytest
import typer

from jetson_mamba.startup import files
from tests.faults.declared import fault
from tests.faults.environment import (
    ORDINARY,
    PACKAGES,
    STARTUP,
    TARGET,
    Environment,
    copy_package,
    in_cache,
    served,
)
from tests.hook import test_import, test_tools
from tests.hook.sandbox import INTERFACE, RECORDER, REPOSITORY, Sandbox
from tests.packaging import test_wheel

UNCHANGED = "upstream's own module is imported, with one warning that says why"

fault(
    __name__,
    "the startup file is left behind after the package is gone",
    "nothing; Python starts as if it were not there",
)(test_wheel.test_a_startup_file_without_its_package_is_silent)
fault(__name__, "`mamba_ssm` was imported first", UNCHANGED)(
    test_import.test_a_target_imported_before_activation_stays_and_one_warning_says_so
)
fault(__name__, "the text of a target is one that no override knows", UNCHANGED)(
    test_import.test_a_text_in_an_unknown_form_is_imported_as_it_is_with_one_warning
)
fault(__name__, "the same, with `JETSON_MAMBA=strict`", "an `ImportError` that says why")(
    test_import.test_strict_mode_makes_it_an_import_error
)
fault(__name__, "another import hook takes a target first", UNCHANGED)(
    test_tools.test_typeguard_installed_after_takes_the_target_and_a_warning_says_so
)


@fault(
    __name__,
    "on Python 3.15 the startup files are left behind after the package is gone",
    "nothing; Python starts as if they were not there",
)
def test_a_left_behind_entry_point(tmp_path: Path) -> None:
    """As ``site`` of Python 3.15 resolves and calls what a ``.start`` file names."""
    for name in files.NAMES:
        shutil.copy(STARTUP.parent / name, tmp_path)
    program = (
        "import pkgutil, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"for line in open({str(tmp_path / 'jetson_mamba.start')!r}):\n"
        "    if not line.startswith('#'):\n"
        "        pkgutil.resolve_name(line.strip())()\n"
        "print('jetson_mamba' in sys.modules)\n"
    )
    for path, active in ([], "False"), ([REPOSITORY], "True"):
        added = "".join(f"sys.path.append({str(each)!r})\n" for each in path)
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", "import sys\n" + added + program],
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stdout.strip(), done.stderr) == (active, "")


@fault(
    __name__,
    "jetson_mamba is inside a zip application",
    "nothing; the copies run from the cache, and the stand-in and the commands from the archive",
)
def test_a_zip_application(sandbox: Sandbox) -> None:
    application = sandbox.folder / "application"
    for package in PACKAGES:
        copy_package(package, application)
    (application / "__main__.py").write_text(
        RECORDER
        + f"""
import {TARGET} as module
from importlib import metadata, util
from jetson_mamba.report import findings
from jetson_mamba.startup import files
assert files._packaged(files.NAMES[0]).startswith(b"import")
assert findings.SYMPTOMS
print(metadata.version("causal-conv1d"), module.MambaInnerFn().forward("x", True)[0])
print(util.find_spec("causal_conv1d").origin, module.__file__, sep="\\n")
"""
    )
    archive = sandbox.folder / "application.pyz"
    zipapp.create_archive(application, archive)
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", str(archive)],
        env={
            "PYTHONPATH": str(sandbox.site),
            "JETSON_MAMBA_CACHE": str(sandbox.cache),
            "HOME": str(sandbox.folder),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said, stand_in, copy = done.stdout.splitlines()
    version, result = said.split()
    assert version.endswith("jetson.mamba") and stand_in.startswith(str(archive))
    assert result == "selective_scan_fwd" and in_cache(sandbox, copy)


# Without these the copy runs all the same, or the hook is not there at all.
SERVED = ("jetson_mamba/startup", "jetson_mamba/hook/stand_in", "jetson_mamba/hook/unserved.py")
ABSENT = ("jetson_mamba/__init__.py", "jetson_mamba/finder.py", "jetson_mamba/hook/loader.py")
NEEDED = (
    "jetson_mamba/hook/copies.py",
    "jetson_mamba/cache.py",
    "jetson_mamba/rewrite",
    "jetson_mamba/overrides.py",
    "vendored_overrides",
    "vendored_overrides/extensions.py",
    "vendored_overrides/mamba_ssm",
)
UPSTREAM = f"""
import causal_conv1d, {TARGET} as module
import mamba_ssm.ops.triton
print(module.__file__)
"""


def environment_without(missing: str, folder: Path) -> Environment:
    """An environment in which a file or folder of this project is gone, and that runs anything."""
    environment = Environment(folder, copied=True)
    test_import.stub_extensions(environment)
    ops = environment.site / "jetson_mamba" / "ops"
    shutil.rmtree(ops)
    ops.mkdir()
    (ops / "__init__.py").touch()
    lost = environment.site / missing
    if lost.is_dir():
        shutil.rmtree(lost)
    else:
        lost.unlink()
    return environment


@pytest.mark.parametrize("missing", [*SERVED, *ABSENT, *NEEDED])
@fault(
    __name__,
    "the package is half uninstalled, whichever half",
    f"{UNCHANGED} and how to install it again; without a word where the hook itself is gone",
)
def test_half_of_the_package(tmp_path: Path, missing: str) -> None:
    environment = environment_without(missing, tmp_path)
    done = environment.run(UPSTREAM, recorder=False)
    assert done.returncode == 0, done.stderr
    path = done.stdout.strip()
    assert in_cache(environment, path) == (missing in SERVED)
    assert os.path.samefile(path, environment.interface) == (missing not in SERVED)
    if missing in NEEDED:
        assert done.stderr.count("RuntimeWarning") == 1
        reason = f"{TARGET} stays as it is installed: jetson_mamba is not installed whole"
        assert reason in done.stderr
        assert "put the files that are missing in" in done.stderr
    else:
        assert done.stderr == ""


@fault(
    __name__,
    "only the operations that the copies call are gone",
    "an `ImportError` that names `jetson_mamba.ops`",
)
def test_a_package_without_its_ops(tmp_path: Path) -> None:
    environment = environment_without("jetson_mamba/ops", tmp_path)
    done = environment.run(UPSTREAM, recorder=False)
    assert done.stderr.strip().endswith("No module named 'jetson_mamba.ops'")


@fault(__name__, "jetson_mamba fails on a text in a way that nobody thought of", UNCHANGED)
def test_an_error_of_its_own(sandbox: Sandbox) -> None:
    test_import.stub_extensions(sandbox)
    done = sandbox.run(
        f"""
        from jetson_mamba import rewrite
        rewrite.Draft = None
        import {TARGET} as module
        print(module.__file__)
        """
    )
    assert done.stdout.strip() == str(sandbox.interface), done.stderr
    assert done.stderr.count("RuntimeWarning") == 1
    assert "jetson_mamba failed on it (TypeError: 'NoneType' object is not callable)" in done.stderr


@fault(
    __name__,
    "two versions of jetson_mamba are installed, each with its startup file",
    "the one that is first on the path serves everything, once",
)
def test_two_versions_of_jetson_mamba(environment: Environment) -> None:
    second = environment.folder / "second"
    second.mkdir()
    for package in PACKAGES:
        copy_package(package, second)
    shutil.copy(STARTUP, second)
    with (second / "jetson_mamba" / "__init__.py").open("a") as file:
        file.write("raise SystemExit('the second')\n")
    added = f"import site; site.addsitedir({str(second)!r})\n"
    (environment.site / "second.pth").write_text(added)
    once = "import sys; assert [type(each).__module__ for each in sys.meta_path].count("
    once += "'jetson_mamba.finder') == 1\n"
    assert in_cache(environment, served(environment, once))


@pytest.mark.parametrize("first", ["newer", "older"])
@fault(
    __name__,
    "two versions of `mamba_ssm` are on the path",
    "the first one is imported, from a copy of its own text",
)
def test_two_versions_of_mamba_ssm(sandbox: Sandbox, first: str) -> None:
    other = Sandbox(sandbox.folder / "other")
    other.interface.write_text(INTERFACE + "# older\n")
    path = [sandbox.site, other.site] if first == "newer" else [other.site, sandbox.site]
    before = "import sys\nsys.path[1:1] = " + repr([str(each) for each in path]) + "\n"
    copy = served(sandbox, before)
    assert ("# older" in Path(copy).read_text()) == (first == "older")
    assert served(sandbox, before) == copy


@pytest.mark.parametrize("place", ["before", "after"])
@fault(
    __name__,
    "another finder raises",
    "its own exception, as without jetson_mamba; served as soon as it is gone",
)
def test_a_finder_that_raises(sandbox: Sandbox, place: str) -> None:
    """In front of Python's own finders; behind them nobody asks it for what is found."""
    raising = f"""
class Raising:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.startswith("mamba_ssm.ops."):
            raise LookupError("out of order")
own = sys.meta_path.index(jetson_mamba._finder)
sys.meta_path.insert(own if "{place}" == "before" else own + 1, Raising)
try:
    import {TARGET}
except LookupError as error:
    assert str(error) == "out of order"
else:
    raise SystemExit("it was not asked")
sys.meta_path.remove(Raising)
sys.meta_path.append(Raising)
"""
    assert in_cache(sandbox, served(sandbox, raising))


@fault(
    __name__,
    "a finder has no `find_spec`, or returns nothing useful",
    "the finders after it are asked, and the copy runs",
)
def test_finders_of_other_kinds(sandbox: Sandbox) -> None:
    others = """
class Nothing:
    pass
class Silent:
    find_spec = staticmethod(lambda name, path=None, target=None: None)
own = sys.meta_path.index(jetson_mamba._finder)
sys.meta_path[own + 1:own + 1] = [Silent]
if sys.version_info >= (3, 12):  # to 3.11 Python warns of it
    sys.meta_path[own + 1:own + 1] = [Nothing]
"""
    assert in_cache(sandbox, served(sandbox, others))


@fault(__name__, "a tool wraps every finder on `sys.meta_path` in its own", UNCHANGED)
def test_finders_that_are_wrapped(sandbox: Sandbox) -> None:
    test_import.stub_extensions(sandbox)
    done = sandbox.run(
        f"""
        class Wrapper:
            def __init__(self, finder):
                self.finder = finder
            def find_spec(self, name, path=None, target=None):
                return self.finder.find_spec(name, path, target)
        sys.meta_path[:] = [Wrapper(finder) for finder in sys.meta_path]
        import {TARGET} as module
        print(module.__file__)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sandbox.interface)
    assert done.stderr.count("RuntimeWarning") == 1
    assert f"{TARGET} stays as it is installed" in done.stderr


@fault(
    __name__,
    "the startup file raises something other than an ImportError",
    "Python starts; it prints the error of that line and goes on",
)
def test_a_startup_that_fails(tmp_path: Path) -> None:
    environment = Environment(tmp_path, copied=True)
    with (environment.site / "jetson_mamba" / "finder.py").open("a") as file:
        file.write("raise RuntimeError('broken')\n")
    done = environment.run("print('running')", recorder=False)
    assert (done.returncode, done.stdout.strip()) == (0, "running")
    assert "RuntimeError: broken" in done.stderr


@fault(__name__, "the folder of `mamba_ssm` is read-only", "nothing is written there, ever")
def test_an_installation_that_cannot_be_written(sandbox: Sandbox) -> None:
    for folder, _, names in os.walk(sandbox.site, topdown=False):
        for name in names:
            os.chmod(os.path.join(folder, name), 0o444)
        os.chmod(folder, 0o555)
    before = sorted(map(str, sandbox.site.rglob("*")))
    assert in_cache(sandbox, served(sandbox, ORDINARY))
    assert sorted(map(str, sandbox.site.rglob("*"))) == before
    for folder, _, _ in os.walk(sandbox.site):
        os.chmod(folder, 0o755)


@pytest.mark.parametrize("command", ["doctor", "status", "copies"])
@fault(
    __name__,
    "a command is run where the package is half uninstalled",
    "what can be said without the missing half, or one line with how to install it again",
)
def test_a_command_of_half_a_package(command: str, tmp_path: Path) -> None:
    environment = environment_without("vendored_overrides", tmp_path)
    # Where typer and rich are: appended, so that no startup file there is read.
    beside = os.path.dirname(os.path.dirname(typer.__file__))
    done = environment.run(
        f"import sys\nsys.path.append({beside!r})\n"
        f"from jetson_mamba.cli import main\nsys.exit(main(['{command}', '--json']))",
        recorder=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    if command == "copies":
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "jetson_mamba is not installed whole" in done.stderr
    else:
        assert "No module named 'vendored_overrides'" in done.stdout
