"""Kernels are made without NVIDIA's Python packages.

NVRTC and the driver are called by ctypes, here without a GPU.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler, through_libraries, through_packages

SOURCE, ENTRY = "causal_conv1d_sum.cu", "causal_conv1d_sum"
DEFINES = (("WIDTH", "4"), ("WEIGHT", "float"))


@pytest.fixture
def through_ctypes(monkeypatch: pytest.MonkeyPatch) -> str:
    """NVRTC by ctypes alone, and an architecture that it compiles for."""
    try:
        known = through_libraries.architectures()
    except Unavailable as reason:
        pytest.skip(str(reason))
    monkeypatch.setattr(compiler, "_nvrtc", lambda: through_libraries)
    return f"sm_{87 if 87 in known else max(known)}"


def first(needed: str) -> Any:
    """What the compiler would choose now."""
    return compiler._find_first(needed)


def test_nvrtc_by_ctypes_makes_what_the_package_makes(through_ctypes: str) -> None:
    try:
        if through_packages.version() != through_libraries.version():
            pytest.skip("the package found another NVRTC")
    except Unavailable as reason:
        pytest.skip(str(reason))
    made = compiler.compile_source(SOURCE, ENTRY, DEFINES, through_ctypes)
    options = [*compiler._options(DEFINES, through_ctypes), compiler.TELLING]
    headers = compiler.sources(SOURCE)
    text = headers.pop(SOURCE)
    code, log = through_packages.compile_text(SOURCE, text, headers, options, "CUBIN")
    assert made.cubin == code
    assert compiler.resources(log, ENTRY) == (
        made.registers,
        made.spill_bytes,
        made.static_shared_bytes,
    )


def test_a_text_that_nvrtc_refuses_by_ctypes_says_why(through_ctypes: str) -> None:
    with pytest.raises(compiler.CompileError, match='identifier "nonsense" is undefined'):
        compiler.compile_source(
            SOURCE, ENTRY, (("WIDTH", "4"), ("WEIGHT", "nonsense")), through_ctypes
        )
    with pytest.raises(Unavailable, match="does not compile for sm_1"):
        compiler.compile_source(SOURCE, ENTRY, DEFINES, "sm_1")


def test_ptx_is_made_by_ctypes(through_ctypes: str) -> None:
    assert f".target {through_ctypes}" in compiler.ptx(SOURCE, DEFINES, through_ctypes)


@pytest.mark.parametrize("needed", ["require", "version"])
def test_libraries_serve_where_no_package_is(monkeypatch: pytest.MonkeyPatch, needed: str) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(through_packages, "import_module", missing)
    monkeypatch.setattr(through_libraries, needed, lambda: None)
    assert first(needed) is through_libraries


@pytest.mark.parametrize(
    ("cuda", "module"),
    [
        ("11.4", through_libraries),
        ("12.6", through_packages),
        ("13.0", through_packages),
        (None, through_packages),
    ],
)
def test_the_packages_are_for_cuda_12_and_later(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, module: Any
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    for each in (through_packages, through_libraries):
        monkeypatch.setattr(each, "require", lambda: None)
    assert first("require") is module


def test_what_is_missing_is_said_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    for each, reason in ((through_packages, "no package"), (through_libraries, "no library")):

        def require(reason: str = reason) -> None:
            raise Unavailable(reason)

        monkeypatch.setattr(each, "require", require)
    with pytest.raises(Unavailable, match=r"^no package; no library$"):
        first("require")


@pytest.mark.parametrize(
    ("cuda", "name"), [("11.4", "libnvrtc.so.11.2"), ("12.6", "libnvrtc.so.12")]
)
def test_nvrtc_of_torchs_cuda_is_looked_for_in_the_toolkit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str, name: str
) -> None:
    """By its name, as the linker finds it, before the toolkit's own folder."""
    for each in through_libraries.NVRTC_NAMES.values():
        (tmp_path / "lib64").mkdir(exist_ok=True)
        (tmp_path / "lib64" / each).touch()
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(through_libraries, "find_spec", lambda _: None)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    places = [each for each in through_libraries._places() if not each.startswith("/usr")]
    assert places == [name, str(tmp_path / "lib64" / name)]


def test_a_file_that_is_no_library_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "libnvrtc-builtins.so.11.4").write_text("not a library")
    (tmp_path / "libnvrtc.so.11.2").write_text("not a library")
    monkeypatch.setattr(
        through_libraries, "_places", lambda: iter([str(tmp_path / "libnvrtc.so.11.2")])
    )
    with pytest.raises(Unavailable, match=r"NVRTC is not installed \(.*libnvrtc"):
        through_libraries._nvrtc.__wrapped__()


def test_a_launch_hands_over_its_parameters_one_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stand-in for the driver reads what it is pointed to, as the driver does."""
    launched = []

    def launch(kernel: Any, *rest: Any) -> int:
        *geometry, stream, parameters, extra = rest
        assert parameters is None
        extra = (ctypes.c_size_t * 5).from_address(extra)
        assert (extra[0], extra[2], extra[4]) == (1, 2, 0)
        size = ctypes.c_size_t.from_address(extra[3]).value
        values = (ctypes.c_longlong * (size // 8)).from_address(extra[1])
        launched.append((kernel, geometry, stream, list(values)))
        return 0

    monkeypatch.setattr(
        through_libraries, "_driver", lambda: SimpleNamespace(cuLaunchKernel=launch)
    )
    kernel = through_libraries.Kernel.__new__(through_libraries.Kernel)
    kernel.handle = ctypes.c_void_p(5)
    start = compiler.Launch(kernel, (7, 8, 9), (32, 4, 1), overlapping=True, shared_bytes=96)
    start(77, 1, -2, 1 << 40)
    start(0)
    assert launched == [
        (kernel.handle, [7, 8, 9, 32, 4, 1, 96], 77, [1, -2, 1 << 40]),
        (kernel.handle, [7, 8, 9, 32, 4, 1, 96], 0, []),
    ]


def test_a_failed_launch_says_what_the_driver_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def name_of(error: int, text: Any) -> int:
        text._obj.value = b"CUDA_ERROR_OF_A_KIND"
        return 0

    driver = SimpleNamespace(cuGetErrorName=name_of)
    monkeypatch.setattr(through_libraries, "_driver", lambda: driver)
    with pytest.raises(RuntimeError, match=r"cuLaunchKernel: CUDA_ERROR_OF_A_KIND \(719\)"):
        through_libraries._start(0, (lambda *_: 719, (1,) * 7), ctypes.c_void_p(), 3)
