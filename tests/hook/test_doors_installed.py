"""Which module is had under the name of an extension or package, by what is installed."""

from __future__ import annotations

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

from tests.hook.pythons import interpreters
from tests.hook.sandbox import REPOSITORY, Sandbox

EXTENSIONS = ("selective_scan_cuda", "causal_conv1d_cuda", "selective_scan_cuda_oflex")

# Who wins, and who knows.


@pytest.mark.parametrize("name", EXTENSIONS)
def test_a_module_that_works_wins(sandbox: Sandbox, name: str) -> None:
    (sandbox.site / f"{name}.py").write_text("VALUE = 'real'\n")
    code = f"import {name} as module; print(module.VALUE, type(module.__loader__).__name__)"
    assert sandbox.output(code) == "real SourceFileLoader"


@pytest.mark.parametrize("kind", ["py", "so"])
def test_one_that_cannot_be_imported_is_replaced_and_the_reason_kept(
    sandbox: Sandbox, kind: str
) -> None:
    """A compiled one fails as its file is loaded, before there is a module."""
    reason = "undefined symbol: _ZN3c10" if kind == "py" else "file too short"
    for name in EXTENSIONS:
        if kind == "py":
            text = f"VALUE = 'half'\nraise ImportError('{reason}')\n"
            (sandbox.site / f"{name}.py").write_text(text)
        else:
            (sandbox.site / f"{name}{EXTENSION_SUFFIXES[0]}").touch()
    printed = sandbox.output(
        f"""
        import importlib, jetson_mamba
        for name in {EXTENSIONS}:
            module = importlib.import_module(name)
            print(hasattr(module, "VALUE"), module.__file__)
            print(module.__jetson_mamba_reason__)
        """,
        recorder=False,
    ).splitlines()
    for name, file, told in zip(EXTENSIONS, printed[::2], printed[1::2]):
        assert file == f"False {REPOSITORY / 'jetson_mamba' / 'hook' / 'stand_in' / name}.py"
        assert told.startswith("ImportError: ") and reason in told


def test_another_error_of_a_module_is_passed_on(sandbox: Sandbox) -> None:
    (sandbox.site / "selective_scan_cuda.py").write_text("raise ValueError('its own')\n")
    assert "ValueError: its own" in sandbox.run("import selective_scan_cuda").stderr


@pytest.mark.parametrize("name", ["selective_scan_cuda", "causal_conv1d_cuda", "causal_conv1d"])
def test_without_torch_the_error_is_that_of_before(sandbox: Sandbox, name: str) -> None:
    bare = [each for each in interpreters() if each[-2:] in (".8", "13")]
    for python in bare:
        done = sandbox.run(f"import jetson_mamba, {name}", python=python, recorder=False)
        assert f"ModuleNotFoundError: No module named '{name}'" in done.stderr


USE = """
import jetson_mamba, torch
{before}
from jetson_mamba import ops
x, weight = torch.ones(1, 8, 16), torch.ones(8, 4)
ops.causal_conv1d_fn(x, weight)
ops.selective_scan_fn(x, x, -weight, torch.ones(1, 1, 4, 16), torch.ones(1, 1, 4, 16))
for row in jetson_mamba.status().backends:
    print(row.op, row.backend, [(each.backend, each.reason) for each in row.passed_over])
"""


@pytest.mark.parametrize(
    "before", ["", "import selective_scan_cuda, causal_conv1d_cuda, causal_conv1d"]
)
def test_backends_do_not_take_a_stand_in_for_an_extension(sandbox: Sandbox, before: str) -> None:
    for line in sandbox.output(USE.format(before=before), recorder=False).splitlines():
        op, backend, passed = line.split(" ", 2)
        assert backend not in ("package", "extension")
        expected = {
            "causal_conv1d": [
                "('package', 'causal_conv1d is not installed')",
                "('extension', 'causal_conv1d_cuda is not installed')",
            ],
            "selective_scan": ["('extension', 'selective_scan_cuda is not installed')"],
        }[op]
        for each in expected:
            assert each in passed


