"""Small packages in place of real ones, each with what a test needs of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

from tests.hook.sandbox import REPOSITORY

GENERATION = """
class TextStreamer:
    def __init__(self, tokenizer, skip=False):
        self.tokenizer, self.skip = tokenizer, skip

    def put(self, value):
        return value


class GenerateDecoderOnlyOutput(dict):
    pass
"""
UTILS = "def is_torch_available():\n    return {torch}\n"


def write(folder: Path, files: dict[str, str]) -> None:
    """Write modules, with the packages around them."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    for package in {parent for name in files for parent in Path(name).parents} - {Path(".")}:
        (folder / package / "__init__.py").touch()


def transformers(
    folder: Path, generation: str | None = GENERATION, torch: bool = True, version: str = "5.0.1"
) -> Path:
    """A transformers with that ``transformers.generation``, beside a torch that it takes or not."""
    files = {
        "transformers/__init__.py": f"__version__ = {version!r}\n",
        "transformers/utils/__init__.py": UTILS.format(torch=torch),
        "transformers/utils/hub.py": "def cached_file(*names, **how):\n    return names, how\n",
        "torch/__init__.py": "__version__ = '2.4.0'\n",
    }
    if generation is not None:
        files["transformers/generation/__init__.py"] = generation
    write(folder, files)
    return folder


def run(code: str, *folders: Path, python: str = sys.executable) -> str:
    """What ``code`` prints in an interpreter that has these folders' packages, a pip, no others."""
    if folders:
        (folders[0] / "pip.py").touch()
    done = subprocess.run(
        [python, "-S", "-B", "-W", "error", "-c", dedent(code)],
        env={
            **{key: value for key, value in os.environ.items() if "JETSON_MAMBA" not in key},
            "PYTHONPATH": os.pathsep.join(map(str, (*folders, REPOSITORY))),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
