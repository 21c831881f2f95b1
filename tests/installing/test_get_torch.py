"""What brings a torch to a board. What a torch that is there lacks is brought too."""

from __future__ import annotations

import shlex
import sys

import pytest

from jetson_mamba.releases import get_torch, libraries
from jetson_mamba.releases.get_torch import FOR_JETPACK
from tests.boards.steps import FIRST_STEPS

LOADER = "{}: cannot open shared object file: No such file or directory"


def words(command: str) -> list[str]:
    """The words of a command, as a shell that knows comments splits them."""
    return shlex.split(command, comments=True)


def command_in(python: tuple[int, int], jetpack: str | None, again: bool) -> list[str]:
    """What is advised where that is the Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "version_info", (*python, 0, "final", 0))
        told = get_torch.command(jetpack, again)
    return words(told)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("jetpack", ["5.x", "5.1.2", "6.x", "6.0", "6.2", "7.0", "7.2", None])
@pytest.mark.parametrize("python", [(3, minor) for minor in range(8, 16)], ids=str)
def test_a_wheel_for_one_python_is_given_to_that_python(
    python: tuple[int, int], jetpack: str | None, again: bool
) -> None:
    """pip refuses it in any other: "is not a supported wheel on this platform"."""
    named = command_in(python, jetpack, again)
    wanted = {"5": "3.8", "6": "3.10"}.get((jetpack or "")[:1])
    called = sys.executable if wanted in (None, "{}.{}".format(*python)) else f"python{wanted}"
    assert named[:4] == [called, "-m", "pip", "install"]
    assert ("--force-reinstall" in named) == again
    # A board's wheel finds its dependencies there; PyTorch's own needs more than the one before.
    assert ("--no-deps" in named) == (again and wanted is not None)
    wheels = [word for word in named if word.endswith(".whl")]
    assert all(f"-cp{(wanted or '').replace('.', '')}-" in wheel for wheel in wheels)


@pytest.mark.parametrize("language", ["first-steps.md", "first-steps.zh.md"])
@pytest.mark.parametrize("jetpack", ["5", "6", "7"])
def test_the_first_steps_name_the_same_torch(jetpack: str, language: str) -> None:
    text = (FIRST_STEPS.parent / language).read_text(encoding="utf-8")
    python, *what = FOR_JETPACK[jetpack]
    assert f"python{python or 3} -m pip install {' '.join(what)}`" in text


def test_jetpack_6_0_has_another_cuda_than_the_rest_of_6() -> None:
    assert "v60/pytorch/torch-2.4.0a0" in get_torch.command("6.0")
    assert get_torch.command("6.0.1") == get_torch.command("6.2") == get_torch.command("6.x")
    assert set(FOR_JETPACK) >= {"5", "6", "6.0", "7"}


@pytest.mark.parametrize(
    ("error", "jetpack", "brings"),
    [
        (LOADER.format("ImportError: libopenblas.so.0"), "5.1.2", "libopenblas-dev"),
        (LOADER.format("OSError: libmpi_cxx.so.40"), "6.0", "libopenmpi-dev"),
        (LOADER.format("OSError: libcudart.so.11.0"), "5.x", "nvidia-jetpack"),
        (LOADER.format("OSError: libcudart.so.12"), "6.2", "nvidia-jetpack"),
        (LOADER.format("ImportError: libcudnn.so.8"), "6.0", "nvidia-jetpack"),
        (LOADER.format("ImportError: libcudnn.so.9"), "6.2", "nvidia-jetpack"),
        (LOADER.format("ImportError: libcudss.so.0"), "6.2", "cudss"),
        (LOADER.format("ImportError: libcusparseLt.so.0"), "6.1", "cusparselt"),
        (LOADER.format("ImportError: libcudnn.so.9"), "7.2", "nvidia-cudnn-cu13"),
        (
            "ValueError: libcusparseLt.so.*[0-9] not found in the system path ['/usr']",
            "7.0",
            "nvidia-cusparselt-cu13",
        ),
        (
            "ValueError: libcublas.so.*[0-9] not found in the system path []",
            "6.x",
            "nvidia-jetpack",
        ),
    ],
)
def test_a_library_that_a_torch_lacks_is_brought(error: str, jetpack: str, brings: str) -> None:
    """Else the advice is the same torch again, which lacks it again."""
    command = get_torch.instead_of_a_broken_one(error, jetpack)
    assert words(command)[-1] == brings
    assert "install" in words(command) and "torch" not in command


BROUGHT = {
    "": {
        **{"libopenblas": "libopenblas-dev", "libmpi": "libopenmpi-dev", "libomp": "libomp-dev"},
        **{"libmpi_cxx": "libopenmpi-dev", "libgomp": "libgomp1", "libnuma": "libnuma1"},
    },
    "6.2": {"libcudss": "cudss", "libcusparseLt": "cusparselt"},
    "7.0": {
        **{"libcudnn": "nvidia-cudnn-cu13", "libnccl": "nvidia-nccl-cu13"},
        **{"libcusparseLt": "nvidia-cusparselt-cu13", "libnvshmem_host": "nvidia-nvshmem-cu13"},
    },
}
OF_JETPACK = {
    "5.1.2": "cudart.so.11.0 cublas.so.11 cublasLt.so.11 cudnn.so.8 cufft.so.10 curand.so.10 "
    "cusolver.so.11 cusparse.so.11 cupti.so.11.4 nvToolsExt.so.1",
    "6.2": "cudart.so.12 cublas.so.12 cublasLt.so.12 cudnn.so.9 cufft.so.11 curand.so.10 "
    "cusolver.so.11 cusparse.so.12 cupti.so.12 nvToolsExt.so.1 nvJitLink.so.12 cufile.so.0",
}
OF_JETPACK["6.0"] = OF_JETPACK["6.2"].replace("cudnn.so.9", "cudnn.so.8")


@pytest.mark.parametrize("jetpack", ["5.1.2", "6.0", "6.2", "7.0"])
def test_every_library_has_what_brings_it(jetpack: str) -> None:
    for of, names in BROUGHT.items():
        for name, brings in names.items():
            if of[:1] in ("", jetpack[0]):
                command = libraries.command(LOADER.format(f"OSError: {name}.so.0"), jetpack)
                assert command is not None and words(command)[-1] == brings
                assert ("cuda-keyring" in command) is (of == "6.2")
    for name in OF_JETPACK.get(jetpack, "").split():
        command = libraries.command(LOADER.format(f"OSError: lib{name}"), jetpack)
        assert command is not None and words(command)[-1] == "nvidia-jetpack"
    # All of the tables are tried here.
    tried = {name for names in BROUGHT.values() for name in names}
    assert tried == {*libraries.UBUNTU, *libraries.ARCHIVE, *libraries.PIP}
    of_jetpack = {f"lib{name}" for names in OF_JETPACK.values() for name in names.split()}
    assert of_jetpack == {name for names in libraries.JETPACK.values() for name in names}


@pytest.mark.parametrize(
    ("error", "jetpack"),
    [
        (LOADER.format("OSError: libcudart.so.13"), "6.2"),  # the torch of another JetPack
        (LOADER.format("ImportError: libcudnn.so.8"), "6.2"),
        (LOADER.format("OSError: libcudart.so.12"), "5.1.2"),
        (LOADER.format("ImportError: libcudss.so.0"), "5.x"),
        (LOADER.format("OSError: libcudart.so.10.2"), "4.6"),  # of which nothing is known
        (LOADER.format("OSError: libcudart.so.14"), "8.0"),
        (LOADER.format("OSError: libcudart.so.12"), None),  # a PC, where pip brings it
        ("ImportError: /x/libtorch.so: undefined symbol: sgesdd", "5.1.2"),
    ],
)
def test_a_torch_that_is_not_this_boards_is_replaced(error: str, jetpack: str | None) -> None:
    assert libraries.command(error, jetpack) is None
    command = get_torch.instead_of_a_broken_one(error, jetpack)
    assert command == get_torch.command(jetpack, again=True)