def test_backends_tell_why_an_extension_cannot_be_imported(sandbox: Sandbox) -> None:
    for name in EXTENSIONS[:2]:
        text = f"raise ImportError('{name}.so: undefined symbol: _ZN3c10')\n"
        (sandbox.site / f"{name}.py").write_text(text)
    before = "import selective_scan_cuda, causal_conv1d_cuda"
    done = sandbox.run(USE.format(before=before), recorder=False)
    for name in EXTENSIONS[:2]:
        assert f"ImportError: {name}.so: undefined symbol: _ZN3c10" in done.stdout


def test_a_backend_that_is_named_does_not_call_itself(sandbox: Sandbox) -> None:
    done = sandbox.run(
        "import jetson_mamba, torch, causal_conv1d_cuda\n"
        "causal_conv1d_cuda.causal_conv1d_fwd(torch.ones(1, 8, 16), torch.ones(8, 4), None, True)",
        recorder=False,
        environment={"JETSON_MAMBA_BACKEND": "causal_conv1d=extension"},
    )
    assert "causal_conv1d_cuda is not installed" in done.stderr
    assert "RecursionError" not in done.stderr


@pytest.mark.parametrize("first", ["", "import causal_conv1d_cuda\n"])
def test_an_installed_package_does_not_run_on_the_stand_in_of_its_extension(
    sandbox: Sandbox, first: str
) -> None:
    """Whatever is imported first: it is replaced whole, with the reason that it gives itself."""
    package = sandbox.site / "causal_conv1d"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '1.4.0'\nimport causal_conv1d_cuda\n")
    code = f"import jetson_mamba\n{first}import causal_conv1d as package\n"
    code += "print(package.__version__, '|', package.__jetson_mamba_reason__)\n"
    code += "import causal_conv1d_cuda\nprint(causal_conv1d_cuda.__jetson_mamba_reason__)"
    assert sandbox.output(code, recorder=False).splitlines() == [
        "1.7.0+jetson.mamba | ModuleNotFoundError: No module named 'causal_conv1d_cuda'",
        "None",
    ]


# Metadata.

VERSION = """
import sys, jetson_mamba
from importlib import metadata
{before}
try:
    print(metadata.version("causal-conv1d"))
except metadata.PackageNotFoundError:
    print("none")
"""


def installed(sandbox: Sandbox, name: str = "causal_conv1d", version: str = "1.4.0") -> None:
    folder = sandbox.site / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize("python", [sys.executable, *interpreters()], ids=os.path.basename)
def test_a_version_that_pip_knows_is_told(sandbox: Sandbox, python: str) -> None:
    code = VERSION.format(before="")
    assert sandbox.output(code, recorder=False, python=python) == "1.7.0+jetson.mamba"
    installed(sandbox)
    assert sandbox.output(code, recorder=False, python=python) == "1.4.0"


def test_a_package_without_metadata_has_none(sandbox: Sandbox) -> None:
    (sandbox.site / "causal_conv1d.py").touch()
    for before in ("", "import causal_conv1d"):
        assert sandbox.output(VERSION.format(before=before), recorder=False) == "none"
    (sandbox.site / "causal_conv1d.py").write_text("raise ImportError('broken')\n")
    assert sandbox.output(VERSION.format(before=""), recorder=False) == "none"
    before = "import causal_conv1d"
    assert sandbox.output(VERSION.format(before=before), recorder=False) == "1.7.0+jetson.mamba"


def test_lists_of_what_is_installed_do_not_have_it(sandbox: Sandbox) -> None:
    assert (
        sandbox.output(
            """
            import jetson_mamba
            from importlib import metadata
            print([d for d in metadata.distributions() if d.metadata["Name"] == "causal-conv1d"])
            print(list(metadata.distributions(name="causal-conv1d", path=sys.path)))
            print(list(metadata.distributions(name="other")))
            """,
        )
        == "[]\n[]\n[]"
    )
