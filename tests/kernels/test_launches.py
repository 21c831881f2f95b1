"""What is launched for a call is what was measured to be quick."""

from __future__ import annotations

import pytest
import torch

from jetson_mamba.ops.selective_scan import contract as scan_contract
from jetson_mamba.ops.selective_scan import cuda as scan
from jetson_mamba.ops.ssd import cuda, cuda_backward
from tests.gpu.ssd_cases import drawn
from tests.kernels import launched
from tests.kernels.calls import KINDS, ON_A_GPU


def test_what_is_launched_is_what_is_held() -> None:
    """``python -m tests.kernels.launched`` writes anew what it is held to, where that is meant."""
    held = launched.held()
    assert list(held) == list(KINDS)
    for kind, lines in held.items():
        assert launched.launched(kind) == lines, kind


def test_every_kind_of_kernel_is_among_them() -> None:
    text = launched.HELD.read_text("utf-8")
    for kernel in (
        *("causal_conv1d_forward_channels", "causal_conv1d_backward_time", "norm_backward"),
        *("selective_scan_forward_carry", "selective_scan_sums", "ssd_pass", "ssd_forward"),
        *("ssd_forward_warpgroups", "ssd_backward_states_warpgroups", "ssd_backward_warpgroups"),
        *("state_update", "projection", "mamba_step", "swiglu_backward", "causal_conv1d_update"),
    ):
        assert f"  {kernel} (" in text or f":{kernel} (" in text, kernel


@pytest.mark.parametrize("gpu", launched.GPUS, ids=[each.name for each in launched.GPUS])
def test_gradients_are_compiled_when_a_pass_is_first_recorded(
    gpu: launched.Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = launched.imitate(monkeypatch, gpu)
    monkeypatch.setattr(cuda, "_begun", set())
    for number, given in enumerate((drawn(), drawn(D="channels"), drawn(packed=True)), 1):
        for _ in range(2):
            recorder.begin("a pass", given._asdict())
            with torch.no_grad(), launched.Making(recorder):
                results, kept = cuda._passes_forward(given)
            assert len(results) == 3 and kept == ()
            if len(cuda._begun) == number and recorder.loaded:
                *_, ahead = recorder.ahead
        # The second is as the first, and begins nothing.
        assert recorder.ahead == [] and len(cuda._begun) == number
        recorder.begin("its gradients", given._asdict())
        with torch.no_grad(), launched.Making(recorder):
            cuda_backward.backward(given, torch.empty(given.x.shape, dtype=given.x.dtype), None)
        assert recorder.loaded == ahead != []


@pytest.mark.parametrize("dstate", [1, 4, 16, 17, 64, 65, 256])
@pytest.mark.parametrize("is_complex", [False, True])
def test_the_rows_that_a_scan_keeps_are_told(
    dstate: int, is_complex: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever traces a graph makes room for them, without a GPU."""
    recorder = launched.imitate(monkeypatch, launched.GPUS[0])
    number = torch.complex64 if is_complex else torch.float32
    A, D = torch.empty(4, dstate, dtype=number), torch.empty(4)
    for seqlen in (1, 15, 16, 17, 127, 128, 129, 255, 256, 257, 600):
        u = torch.empty(1, 4, seqlen)
        B = torch.empty(1, 1, dstate, seqlen * (2 if is_complex else 1))
        given = scan_contract.Scan(u, u, A, B, B, D, None, None, False)
        recorder.begin("a scan", given._asdict())
        loaded = scan.load(scan_contract.Case(ON_A_GPU, u.dtype, is_complex, dstate))
        with launched.Making(recorder):
            x = loaded.forward(given).x
        assert x.shape == (1, 4, loaded.rows(seqlen), 2 * dstate)
