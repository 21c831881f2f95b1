"""What is launched for a call is what was measured to be quick, and what was seen to be right."""

from __future__ import annotations

import pytest

from tests.kernels import launched
from tests.kernels.calls import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_launched_is_what_is_held(kind: str) -> None:
    """``python -m tests.kernels.launched`` writes anew what it is held to, where that is meant."""
    assert launched.launched(kind) == launched.held()[kind]


def test_every_kind_of_kernel_is_among_them() -> None:
    text = launched.HELD.read_text("utf-8")
    for kernel in (
        *("causal_conv1d_forward_channels", "causal_conv1d_backward_time", "norm_backward"),
        *("selective_scan_forward_carry", "selective_scan_sums", "ssd_pass", "ssd_forward"),
        *("ssd_forward_warpgroups", "ssd_backward_states_warpgroups", "ssd_backward_warpgroups"),
        *("state_update", "projection", "mamba_step", "swiglu_backward", "causal_conv1d_update"),
    ):
        assert f"  {kernel} (" in text or f":{kernel} (" in text, kernel
