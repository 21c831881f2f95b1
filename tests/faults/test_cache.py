"""Faults of the cache: the copy then runs from memory, or is made again."""

from __future__ import annotations

import os
import py_compile
import shutil
import tempfile
from pathlib import Path

import pytest

from jetson_mamba import cache
from tests.faults.declared import fault
from tests.faults.environment import ORDINARY, Environment, files, in_cache, served
from tests.hook import test_import
from tests.hook.sandbox import Sandbox

SOMEONE_ELSE = 54321
FROM_MEMORY = "the copy runs from memory"
MADE_AGAIN = "it is never run; the copy is made again"
EVIL = "raise SystemExit('executed')\n"


def gives_away() -> bool:
    """Whether this process may: root in a container may not be, or there may be nobody else."""
    with tempfile.NamedTemporaryFile() as file:
        try:
            os.chown(file.name, SOMEONE_ELSE, SOMEONE_ELSE)
        except (OSError, AttributeError):
            return False
    return True


root = pytest.mark.skipif(not gives_away(), reason="only root can give files away")
full_device = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")

fault(
    __name__,
    "there is a file where the cache directory should be",
    f"{FROM_MEMORY}; tracebacks and `inspect` still read it",
)(test_import.test_no_writable_cache_is_no_error)
fault(
    __name__,
    "the cache directory, or a folder in it, is writable by others",
    f"{FROM_MEMORY}; what lies there is never run",
)(test_import.test_a_cache_where_others_may_write_is_not_used)
fault(__name__, "the cached copy is truncated, tampered with, or writable by others", MADE_AGAIN)(
    test_import.test_a_damaged_copy_is_made_again_and_never_run
)


@fault(__name__, "the cache directory is read-only", FROM_MEMORY)
def test_a_cache_directory_that_is_read_only(sandbox: Sandbox) -> None:
    sandbox.cache.mkdir(mode=0o500)
    assert not in_cache(sandbox, served(sandbox, ORDINARY))
    assert files(sandbox.cache) == []


@fault(__name__, "the cache directory is read-only, with a copy in it", "the cached copy runs")
def test_a_cached_copy_in_a_directory_that_is_read_only(sandbox: Sandbox) -> None:
    copy = served(sandbox)
    for folder in (sandbox.cache / "copies", sandbox.cache):
        folder.chmod(0o500)
    assert served(sandbox, ORDINARY) == copy


@full_device
@fault(__name__, "the disk of the cache is full (ENOSPC)", f"{FROM_MEMORY}; no file is left over")
def test_a_full_disk(sandbox: Sandbox) -> None:
    """What is written goes to a device that is always full, which gives the kernel's own error."""
    full = f"""
    import os
    open_file = os.open
    def open_full(path, flags, *mode, **directory):
        descriptor = open_file(path, flags, *mode, **directory)
        if flags & os.O_CREAT and str(path).startswith({str(sandbox.cache)!r}):
            os.dup2(open_file("/dev/full", os.O_WRONLY), descriptor)
        return descriptor
    os.open = open_full
    """
    assert not in_cache(sandbox, served(sandbox, dedented(full)))
    assert files(sandbox.cache) == []
    assert in_cache(sandbox, served(sandbox))


@pytest.mark.parametrize(
    ("call", "cached"),
    [
        ("mkdir", False),
        ("open", False),
        ("replace", False),
        ("mkdir", True),
        ("lstat", True),
        ("open", True),
        ("fstat", True),
    ],
)
@fault(
    __name__,
    "the disk of the cache fails (EIO), at whichever system call",
    f"{FROM_MEMORY}, or is made again",
)
def test_a_failing_disk(sandbox: Sandbox, call: str, cached: bool) -> None:
    if cached:
        served(sandbox)
    failing = f"""
    import errno, os
    succeed = os.{call}
    def fail(path, *arguments, **keywords):
        if isinstance(path, int) or str(path).startswith({str(sandbox.folder / "c")!r}):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return succeed(path, *arguments, **keywords)
    """
    # Only for the import of the copy: Python itself uses these calls.
    within = f"""
    from jetson_mamba.hook import copies
    find = copies.find
    def find_failing(*arguments):
        os.{call} = fail
        try:
            return find(*arguments)
        finally:
            os.{call} = succeed
    copies.find = find_failing
    """
    path = served(sandbox, dedented(failing) + dedented(within))
    assert in_cache(sandbox, path) == (call == "fstat")
    for copy in sandbox.cache.rglob("*.py"):
        assert cache.unseal(copy.name, copy.read_bytes()) is not None


@root
@pytest.mark.parametrize("level", ["cache", "cache/copies"])
@fault(
    __name__,
    "the cache directory, or a folder in it, belongs to someone else",
    f"{FROM_MEMORY}; what lies there is never run",
)
def test_a_cache_directory_of_someone_else(sandbox: Sandbox, level: str) -> None:
    copy = Path(served(sandbox))
    reseal(copy, EVIL)
    os.chown(sandbox.folder / level, SOMEONE_ELSE, SOMEONE_ELSE)
    assert not in_cache(sandbox, served(sandbox))


@root
@fault(__name__, "the cached copy belongs to someone else", MADE_AGAIN)
def test_a_cached_copy_of_someone_else(sandbox: Sandbox) -> None:
    copy = Path(served(sandbox))
    reseal(copy, EVIL)
    os.chown(copy, SOMEONE_ELSE, SOMEONE_ELSE)
    assert served(sandbox) == str(copy)
    assert copy.stat().st_uid == os.getuid()


