"""A finding of an extension says what mends it, which may be to take its file away."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jetson_mamba.releases import get_torch
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings import commands, findings
from jetson_mamba.report.packages import Package
from jetson_mamba.report.status import Backend, PassedOver
from tests.doctor.facts import (
    CONVOLUTION,
    FAILS,
    LIBRARY,
    MAMBA,
    NOT_THERE,
    SCAN,
    TORCH,
    advised,
    changed,
    served,
    symptoms,
    the,
)


@pytest.mark.parametrize(
    ("takes", "release"), [(4, "==1.0.1"), (5, "==1.1.4"), (7, "==2.2.4"), (8, ">=2.2.5"), (6, "")]
)
def test_a_call_of_another_form_names_the_release_that_makes_the_one_that_fits(
    takes: int, release: str, healthy: Facts
) -> None:
    parameters = {"causal_conv1d_fwd": takes, "causal_conv1d_bwd": 9}
    calls = {"causal_conv1d_fwd": (3, 2), "causal_conv1d_bwd": (1,)}
    facts = changed(served(healthy), asks={"calls": calls}, convolution={"parameters": parameters})
    found = the("call-form", facts)
    assert f"passes causal_conv1d_fwd 3 and 2 arguments, and it takes {takes}" in found.what
    assert shlex.split(advised(found)) == ["jetson-mamba", "install", f"mamba-ssm{release}"]


def test_functions_that_are_none_say_what_of_the_convolution_is_missing(healthy: Facts) -> None:
    facts = served(healthy)
    absent = Package("causal_conv1d", None, None, ())
    old = replace(facts.causal_conv1d, version="1.4.0", path="/nowhere")
    for changes, why in (
        ({"causal_conv1d": absent}, "causal_conv1d is not installed"),
        ({"convolution": NOT_THERE}, "causal_conv1d_cuda, is not installed"),
        ({"convolution": FAILS}, "undefined symbol"),
        ({"causal_conv1d": old}, "causal-conv1d 1.4.0 has no cpp_functions"),
    ):
        found = the("none-called", changed(facts, **changes))
        assert why in found.why
        assert found.cured and found.compiles
        tools, build = advised(found).split(" && ")
        assert tools == commands.install("setuptools", "wheel packaging ninja")
        options = "--no-build-isolation --no-deps --no-cache-dir --force-reinstall"
        assert build == (
            f"CAUSAL_CONV1D_FORCE_BUILD=TRUE {commands.install(options, 'causal-conv1d')}"
        )
        no_compiler = changed(facts, **changes, machine__={"nvcc": None})
        assert advised(the("none-called", no_compiler)) == ""
    only_the_package = {"mentioned": frozenset({"causal_conv1d"})}
    assert symptoms(changed(facts, causal_conv1d=old, asks=only_the_package)) == set()
    # Where it cannot be imported without, nothing is set to None.
    needed = {"required": {"causal_conv1d": "a.py"}, "mentioned": frozenset({"causal_conv1d"})}
    facts = changed(facts, causal_conv1d=absent, asks=needed, convolution=NOT_THERE)
    assert symptoms(facts) == {"no-causal-conv1d"}
    assert "imports causal_conv1d, which is not" in the("no-causal-conv1d", facts).what


def test_a_wheel_for_another_platform_is_told_by_its_tags_or_its_file(healthy: Facts) -> None:
    tags = ("cp310-cp310-linux_x86_64",)
    for changes, words, command in (
        (
            {"mamba_ssm": (replace(MAMBA, platforms=tags),), "scan": NOT_THERE},
            "selective_scan_cuda is for another platform: the wheel's tags are cp310-cp310-linux",
            "jetson-mamba install mamba-ssm==2.3.2.post1",
        ),
        (
            {
                "causal_conv1d": replace(healthy.causal_conv1d, platforms=tags),
                "convolution": NOT_THERE,
            },
            "causal_conv1d_cuda is for another platform: the wheel's tags are cp310-cp310-linux",
            commands.uninstall("causal-conv1d"),
        ),
        (
            {"scan": {**NOT_THERE, "misfits": ("a.so: built for another Python", "b.so: …")}},
            "another platform: a.so: built for another Python; b.so: …",
            "jetson-mamba install mamba-ssm==2.3.2.post1",
        ),
    ):
        facts = changed(served(healthy), **changes)
        found = the("other-platform", facts)
        assert words in found.what and advised(found) == command
        assert "not for Python 3.10.12 on aarch64" in found.why
    for fits in (("py3-none-any",), ("cp310-cp310-linux_aarch64",), (*tags, "py3-none-any")):
        facts = changed(healthy, mamba_ssm=(replace(MAMBA, platforms=fits),), scan=NOT_THERE)
        assert "other-platform" not in symptoms(facts)


def test_a_library_that_is_missing_belongs_to_torch_or_to_another_cuda(healthy: Facts) -> None:
    found = the("missing-library", changed(served(healthy), scan=LIBRARY))
    assert "this is torch 2.8.0, for CUDA 12.6" in found.why and found.cured
    found = the("missing-library", changed(served(healthy), scan=LIBRARY, torch__={"cuda": None}))
    assert "for CUDA none" in found.why
    for torch in (None, replace(TORCH, error="ImportError")):
        found = the("missing-library", changed(served(healthy), scan=LIBRARY, torch=torch))
        assert "belongs to torch, which cannot be imported" in found.why and not found.cured
        assert advised(found) == get_torch.command("6.2", again=torch is not None)


def test_an_extension_that_ends_its_process_is_not_gotten_around(healthy: Facts) -> None:
    for error, cured in (("the process ended with signal SIGSEGV", False), ("OSError: x", True)):
        facts = changed(served(healthy), scan={"loads": False, "error": error})
        found = the("extension-broken", facts)
        assert error in found.what and found.cured == cured and SCAN.path in found.why.split()


def test_an_extension_without_kernels_is_told_once_each(healthy: Facts) -> None:
    reason = "RuntimeError: no kernel image is available for execution on the device"
    rows = tuple(
        Backend(op, {"device": "cuda:0"}, "cuda", (PassedOver(name, reason),))
        for op, name in (
            *(("causal_conv1d", "package"), ("causal_conv1d", "package")),
            ("selective_scan", "extension"),
        )
    )
    facts = changed(served(healthy), backends=rows)
    found = [each for each in findings(facts) if each.symptom == "no-kernel-image"]
    assert [each.what.split()[0] for each in found] == ["causal_conv1d_cuda", "selective_scan_cuda"]
    assert all("for cuda:0" in each.what and each.cured for each in found)
    assert [advised(each) for each in found] == [
        commands.uninstall("causal-conv1d"),
        "jetson-mamba install mamba-ssm==2.3.2.post1",
    ]


@pytest.mark.parametrize("name", ["selective_scan_cuda", "causal_conv1d_cuda"])
def test_an_extension_that_pip_does_not_know_is_moved_away(name: str, healthy: Facts) -> None:
    """Its package is gone, or knows other files: whatever pip does, it would stay."""
    scan = name == "selective_scan_cuda"
    package, files = ("mamba-ssm", SCAN) if scan else ("causal-conv1d", CONVOLUTION)
    own = "jetson-mamba install mamba-ssm==2.3.2.post1" if scan else commands.uninstall(package)
    folder = Path(healthy.path[0])
    path = str(folder / f"{name}.so")
    moved = f"mv {path} {path}.aside"
    facts = changed(served(healthy), **{"scan" if scan else "convolution": {**FAILS, "path": path}})

    def told(facts: Facts) -> str:
        return advised(the("undefined-symbol", facts))

    assert told(facts) == own  # there is no record, and the package is there
    gone: dict[str, Any] = {"mamba_ssm": ()}
    unrecorded: dict[str, Any] = {"mamba_ssm": (replace(MAMBA, distribution=None),)}
    if not scan:
        gone = {"causal_conv1d": Package("causal_conv1d", None, None, ())}
        unrecorded = {"causal_conv1d": replace(healthy.causal_conv1d, version=None)}
    assert told(changed(facts, **gone)) == told(changed(facts, **unrecorded)) == moved
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    for listed, command in (("other.so", moved), (f"{name}.so", own)):
        (info / "RECORD").write_text(f"{listed},,\n{info.name}/METADATA,,\n")
        (folder / listed).touch()
        assert told(facts) == command
    assert files.name == name


@pytest.mark.parametrize(
    "error",
    [
        *("the process ended with signal SIGSEGV", "the process ended with signal 40"),
        *("the process ended with exit status 0", "no answer in time", "SystemExit: 0"),
        *("KeyboardInterrupt: no message", "GeneratorExit: x"),
    ],
)
def test_what_an_extension_takes_with_it_is_mended_by_taking_that_away(
    error: str, healthy: Facts
) -> None:
    """Neither installing mamba-ssm again nor waiting helps, as is said where nothing is known."""
    facts = changed(served(healthy), convolution={"loads": False, "error": error})
    facts = replace(facts, backends_error=error, trial_error=error)
    for symptom in ("extension-broken", "backends-broken", "block-fails"):
        found = the(symptom, facts)
        assert not found.cured
        assert found.command == commands.uninstall("causal-conv1d")
    assert "causal_conv1d_cuda ends or holds up" in the("block-fails", facts).why
    # An error is none of these, and is gotten around.
    facts = changed(facts, convolution={"error": f"ImportError: {error}"})
    assert the("extension-broken", facts).cured
    assert the("block-fails", facts).command != commands.uninstall("causal-conv1d")


def test_a_machine_that_gives_no_answer_is_not_told_to_change_anything(healthy: Facts) -> None:
    """A slow one: torch, the extension after it, the ops and a block, none of which is known of."""
    waited = "no answer within 300 s"
    facts = changed(served(healthy), torch__={"error": waited}, scan={**FAILS, "error": waited})
    facts = replace(facts, backends_error=waited, trial_error=waited)
    found = {each.symptom: each for each in findings(facts)}
    assert {"torch-broken", "extension-broken", "backends-broken"} <= set(found)
    for each in found.values():
        assert (each.command, each.option, each.cured) == ("", "", False), each
        assert "idle" in each.why


def test_a_convolution_without_its_extension_is_taken_away(healthy: Facts) -> None:
    found = the("no-causal-conv1d", changed(served(healthy), convolution=NOT_THERE))
    assert advised(found) == commands.uninstall("causal-conv1d")
    assert "causal_conv1d 1.6.1 imports causal_conv1d_cuda, which is not" in found.what
