"""The facts of a machine give each finding that is theirs, nothing else.

What decides it is changed one thing at a time. How the facts are found out on a machine is tested
where machines are laid down (``test_symptoms*.py``); here they are given.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings import findings
from jetson_mamba.report.status import Backend, PassedOver
from tests.doctor.facts import (
    BARE,
    CUDA,
    FAILS,
    FOR_THOR,
    LIBRARY,
    LOG1P,
    NEITHER,
    NO_BOARD,
    NO_CUDA,
    NOT_THERE,
    ON_THOR,
    TAKES_8,
    changed,
    symptoms,
)


def passing(*numbers: int) -> dict[str, Any]:
    """What asks for the convolution with so many arguments."""
    return {"calls": {"causal_conv1d_fwd": numbers}}


def kernels(reason: str) -> tuple[Backend, ...]:
    """An op on a GPU that the project's kernels do not serve, for a reason."""
    return (replace(CUDA[0], passed_over=(PassedOver("cuda", reason),)),)


# What is changed, and the symptoms that are found then.
CHANGES: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    # torch, by whether it is there, works and sees the GPU of a board
    ({"torch": None}, "no-torch"),
    ({"torch__": {"error": "ImportError: libcudnn"}}, "torch-broken"),
    ({"torch__": {"cuda_available": False}}, "cpu-torch no-gpu"),
    ({"torch__": NO_CUDA}, "cpu-torch no-gpu"),
    ({"torch__": NO_CUDA, "machine__": NO_BOARD}, "no-gpu"),
    ({"torch__": {**NO_CUDA, "error": "ImportError"}}, "torch-broken"),
    ({"torch__": NO_CUDA, "machine__": NO_BOARD, "mamba_ssm": ()}, "no-mamba-ssm"),
    ({"torch__": {"architectures": ("sm_80", "sm_90")}}, ""),
    ({"torch__": {"architectures": ("sm_72", "sm_90")}}, "no-kernel-image"),
    ({"torch__": {"architectures": ("sm_90",), "cuda": None}}, ""),
    ({"torch__": {"architectures": ("sm_90",)}, "machine__": {"gpus": ()}}, ""),
    # mamba_ssm
    ({"mamba_ssm": ()}, "no-mamba-ssm"),
    ({"mamba_ssm": (), "machine__": {"nvcc": None}}, "no-mamba-ssm no-nvcc"),
    ({"mamba_ssm": (), "machine__": NEITHER}, "no-mamba-ssm no-nvcc"),
    ({"mamba_ssm": (), "machine__": NEITHER, "torch__": {"cuda": None}}, "no-mamba-ssm"),
    ({"mamba_ssm": (), "torch__": {"error": "x"}}, "torch-broken"),
    ({"machine__": {"nvcc": None}}, ""),
    ({"asks": {"missing": ("mamba_ssm.ops.triton.k_activations",)}}, "incomplete-release"),
    ({"asks": {"required": {"src.models": "mamba_ssm/a.py"}}}, "incomplete-release"),
    ({"asks": {"required": {"srcs.models": "mamba_ssm/a.py"}}}, ""),
    ({"asks": {"required": {"einops.layers": "mamba_ssm/a.py"}}}, "no-dependency"),
    # its extension
    ({"scan": NOT_THERE}, "no-selective-scan"),
    ({"scan": NOT_THERE, "asks": {"mentioned": frozenset()}}, ""),
    ({"scan": FAILS}, "undefined-symbol"),
    ({"scan": LIBRARY}, "missing-library"),
    ({"scan": {**LIBRARY, "misfits": ("x.so: built for x86_64",)}}, "other-platform"),
    ({"scan": {"loads": False, "error": "the process ended"}}, "extension-broken"),
    ({"scan": {"misfits": ("x.so: built for another Python",)}}, ""),
    # causal-conv1d
    ({"convolution": NOT_THERE}, "none-called no-causal-conv1d"),
    ({"convolution": FAILS}, "none-called undefined-symbol"),
    ({"convolution": FAILS, "asks": {"mentioned": frozenset()}}, "undefined-symbol"),
    ({"asks": passing(7)}, ""),
    ({"asks": passing(7), "convolution": TAKES_8}, "call-form"),
    ({"asks": passing(8), "convolution": TAKES_8}, ""),
    ({"asks": passing(7, 8), "convolution": TAKES_8}, "call-form"),
    ({"asks": BARE}, "strides"),
    ({"asks": BARE, "torch__": NO_CUDA, "machine__": NO_BOARD}, "no-gpu"),
    ({"asks": {**BARE, "mentioned": frozenset()}, "convolution": {"loads": False}}, ""),
    # Triton
    ({"triton__": {"path": None, "version": None}}, "no-triton"),
    ({"triton__": {"path": None, "version": None}, "asks": {"required": {}}}, ""),
    ({"triton_error": "ImportError: libtriton"}, "no-triton"),
    ({"triton__": {"version": "3.3.1"}}, "triton-old"),
    ({"triton__": {"version": "3.4.0"}}, ""),
    ({"triton__": {"version": None}}, ""),
    ({"triton__": {"version": "3.3.1"}, "asks": LOG1P}, "triton-log1p"),
    ({"triton__": {"version": "2.3.1"}, "asks": LOG1P}, ""),
    ({"asks": LOG1P, "torch__": NO_CUDA, "machine__": NO_BOARD}, "no-gpu"),
    ({"triton_launch_error": "RuntimeError: no C compiler"}, "triton-launch"),
    ({"machine__": ON_THOR, "torch__": FOR_THOR}, "triton-launch"),
    ({"machine__": ON_THOR, "torch__": FOR_THOR, "triton__": {"version": "3.7.0"}}, ""),
    # the ops
    ({"backends_error": "RuntimeError: out of order"}, "backends-broken"),
    ({"backends": CUDA}, "kernels-broken"),
    ({"backends": (replace(CUDA[0], case={"device": "cpu"}),)}, ""),
    ({"backends": (replace(CUDA[0], passed_over=(PassedOver("triton", "it is slow"),)),)}, ""),
    ({"backends": CUDA, "torch__": {"cuda": "11.4"}}, "kernels-broken"),
    ({"backends": kernels("NVRTC 12.2 does not compile for sm_110")}, "kernels-broken"),
    ({"backends": kernels("NVRTC is not installed (x)")}, "no-nvrtc"),
    ({"backends": kernels("made for GPUs of compute capability 8.0 or more")}, ""),
    ({"backends": kernels("the kernels are for widths 2 to 4, not 5")}, ""),
    ({"selection_ignored": "JETSON_MAMBA_BACKEND=x: expected one of …"}, "backend-named"),
    # what nothing else explains
    ({"trial_error": "RuntimeError: out of order"}, "block-fails"),
    ({"trial_error": "x", "torch__": {"error": "y"}}, "torch-broken"),
    ({"trial_error": "x", "mamba_ssm": ()}, "no-mamba-ssm"),
    ({"hook__": {"taken_by": "other.Finder"}}, "bypassed"),
    ({"hook__": {"too_late": ("mamba_ssm.ops.selective_scan_interface",)}}, "bypassed"),
    ({"hook__": {"refused": {"mamba_ssm.x": "its text is not known"}}}, "copy-refused"),
]


@pytest.mark.parametrize(("changes", "expected"), CHANGES)
def test_what_is_found_is_what_is_wrong_and_nothing_else(
    changes: dict[str, Any], expected: str, healthy: Facts
) -> None:
    facts = changed(healthy, **changes)
    assert symptoms(facts) == set(expected.split())
    assert all(each.what and each.why for each in findings(facts))