@pytest.mark.parametrize("level", ["cache", "cache/copies"])
@fault(
    __name__,
    "the cache directory, or a folder in it, is a symbolic link elsewhere",
    f"{FROM_MEMORY}; nothing is written or run through the link",
)
def test_a_cache_directory_that_is_a_link(sandbox: Sandbox, level: str) -> None:
    copy = Path(served(sandbox))
    reseal(copy, EVIL)
    link, elsewhere = sandbox.folder / level, sandbox.folder / "elsewhere"
    link.rename(elsewhere)
    link.symlink_to(elsewhere)
    before = files(elsewhere)
    assert not in_cache(sandbox, served(sandbox))
    assert files(elsewhere) == before


@fault(__name__, "the cached copy is a symbolic link elsewhere", MADE_AGAIN)
def test_a_cached_copy_that_is_a_link(sandbox: Sandbox) -> None:
    copy = Path(served(sandbox))
    reseal(copy, EVIL)
    elsewhere = sandbox.folder / "elsewhere.py"
    copy.rename(elsewhere)
    copy.symlink_to(elsewhere)
    assert served(sandbox) == str(copy)
    assert not copy.is_symlink()
    assert elsewhere.read_text().startswith(EVIL)


@fault(
    __name__,
    "the cached copy was made by an older override",
    "it is not run; another copy is made beside it",
)
def test_a_copy_of_an_older_override(tmp_path: Path) -> None:
    environment = Environment(tmp_path, copied=True)
    older = Path(served(environment))
    reseal(older, EVIL)
    with (environment.site / "vendored_overrides" / "extensions.py").open("a") as file:
        file.write("# A further form.\n")
    copy = served(environment)
    assert in_cache(environment, copy)
    assert copy != str(older)


@fault(__name__, "one cached copy lies under the name of another", MADE_AGAIN)
def test_a_copy_under_the_name_of_another(sandbox: Sandbox) -> None:
    copy = Path(served(sandbox))
    text = copy.read_bytes()
    other = copy.with_name("selective_scan_interface-0.py")
    other.write_bytes(cache.seal(other.name, EVIL.encode()))
    other.chmod(0o600)
    other.replace(copy)
    assert served(sandbox) == str(copy)
    assert copy.read_bytes() == text


@fault(
    __name__,
    "the process is killed between writing a copy and moving it into place",
    "the next process makes the copy; the unfinished file is never run",
)
def test_a_process_that_is_killed_between_write_and_rename(sandbox: Sandbox) -> None:
    killed = """
    import os, signal
    os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
    """
    assert (
        sandbox.run(dedented(killed) + "import mamba_ssm.ops.selective_scan_interface").stdout == ""
    )
    (unfinished,) = files(sandbox.cache)
    assert unfinished.startswith(".")
    assert in_cache(sandbox, served(sandbox))


@pytest.mark.parametrize("cached", [False, True], ids=["no copy", "cached copy"])
@fault(
    __name__,
    "the cache is emptied while a program starts",
    "the copy that was found runs all the same",
)
def test_a_cache_that_is_emptied_meanwhile(sandbox: Sandbox, cached: bool) -> None:
    if cached:
        served(sandbox)
    emptied = f"""
    import shutil
    from jetson_mamba.hook import copies
    find = copies.find
    def find_and_empty(*arguments):
        found = find(*arguments)
        shutil.rmtree({str(sandbox.cache)!r})
        return found
    copies.find = find_and_empty
    """
    path = served(sandbox, dedented(emptied))
    assert path.startswith(str(sandbox.cache))
    assert not sandbox.cache.exists()


@pytest.mark.parametrize("prefix", [False, True], ids=["beside", "PYTHONPYCACHEPREFIX"])
@pytest.mark.parametrize("how", ["others may write", pytest.param("someone else's", marks=root)])
@fault(
    __name__,
    "the bytecode of a copy belongs to someone else, or is writable by others",
    "it is never run; the copy is compiled again",
)
def test_bytecode_that_someone_else_could_have_written(
    sandbox: Sandbox, how: str, prefix: bool
) -> None:
    """Bytecode that vouches for itself: Python would not compare it with the copy."""
    where = sandbox.folder / "bytecode"
    environment = {
        "PYTHONPYCACHEPREFIX": str(where) if prefix else "",
        "PYTHONDONTWRITEBYTECODE": "",
    }
    copy = served(sandbox, environment=environment)
    (bytecode,) = (where if prefix else sandbox.cache).rglob(f"{Path(copy).stem}*.pyc")
    evil = sandbox.folder / "evil.py"
    evil.write_text(EVIL)
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(evil), cfile=str(bytecode), invalidation_mode=unchecked)
    bytecode.chmod(0o600)
    done = sandbox.run(f"import {test_import.TARGET}", environment=environment)
    assert "executed" in done.stderr, "bytecode of the user's own runs, as for any module"
    if how == "others may write":
        bytecode.chmod(0o666)
    else:
        os.chown(bytecode, SOMEONE_ELSE, SOMEONE_ELSE)
    assert served(sandbox, environment=environment) == copy


@pytest.mark.parametrize("removed", ["cache", "cache/copies"])
@fault(__name__, "the cache is removed between two programs", "the copy is made again")
def test_a_cache_that_is_removed(sandbox: Sandbox, removed: str) -> None:
    copy = served(sandbox)
    shutil.rmtree(sandbox.folder / removed)
    assert served(sandbox) == copy


def reseal(copy: Path, first_line: str) -> None:
    """Put a line before a cached copy, with a digest that fits: whoever may write it can do so."""
    content = cache.unseal(copy.name, copy.read_bytes())
    assert content is not None
    copy.write_bytes(cache.seal(copy.name, first_line.encode() + content))


def dedented(code: str) -> str:
    """Code without the indentation of the test that it stands in."""
    return "\n".join(line[4:] for line in code.splitlines()) + "\n"
