"""The command that brings a torch for this machine: PyPI's is the wrong one for most boards.

Up to 2.10 PyPI's wheels for aarch64 are built without CUDA, and the later ones without kernels for
the GPUs of boards (Orin is sm_87, Xavier sm_72) or for a CUDA that they do not have.
"""

from __future__ import annotations

import shlex

from jetson_mamba import advice

# By JetPack. 5: NVIDIA's last wheel for Python 3.8. 6: the community's index, which PyTorch's own
# does not replace. 7: PyTorch's own builds, which know sm_110 from 2.10 on.
FOR_JETPACK = {
    "5": (
        "https://developer.download.nvidia.com/compute/redist/jp/v512/pytorch/"
        "torch-2.1.0a0+41361538.nv23.06-cp38-cp38-linux_aarch64.whl",
    ),
    "6": ("torch==2.8.0", "--index-url", "https://pypi.jetson-ai-lab.io/jp6/cu126/+simple/"),
    "7": ("torch", "--index-url", "https://download.pytorch.org/whl/cu130"),
}


def command(jetpack: str | None, again: bool = False) -> str:
    """The command that installs torch here; ``again`` where one is to be replaced.

    ``jetpack`` is the board's, such as "6.2", None on any other machine.
    """
    what = FOR_JETPACK.get((jetpack or "").partition(".")[0], ("torch",))
    force = ("--force-reinstall", "--no-deps") if again else ()
    words = " ".join(map(shlex.quote, (*force, *what)))
    return f"{advice.pip()} install {words}"
