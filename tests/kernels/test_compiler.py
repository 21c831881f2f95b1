"""The kernels' compiler without a GPU: what NVRTC makes, what is kept, how failures are told."""

from __future__ import annotations

import pkgutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler, through_packages

SOURCE, ENTRY = "causal_conv1d_sum.cu", "causal_conv1d_sum"
DEFINES = (("WIDTH", "4"), ("WEIGHT", "float"))
LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_87'
ptxas info    : Function properties for first
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_87'
ptxas info    : Function properties for second
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 368 bytes cmem[0]
"""


@pytest.fixture
def architecture() -> str:
    """One that the installed NVRTC compiles for."""
    try:
        known = compiler.supported_architectures()
    except Unavailable as reason:
        pytest.skip(str(reason))
    return "sm_87" if "sm_87" in known else sorted(known)[0]


@pytest.fixture
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setenv("JETSON_MAMBA_CACHE", str(root))
    return root


def test_resource_usage_is_read_for_the_entry_asked_for() -> None:
    assert compiler.resources(LOG, "first") == (40, 16, 1024)
    assert compiler.resources(LOG, "second") == (8, 0, 0)
    with pytest.raises(compiler.CompileError, match="no resource usage of third"):
        compiler.resources(LOG, "third")


def test_a_source_comes_with_every_header_that_it_includes() -> None:
    assert set(compiler.sources("causal_conv1d_update.cu")) == {
        "causal_conv1d_update.cu",
        "causal_conv1d.cuh",
        "numbers.cuh",
    }


def test_machine_code_is_made_for_the_architecture(architecture: str) -> None:
    compiled = compiler.compile_source(SOURCE, ENTRY, DEFINES, architecture)
    assert compiled.cubin.startswith(b"\x7fELF")
    assert ENTRY.encode() in compiled.cubin
    assert compiled.registers > 0
    assert compiled.spill_bytes == 0
    assert compiled.static_shared_bytes == 8 * 32 * 4


def test_an_unknown_architecture_is_unavailable(architecture: str) -> None:
    with pytest.raises(Unavailable, match="does not compile for sm_1"):
        compiler.compile_source(SOURCE, ENTRY, DEFINES, "sm_1")


def test_a_refused_source_says_what_nvrtc_said(architecture: str) -> None:
    with pytest.raises(compiler.CompileError, match='identifier "nonsense" is undefined'):
        compiler.compile_source(
            SOURCE, ENTRY, (("WIDTH", "4"), ("WEIGHT", "nonsense")), architecture
        )


def test_a_kept_cubin_is_not_compiled_again(
    architecture: str, cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiler.cubin(SOURCE, DEFINES, architecture)

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiler, "_compile", refuse)
    assert compiler.cubin(SOURCE, DEFINES, architecture) == first


def test_a_damaged_cubin_is_compiled_again(architecture: str, cache_root: Path) -> None:
    first = compiler.cubin(SOURCE, DEFINES, architecture)
    (path,) = cache_root.rglob("*.cubin")
    path.write_bytes(path.read_bytes().replace(b"ELF", b"EVE"))
    assert compiler.cubin(SOURCE, DEFINES, architecture) == first


def test_a_cubin_that_others_may_write_is_not_used(architecture: str, cache_root: Path) -> None:
    compiler.cubin(SOURCE, DEFINES, architecture)
    (path,) = cache_root.rglob("*.cubin")
    path.chmod(0o666)
    before = path.stat().st_mtime_ns
    compiler.cubin(SOURCE, DEFINES, architecture)
    assert path.stat().st_mtime_ns != before
    assert path.stat().st_mode & 0o022 == 0


def test_a_cache_that_cannot_be_written_is_no_error(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a directory")
    monkeypatch.setenv("JETSON_MAMBA_CACHE", str(occupied))
    assert compiler.cubin(SOURCE, DEFINES, architecture).startswith(b"\x7fELF")


def test_everything_that_decides_a_cubin_is_in_its_name(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {compiler.cache_name(SOURCE, DEFINES, architecture)}
    names.add(compiler.cache_name(SOURCE, (("WIDTH", "3"), ("WEIGHT", "float")), architecture))
    names.add(compiler.cache_name(SOURCE, DEFINES, "sm_90"))
    names.add(compiler.cache_name("causal_conv1d_update.cu", DEFINES, architecture))
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "nvrtc_version", lambda: "12.2")
        names.add(compiler.cache_name(SOURCE, DEFINES, architecture))
    read = pkgutil.get_data

    def with_changed_header(package: str, name: str) -> bytes:
        text = read(package, name)
        assert text is not None
        return text + b"// changed" if name == "numbers.cuh" else text

    monkeypatch.setattr(pkgutil, "get_data", with_changed_header)
    names.add(compiler.cache_name(SOURCE, DEFINES, architecture))
    assert len(names) == 6


def test_threads_that_ask_at_once_launch_by_the_same_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that is imported by another thread at the time is seen in half."""
    importing, others_ask = threading.Lock(), threading.Event()

    def require() -> None:
        if not importing.acquire(blocking=False):
            raise Unavailable("half of it")
        others_ask.wait(1)

    monkeypatch.setattr(compiler, "_found", {})
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(through_packages, "require", require)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(compiler._driver())) for _ in range(3)]
    for thread in threads:
        thread.start()
    others_ask.set()
    for thread in threads:
        thread.join()
    assert found == [through_packages] * 3
