"""What brings a library of the system's that a board's torch lacks as it is imported.

The wheels for boards hold neither CUDA nor BLAS: they take those of JetPack and of Ubuntu. To
install torch again, which is what else can be done about one that fails, changes nothing there.
"""

from __future__ import annotations

import re

from jetson_mamba import advice

# As the loader says it, and as torch does where it looks for libraries that pip brings.
MISSING = re.compile(
    r"\b(lib[\w+-]+)\.so(?:\.([\d.]+))?: cannot open shared object file"
    r"|\b(lib[\w+-]+)\.so\S* not found in the system path"
)
# Of Ubuntu's: NVIDIA's instructions name them before their wheels.
UBUNTU = {
    "libopenblas": "libopenblas-dev",
    "libmpi": "libopenmpi-dev",
    "libmpi_cxx": "libopenmpi-dev",
    "libomp": "libomp-dev",
    "libgomp": "libgomp1",
    "libnuma": "libnuma1",
}
# Of JetPack's, by the name that its CUDA gives them: the same library of another CUDA is not to be
# had, and the torch that asks for it is another board's.
JETPACK = {
    "5": (
        *("libcudart.so.11.0", "libcublas.so.11", "libcublasLt.so.11", "libcudnn.so.8"),
        *("libcufft.so.10", "libcurand.so.10", "libcusolver.so.11", "libcusparse.so.11"),
        *("libcupti.so.11.4", "libnvToolsExt.so.1"),
    ),
    "6": (
        *("libcudart.so.12", "libcublas.so.12", "libcublasLt.so.12", "libcudnn.so.9"),
        *("libcufft.so.11", "libcurand.so.10", "libcusolver.so.11", "libcusparse.so.12"),
        *("libcupti.so.12", "libnvToolsExt.so.1", "libnvJitLink.so.12", "libcufile.so.0"),
    ),
}
JETPACK["6.0"] = tuple(name.replace("cudnn.so.9", "cudnn.so.8") for name in JETPACK["6"])
# Of NVIDIA's archive for Ubuntu 22.04, which torch 2.5 and 2.8 for JetPack 6 ask for and JetPack
# does not have.
ARCHIVE = {"libcudss": "cudss", "libcusparseLt": "cusparselt"}
KEYRING = "cuda-keyring_1.1-1_all.deb"
ADDRESS = f"https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2204/arm64/{KEYRING}"
# What PyTorch's builds for CUDA 13 take from packages of pip's; JetPack 7 does not have them.
PIP = {
    "libcudnn": "nvidia-cudnn-cu13",
    "libnccl": "nvidia-nccl-cu13",
    "libcusparseLt": "nvidia-cusparselt-cu13",
    "libnvshmem_host": "nvidia-nvshmem-cu13",
}


def command(error: str, jetpack: str | None) -> str | None:
    """The command that brings the library that an error names.

    None where none is named, where nothing is known to bring it, and on a machine without JetPack.
    """
    match = MISSING.search(error)
    if match is None or jetpack is None:
        return None
    name, major = match[1] or match[3], jetpack.partition(".")[0]
    if name in UBUNTU:
        return advice.apt(UBUNTU[name])
    if major == "7" and name in PIP:
        return f"{advice.pip()} install {PIP[name]}"
    if major == "6" and name in ARCHIVE:
        root = advice.as_root()
        add = f"wget {ADDRESS} && {root}dpkg -i {KEYRING} && {root}apt-get update"
        return f"{add} && {advice.apt(ARCHIVE[name])}"
    wanted = f"{name}.so.{match[2] or ''}"
    there = JETPACK.get(jetpack, JETPACK.get(major, ()))
    if any(each == wanted or (match[3] and each.startswith(wanted)) for each in there):
        return advice.apt("nvidia-jetpack")
    return None
