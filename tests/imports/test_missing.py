"""Which errors of a missing package say what to install. All others are left alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.hook.sandbox import Sandbox

IMPORT = """
    import traceback
    try:
        import mamba_ssm.utils.generation
    except ImportError as error:
        assert type(error).__name__ == {kind!r}, type(error)
        assert error.args == (str(error),) == (error.msg,)
        assert traceback.format_exc().count("Error: ") == 1
        print(error.name, error, sep="; ")
"""
FORK = "from transformers.generation import SampleDecoderOnlyOutput, LogitsProcessor\n"


def told(folder: Path, text: str, files: dict[str, str], kind: str = "ModuleNotFoundError") -> str:
    """What is said where the target ``mamba_ssm.utils.generation`` is ``text``."""
    sandbox = Sandbox(folder)
    sandbox.generation.write_text(text)
    (sandbox.site / "pip.py").touch()
    for name, content in files.items():
        (sandbox.site / name).write_text(content)
    return sandbox.output(IMPORT.format(kind=kind), options=("-W", "error", "-S"))


@pytest.mark.parametrize(
    ("text", "files", "package", "importer"),
    [
        ("import einops\n", {}, "einops", "mamba_ssm.utils.generation"),
        ("from mamba_ssm.utils import helper\n", {}, "packaging", "mamba_ssm.utils.helper"),
        ("def f():\n    import einops\nf()\n", {}, "einops", "mamba_ssm.utils.generation"),
        # A package that is there lacks another.
        ("import einops", {"einops.py": "import packaging"}, "packaging", "einops"),
        # Names that are looked up at once, through a module of ours.
        (FORK, {}, "transformers", "mamba_ssm.utils.generation"),
        (
            "import sys\nsys.modules['einops'] = None\nimport einops",
            {},
            "einops",
            "mamba_ssm.utils",
        ),
    ],
)
def test_a_missing_package_is_named_with_who_imports_it(
    text: str, files: dict[str, str], package: str, importer: str, tmp_path: Path
) -> None:
    helper = {"mamba_ssm/utils/helper.py": "import packaging.version\n"}
    name, said = told(tmp_path, text, {**helper, **files}).split("; ", 1)
    assert name == package
    assert said.startswith(f"No module named {package!r}, which {importer}")
    assert said.endswith(f" imports; install it with: {sys.executable} -m pip install {package}")


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("import absent", "ModuleNotFoundError", "absent; No module named 'absent'"),
        ("import einops.absent", "ModuleNotFoundError", "einops.absent; No module named 'einops.a"),
        ("from einops import absent", "ImportError", "einops; cannot import name 'absent'"),
    ],
)
def test_other_errors_are_left_alone(text: str, kind: str, said: str, tmp_path: Path) -> None:
    printed = told(tmp_path, text, {"einops.py": "x = 1\n"}, kind)
    assert printed.startswith(said) and "install" not in printed
