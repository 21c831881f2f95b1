"""A finding says what mends it, for each cause that it may have."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jetson_mamba import advice
from jetson_mamba.releases import get_torch, instead
from jetson_mamba.report import installed
from jetson_mamba.report.facts import Facts, Unserved
from jetson_mamba.report.findings import commands
from jetson_mamba.report.findings.with_triton import PTXAS
from jetson_mamba.report.hook import NOT_WHOLE
from jetson_mamba.report.status import Backend, PassedOver, Selected
from jetson_mamba.report.torch_build import lacks_kernels_for
from tests.doctor.facts import (
    FAILS,
    MAMBA,
    NO_CUDA,
    NOT_THERE,
    ORIN,
    THOR,
    TORCH,
    advised,
    changed,
    served,
    symptoms,
    the,
)


@pytest.mark.parametrize(
    ("hook", "command", "cured"),
    [
        ({"active": False}, "jetson-mamba enable", False),
        ({"active": False, "mode": "off"}, "unset JETSON_MAMBA", False),
        ({"active": True}, commands.uninstall("causal-conv1d"), True),
        ({"active": True, "refused": {"a": "b"}}, commands.uninstall("causal-conv1d"), False),
        ({"active": True, "too_late": ("a",)}, commands.uninstall("causal-conv1d"), False),
    ],
)
def test_what_the_hook_gets_around_is_mended_by_it_and_else_by_removing_the_cause(
    hook: dict[str, Any], command: str, cured: bool, healthy: Facts
) -> None:
    found = the("undefined-symbol", changed(healthy, convolution=FAILS, hook__=hook))
    assert (advised(found), found.cured) == (command, cured)
    # And what it does not get around keeps its command.
    broken = the("torch-broken", changed(healthy, torch__={"error": "x"}, hook__=hook))
    assert (broken.command, broken.cured) == (get_torch.command("6.2", again=True), False)


@pytest.mark.parametrize(
    ("architectures", "capability", "lacks"),
    [
        ((), "8.7", False),
        (("sm_87",), "8.7", False),
        (("sm_80",), "8.7", False),
        (("sm_89",), "8.7", True),
        (("sm_72",), "8.7", True),
        (("compute_72",), "8.7", False),
        (("compute_90",), "8.7", True),
        (("sm_90", "sm_110a"), "11.0", False),
        (("sm_100f",), "11.0", True),
        (("sm_72", "gfx90a"), "8.7", False),
    ],
)
def test_machine_code_serves_its_major_version_and_ptx_all_later(
    architectures: tuple[str, ...], capability: str, lacks: bool
) -> None:
    assert lacks_kernels_for(replace(TORCH, architectures=architectures), capability) == lacks


def test_a_gpu_without_kernels_of_torch_is_told_once(healthy: Facts) -> None:
    others = (replace(ORIN, capability=None), ORIN, replace(ORIN, name="another"))
    facts = changed(
        healthy, machine__={"gpus": others}, torch__={"architectures": ("sm_72", "sm_90")}
    )
    found = the("no-kernel-image", facts)
    assert "for the Orin, of compute capability 8.7" in found.what
    assert found.why == "it was built for sm_72, sm_90"
    assert advised(found) == get_torch.command("6.2", again=True)


def test_two_mamba_ssm_lose_the_one_that_is_not_wanted(
    healthy: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "distributions", lambda *_: [])
    fork = replace(MAMBA, path="/fork/mamba_ssm", version=None, fork_parameters=("bimamba_type",))
    other = replace(MAMBA, path="/other/mamba_ssm", version="1.0.1")
    for both, what, gone in (
        ((MAMBA, fork), "/site/mamba_ssm (2.3.2.post1) hides /fork/mamba_ssm (a fork, with", MAMBA),
        ((fork, MAMBA), "(a fork, with bimamba_type) hides /site/mamba_ssm (2.3.2.post1)", MAMBA),
        ((MAMBA, other), "hides /other/mamba_ssm (1.0.1)", other),
        ((MAMBA, other, fork), "hides /fork/mamba_ssm", MAMBA),
        ((MAMBA, replace(other, version=None)), "hides /other/mamba_ssm (no version)", other),
    ):
        found = the("two-mamba-ssm", changed(healthy, mamba_ssm=both))
        assert what in found.what
        assert advised(found) == f"mv {gone.path} {gone.path}.aside"


def test_a_backend_that_is_named_and_serves_nothing_is_told(healthy: Facts) -> None:
    named = (Selected("ssd", "triton", "JETSON_MAMBA_BACKEND"),)
    unserved = (
        *(Unserved("ssd", "cuda:0", "first"), Unserved("ssd", "cpu", "last")),
        Unserved("selective_scan", "cpu", "another"),
    )
    found = the("backend-named", changed(healthy, selections=named, unserved=unserved))
    assert "every call of ssd fails: JETSON_MAMBA_BACKEND names the backend 'triton'" in found.what
    assert (found.why, advised(found)) == ("last", "unset JETSON_MAMBA_BACKEND")
    somewhere = (Backend("ssd", {"device": "cpu"}, "triton", ()),)
    for others in ({"unserved": unserved[2:]}, {"unserved": unserved, "backends": somewhere}):
        assert symptoms(changed(healthy, selections=named, **others)) == set()


@pytest.mark.parametrize(
    ("reason", "symptom", "upgrade"),
    [
        ("NVRTC is not installed", "no-nvrtc", []),
        ("RuntimeError: no such instruction", "kernels-broken", ["--upgrade"]),
    ],
)
def test_kernels_that_do_not_run_name_what_compiles_for_this_cuda(
    reason: str, symptom: str, upgrade: list[str], healthy: Facts
) -> None:
    row = Backend("ssd", {"device": "cuda:0"}, "pytorch", (PassedOver("cuda", reason),))
    named = Selected("ssd", "cuda", "JETSON_MAMBA_BACKEND")
    unserved = (Unserved("ssd", "cuda:0", reason),)
    ways: list[dict[str, Any]] = [
        {"backends": (row,)},
        {"selections": (named,), "unserved": unserved},
    ]
    for way in ways:
        for cuda in ("12.6", "13.0"):
            facts = changed(healthy, **way, torch__={"cuda": cuda})
            assert symptoms(facts) - {"backend-named"} == {symptom}
            found = the(symptom, facts)
            assert reason in found.what
            assert advised(found) == advice.extra(f"cuda{cuda[:2]}", *upgrade)
    for other in (
        {"selections": (replace(named, backend="triton"),), "unserved": unserved},
        {"selections": (named,), "unserved": (replace(unserved[0], device="cpu"),)},
        {"selections": (replace(named, op="selective_scan"),), "unserved": unserved},
    ):
        assert symptoms(changed(healthy, **other)) - {"backend-named"} == set()


def test_a_block_that_gives_no_answer_is_asked_again_and_nothing_is_installed(
    healthy: Facts,
) -> None:
    """As on a machine that others keep busy: nothing is known to be wrong."""
    found = the("block-fails", changed(healthy, trial_error="no answer within 300 s"))
    assert "no answer within 300 s" in found.what and "idle" in found.why
    assert advised(found) == ""


@pytest.mark.parametrize(
    ("error", "why", "helps"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 MiB", "the memory", ""),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", "the memory", ""),
        ("ModuleNotFoundError: No module named 'jetson_mamba.ops.ssd'", "files", "again"),
        ("ImportError: cannot import name 'OP' from 'jetson_mamba.ops.ssd' (x)", "files", "again"),
        ("the process ended with signal SIGSEGV", "backend", "export JETSON_MAMBA_BACKEND=pytorch"),
        ("no answer in time", "busy", ""),
        ("AcceleratorError: CUDA error: no kernel image is available", "this GPU", "torch"),
        ("RuntimeError: The NVIDIA driver on your system is too old", "this GPU", "torch"),
        ("RuntimeError: out of order", "report", ""),
    ],
)
def test_ops_that_fail_name_what_helps_and_reinstall_this_package_for_its_own_files_alone(
    error: str, why: str, helps: str, healthy: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "again", lambda: "pip install it again")
    found = the("backends-broken", changed(healthy, backends_error=error))
    assert error in found.what and why in found.why
    known = {"again": "pip install it again", "torch": commands.torch(healthy)}
    assert advised(found) == known.get(helps, helps)


@pytest.mark.parametrize(
    ("version", "cuda", "jetpack", "brings"),
    [
        ((3, 8, 10), "11.4", "5.1.2", advice.apt("cuda-nvrtc-11-4")),
        ((3, 10, 0), "11.8", None, "-m pip install nvidia-cuda-nvrtc-cu11"),
        ((3, 9, 18), "12.6", None, "-m pip install nvidia-cuda-nvrtc-cu12"),
        ((3, 8, 10), "12.2", "5.1.2", "-m pip install nvidia-cuda-nvrtc-cu12"),
        ((3, 9, 18), "13.0", None, ""),
    ],
)
def test_where_cuda_core_does_not_serve_nvrtc_alone_is_brought(
    version: tuple[int, ...],
    cuda: str,
    jetpack: str | None,
    brings: str,
    healthy: Facts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    facts = changed(healthy, torch__={"cuda": cuda}, machine__={"jetpack": jetpack})
    command = commands.compiler(facts)
    assert command.endswith(brings) and bool(command) == bool(brings)


def test_a_triton_that_does_not_know_thor_takes_the_ptxas_of_cuda(
    healthy: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    thor = {"gpus": (THOR,), "ptxas": "/usr/local cuda/ptxas"}
    facts = changed(served(healthy), machine__=thor, torch__={"architectures": ("sm_110",)})
    found = the("triton-launch", facts)
    assert advised(found) == f"export {PTXAS}='/usr/local cuda/ptxas'" and "sm_110a" in found.why
    assert advised(the("triton-launch", changed(facts, machine__={"ptxas": None}))) == ""
    failed = changed(facts, triton_launch_error="RuntimeError: x", machine__={"gpus": (ORIN,)})
    assert advised(the("triton-launch", failed)) == ""
    assert "PyTorch, which is slower" in the("triton-launch", failed).why
    failed = changed(failed, triton_launch_error="RuntimeError: ptxas fatal")
    assert advised(the("triton-launch", failed)) == advised(found)
    monkeypatch.setenv(PTXAS, "/elsewhere/ptxas")
    assert symptoms(facts) == set()


def test_without_triton_the_installer_brings_it_where_there_is_a_gpu(healthy: Facts) -> None:
    facts = changed(served(healthy), triton__={"path": None, "version": None})
    assert advised(the("no-triton", facts)) == "jetson-mamba install"
    assert "triton, which is not installed" in the("no-triton", facts).what
    for other in ({"torch": None}, {"torch__": NO_CUDA}):
        assert advised(the("no-triton", changed(facts, **other))) == ""
    facts = changed(served(healthy), triton_error="ImportError: libtriton")
    assert advised(the("no-triton", facts)) == commands.uninstall("triton")
    assert "fails: ImportError: libtriton" in the("no-triton", facts).what


def test_a_triton_that_is_too_old_names_a_release_for_it(healthy: Facts) -> None:
    found = the("triton-old", changed(served(healthy), triton__={"version": "3.3.1"}))
    release = instead.known_release("3.3.1")
    assert advised(found) == f"jetson-mamba install mamba-ssm=={release}"
    assert "needs 3.4 or later" in found.why and "Triton 3.3.1 is too old" in found.what


def test_transformers_is_read_for_the_names_and_the_torch_that_it_has(healthy: Facts) -> None:
    folder = Path(str(healthy.transformers.path))
    (folder / "generation").mkdir(parents=True)
    (folder / "utils").mkdir()
    names, text = folder / "generation" / "__init__.py", folder / "utils" / "import_utils.py"
    names.write_text("First = Second = object\n")
    asks = {"generation_names": ("First", "Gone", "Second", "Away")}
    found = the("transformers-names", changed(served(healthy), asks=asks))
    assert found.what == "transformers 4.57.6 has no Gone, Away"
    assert advised(found) == "jetson-mamba install 'mamba-ssm>=2.3.0'"
    assert symptoms(changed(healthy, asks={"generation_names": ("First",)})) == set()
    for wanted, expected in (("2.9", True), ("2.8", False), ("2.8.1", True), ("1.13", False)):
        text.write_text(f"'PyTorch >= {wanted} is required but found'\n")
        assert ("transformers-torch" in symptoms(healthy)) == expected
    text.write_text("'PyTorch >= 2.9 is required but found'\n")
    found = the("transformers-torch", healthy)
    assert "switches torch 2.8.0 off" in found.what and "takes torch 2.9 or later" in found.why
    assert symptoms(changed(healthy, torch=None)) == {"no-torch"}


def test_a_copy_that_is_refused_names_a_release_or_the_files_that_are_missing(
    healthy: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = changed(healthy, hook__={"refused": {"mamba_ssm.x": "its text is not known"}})
    for release, command in (
        ("2.3.1", "jetson-mamba install mamba-ssm==2.3.1"),
        (None, "export JETSON_MAMBA=off"),
    ):
        monkeypatch.setattr(instead, "replacement", lambda path, release=release: release)
        assert advised(the("copy-refused", facts)) == command
    facts = changed(healthy, hook__={"refused": {"mamba_ssm.x": f"{NOT_WHOLE}: edits.py"}})
    for again in ("git checkout", None):
        monkeypatch.setattr(advice, "again", lambda again=again: again)
        found = the("copy-refused", facts)
        assert found.why == "files of this package are missing"
        assert advised(found) == (again or "export JETSON_MAMBA=off")


def test_a_block_that_fails_under_a_hook_that_is_off_is_told_to_switch_it_on(
    healthy: Facts,
) -> None:
    facts = changed(healthy, trial_error="RuntimeError: x")
    assert advised(the("block-fails", facts)) == "jetson-mamba install"
    assert "2.3.2.post1 does not work here: RuntimeError: x" in the("block-fails", facts).what
    off = changed(facts, hook__={"mode": "off"})
    assert advised(the("block-fails", off)) == "unset JETSON_MAMBA"


def test_torch_for_a_board_is_the_boards(healthy: Facts) -> None:
    none = the("no-torch", changed(healthy, torch=None))
    assert none.command == get_torch.command("6.2")
    assert none.why == "mamba_ssm runs on it, and PyPI's is not the one for the Jetson AGX Orin"
    elsewhere = changed(healthy, torch=None, machine__={"jetpack": None})
    assert the("no-torch", elsewhere).why == "mamba_ssm runs on it"
    assert advised(the("no-torch", elsewhere)) == get_torch.command(None)
    for cuda, words in (("13.0", "is built for CUDA 13.0"), (None, "is built without CUDA")):
        facts = changed(healthy, torch__={"cuda": cuda, "cuda_available": False})
        found = the("cpu-torch", facts)
        assert f"torch 2.8.0 {words}, and sees no GPU on the Jetson AGX Orin" in found.what
        reason = "torch 2.8.0 sees no GPU" if cuda else "this torch was built without CUDA"
        assert the("no-gpu", facts).why == reason
        assert advised(the("no-gpu", served(facts))).endswith("mamba-ssm==2.3.2.post1")
        convolution = changed(served(facts), scan=NOT_THERE)
        assert advised(the("no-gpu", convolution)) == commands.uninstall("causal-conv1d")
    neither = changed(facts, scan={"loads": False}, convolution={"loads": False})
    assert "no-gpu" not in symptoms(neither)
    nameless = changed(facts, machine__={"board": None})
    assert "no GPU on the board" in the("cpu-torch", nameless).what


def test_one_of_two_mamba_ssm_that_pip_knows_is_uninstalled(
    healthy: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Known:
        folder = str(tmp_path.resolve())

    known, other = (replace(MAMBA, path=str(each / "mamba_ssm")) for each in (tmp_path, Path("/x")))
    monkeypatch.setattr(installed, "distributions", lambda *_: [Known])
    assert commands.remove(known, healthy) == commands.uninstall("mamba-ssm")
    assert commands.remove(other, healthy) == "mv /x/mamba_ssm /x/mamba_ssm.aside"


@pytest.mark.parametrize(
    ("cuda", "extra"), [("12", "cuda12"), ("12.6", "cuda12"), ("13.0.1", "cuda13"), (None, None)]
)
def test_the_compiler_is_that_of_the_major_version_of_cuda(
    cuda: str | None, extra: str | None, healthy: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    facts = changed(healthy, torch__={"cuda": cuda})
    assert commands.compiler(facts) == (advice.extra(extra) if extra else "")
    assert commands.compiler(changed(facts, torch=None)) == ""


@pytest.mark.parametrize(
    ("torch", "bound"), [("2.5.0", "'transformers<5'"), ("2.8.0", "transformers")]
)
def test_a_transformers_that_is_missing_is_one_for_this_torch(
    torch: str, bound: str, healthy: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "find", lambda *_: None)
    needed = {"required": {"transformers.generation": "a.py", "einops": "b.py"}}
    facts = changed(healthy, asks=needed, torch__={"version": torch})
    assert advised(the("no-dependency", facts)) == "jetson-mamba install"
    # Of a mamba_ssm that pip knows nothing of, an installer would put another beside it.
    unknown = replace(facts, mamba_ssm=(replace(facts.mamba_ssm[0], distribution=None),))
    assert advised(the("no-dependency", unknown)) == commands.install(f"einops {bound}")
