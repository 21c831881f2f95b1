"""Loaders of every kind: what cannot be modified runs as it would without the hook, with a word."""

from __future__ import annotations

import os
import shutil
from textwrap import dedent

import pytest

from tests.hook.pythons import interpreters, oldest_own_newest
from tests.hook.sandbox import Sandbox
from tests.hook.test_import import stub_extensions

TARGET = "mamba_ssm.ops.selective_scan_interface"
SHOW = f"""
import {TARGET} as module
from mamba_ssm.ops.triton import ssd_combined
print(module.MambaInnerFn(7).value, module.__name__, module.__spec__.name)
print(jetson_mamba.status().targets[0].state)
"""
# A finder whose loader is a class of the given body, for the target only.
FINDER = """
import importlib.util, types
from importlib.machinery import ModuleSpec, SourceFileLoader

class Theirs:
{body}

class Before:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {target!r}:
            return importlib.util.spec_from_loader(name, Theirs(), origin={path!r})
sys.meta_path.insert(sys.meta_path.index(jetson_mamba._finder) + 1, Before)
SOURCE = open({path!r}).read()
"""
KINDS = {
    "only load_module": """
        def load_module(self, name):
            module = sys.modules.setdefault(name, types.ModuleType(name))
            exec(SOURCE, vars(module))
            return module
    """,
    "load_module that puts another module there": """
        def load_module(self, name):
            module = sys.modules[name] = types.ModuleType(name)
            module.__spec__ = ModuleSpec(name, self)
            exec(SOURCE, vars(module))
            return module
    """,
    "no create_module": """
        def exec_module(self, module):
            exec(SOURCE, vars(module))
    """,
    "its own module": """
        def create_module(self, spec):
            return types.ModuleType(spec.name)
        def exec_module(self, module):
            exec(SOURCE, vars(module))
    """,
}


@pytest.mark.parametrize("python", oldest_own_newest(), ids=os.path.basename)
@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_that_lacks_methods(sandbox: Sandbox, kind: str, python: str) -> None:
    stub_extensions(sandbox)
    body = "\n".join("    " + line for line in dedent(KINDS[kind]).splitlines())
    done = sandbox.run(
        "jetson_mamba.ops\n"
        + FINDER.format(body=body, target=TARGET, path=str(sandbox.interface))
        + SHOW,
        python=python,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"7 {TARGET} {TARGET}"
    assert done.stdout.splitlines()[1] == "original"
    assert done.stderr.count("stays as it is installed") == 1
    assert "its loader, Theirs, does not read a plain .py file" in done.stderr


@pytest.mark.parametrize("python", [None, *interpreters()], ids=str)
def test_a_zip_archive(sandbox: Sandbox, python: str | None) -> None:
    """Its loader has ``create_module`` from Python 3.10 on."""
    stub_extensions(sandbox)
    archive = shutil.make_archive(str(sandbox.folder / "packed"), "zip", sandbox.site)
    shutil.rmtree(sandbox.site / "mamba_ssm")
    done = sandbox.run(
        f"sys.path.insert(0, {archive!r})\n{SHOW}\nprint(module.__file__)",
        **({"python": python} if python else {}),  # type: ignore[arg-type]
    )
    assert done.returncode == 0, done.stderr
    first, state, file = done.stdout.splitlines()
    assert (first, state) == (f"7 {TARGET} {TARGET}", "original")
    assert file.startswith(archive)
    assert done.stderr.count(f"{TARGET} stays as it is installed") == 1
    assert "zipimporter, does not read a plain .py file" in done.stderr


@pytest.mark.parametrize("python", oldest_own_newest(), ids=os.path.basename)
def test_a_compiled_file_alone(sandbox: Sandbox, python: str) -> None:
    stub_extensions(sandbox)
    compiling = f"""
    import py_compile
    py_compile.compile({str(sandbox.interface)!r}, {str(sandbox.interface) + "c"!r}, doraise=True)
    """
    sandbox.output(compiling, python=python)
    sandbox.interface.unlink()
    done = sandbox.run(SHOW, python=python)
    assert done.stdout.splitlines() == [f"7 {TARGET} {TARGET}", "original"], done.stderr
    assert "SourcelessFileLoader, does not read a plain .py file" in done.stderr


@pytest.mark.parametrize("python", oldest_own_newest(), ids=os.path.basename)
def test_a_folder_without_a_file(sandbox: Sandbox, python: str) -> None:
    """A namespace package under a target's name is no target, and nothing is said of it."""
    sandbox.interface.unlink()
    sandbox.interface.with_suffix("").mkdir()
    code = f"import {TARGET} as module\nprint(list(module.__path__), module.__spec__.origin)"
    assert sandbox.output(code, python=python) == f"{[str(sandbox.interface)[:-3]]} None"


def test_a_lazy_loader_around_theirs_or_ours(sandbox: Sandbox) -> None:
    """Around ours it runs the copy at the first use; theirs is left as it is, with a word."""
    printed = sandbox.output(
        f"""
        import importlib.util
        import mamba_ssm.ops
        spec = importlib.util.find_spec("{TARGET}")
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = sys.modules["{TARGET}"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        print(module.MambaInnerFn().forward("x", 1)[0], jetson_mamba.status().targets[0].state)
        """
    )
    assert printed == "selective_scan_fwd modified"


@pytest.mark.parametrize("mode", ["on", "strict"])
def test_looking_at_a_spec_reads_nothing_and_raises_nothing(sandbox: Sandbox, mode: str) -> None:
    sandbox.interface.write_text("import selective_scan_cuda\nhandle = selective_scan_cuda\n")
    printed = sandbox.output(
        f"""
        import importlib.util
        import mamba_ssm.ops
        loader = importlib.util.find_spec("{TARGET}").loader
        print(hasattr(loader, "no_such_thing"), "jetson_mamba.hook.copies" in sys.modules)
        import copy
        copy.copy(loader)
        """,
        environment={"JETSON_MAMBA": mode},
    )
    assert printed == "False False"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="paths of POSIX")
def test_a_finder_of_the_oldest_kind_is_asked_in_its_turn(sandbox: Sandbox) -> None:
    """To Python 3.11 ``find_module`` counts; the module that it finds wins, with the hook too."""
    old = [each for each in interpreters() if each[-2:] in (".8", ".9", "10", "11")]
    if not old:
        pytest.skip("no Python here that knows such finders")
    stub_extensions(sandbox)
    finder = f"""
import types
class Oldest:
    @staticmethod
    def find_module(name, path=None):
        return Oldest if name == "{TARGET}" else None
    @staticmethod
    def load_module(name):
        module = sys.modules.setdefault(name, types.ModuleType(name))
        module.VALUE = "theirs"
        return module
sys.meta_path.insert(sys.meta_path.index(jetson_mamba._finder) + 1, Oldest)
import {TARGET} as module
print(module.VALUE)
"""
    for python in old:
        done = sandbox.run(finder, python=python)
        assert done.stdout.strip() == "theirs", done.stderr
        assert "does not read a plain .py file" in done.stderr
