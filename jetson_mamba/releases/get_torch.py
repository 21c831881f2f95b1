"""The command that brings a torch for this machine: PyPI's is the wrong one for most boards.

Up to 2.10 PyPI's wheels for aarch64 are built without CUDA, and the later ones without kernels for
the GPUs of boards (Orin is sm_87, Xavier sm_72) or for a CUDA that they do not have.
"""

from __future__ import annotations

import shlex
import sys

from jetson_mamba import advice
from jetson_mamba.releases import libraries

NVIDIA = "https://developer.download.nvidia.com/compute/redist/jp/"
# By JetPack, the nearest first, with the Python that it is for. 5: NVIDIA's last wheel for Python
# 3.8. 6.0, whose CUDA is 12.2: NVIDIA's; the later ones: the community's index, which PyTorch's
# own does not replace. 7: PyTorch's own builds for several Pythons, which know sm_110 from 2.10
# on and whose kernels for sm_80 an Orin runs.
FOR_JETPACK = {
    "5": (
        "3.8",
        f"{NVIDIA}v512/pytorch/torch-2.1.0a0+41361538.nv23.06-cp38-cp38-linux_aarch64.whl",
    ),
    "6.0": (
        "3.10",
        f"{NVIDIA}v60/pytorch/"
        "torch-2.4.0a0+07cecf4168.nv24.05.14710581-cp310-cp310-linux_aarch64.whl",
    ),
    "6": (
        *("3.10", "torch==2.8.0"),
        *("--index-url", "https://pypi.jetson-ai-lab.io/jp6/cu126/+simple/"),
    ),
    "7": ("", "torch", "--index-url", "https://download.pytorch.org/whl/cu130"),
}


def command(jetpack: str | None, again: bool = False) -> str:
    """The command that installs torch here; ``again`` where one is to be replaced.

    ``jetpack`` is the board's, such as "6.2", None on any other machine. Where the board's torch
    is for another Python than this one, that is the one that is called.
    """
    named = jetpack or ""
    python, *what = FOR_JETPACK.get(named, FOR_JETPACK.get(named.partition(".")[0], ("", "torch")))
    force = []
    if again:
        # PyTorch's own builds want libraries of NVIDIA's that the one to be replaced did not.
        force = ["--force-reinstall", *(["--no-deps"] if python else [])]
    words = " ".join(map(shlex.quote, (*force, *what)))
    here = "{}.{}".format(*sys.version_info)
    if python and python != here:
        return (
            f"python{python} -m pip install {words} "
            f"# the board's own Python: its torch is not made for {here}"
        )
    return f"{advice.pip()} install {words}"


def instead_of_a_broken_one(error: str, jetpack: str | None) -> str:
    """The command that mends a torch which cannot be imported, and says why in ``error``.

    Where it lacks a library of the system's, the one that brings that; else another torch.
    """
    return libraries.command(error, jetpack) or command(jetpack, again=True)
