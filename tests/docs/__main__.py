"""Types the pages' commands that install: ``python -m tests.docs``, a part of ``make docs-check``.

Into one new environment that has torch and pip, as the pages say, and nothing of this project; in a
checkout of it. Minutes, and a network for pip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path

from tests.cli.bare import closure
from tests.docs.blocks import REPOSITORY, blocks
from tests.docs.declared import IN_A_NEW_ENVIRONMENT
from tests.docs.test_commands import TRAIN

# What the pages call model.py: a block, and for text a language model.
MODEL = """
import torch
from mamba_ssm import Mamba, MambaLMHeadModel
from mamba_ssm.models.config_mamba import MambaConfig


def make():
    torch.manual_seed(0)
    return {model}.eval()
"""
A_BLOCK = "Mamba(768)"
FOR_TEXT = (
    "MambaLMHeadModel(MambaConfig(d_model=32, n_layer=2, vocab_size=64, rms_norm=True, "
    "fused_add_norm=False, residual_in_fp32=True))"
)


def main() -> int:
    """Type them in their order; 1 if one fails, with what it said."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        checkout = home / "checkout"
        ignored = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "demo-output")
        shutil.copytree(REPOSITORY, checkout, ignore=ignored)
        environment = _with_torch(home / "venv")
        (checkout / "train.py").write_text(TRAIN)
        (generate,) = (each for each in blocks("python") if each.text.startswith("import sys"))
        (checkout / "generate.py").write_text(generate.text)
        variables = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JETSON_MAMBA", "PYTHON"))
        }
        path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        variables.update(PATH=path, JETSON_MAMBA_CACHE=str(home / "cache"), HOME=str(home))
        for command in IN_A_NEW_ENVIRONMENT:
            model = FOR_TEXT if "--step" in command else A_BLOCK
            (checkout / "model.py").write_text(MODEL.format(model=model))
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=checkout,
                env=variables,
                input="y\n",  # to `jetson-mamba install`
                capture_output=True,
                text=True,
                check=False,
            )
            print(f"{done.returncode}  {command}", flush=True)
            if done.returncode and "doctor" not in command:
                print(done.stdout[-4000:], done.stderr[-4000:])
                return 1
    return 0


def _with_torch(folder: Path) -> Path:
    """A virtual environment with pip, to which the torch of this one is lent."""
    venv.create(folder, with_pip=True, symlinks=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    for name in closure("torch", "numpy", "setuptools", "wheel", "packaging"):
        distribution = metadata.distribution(name)
        tops = {Path(file).parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
        for top in sorted(tops):
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder


if __name__ == "__main__":
    sys.exit(main())
