"""The kernels of ssd agree on a CPU with float64.

All that surrounds them runs with them. They are the sources that a GPU runs but for a few
instructions (``tests/kernels/emulation``): what is found here is an index, a barrier or a plan that
is wrong, not what a GPU alone can get wrong.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.ops.ssd import cuda, cuda_backward, cuda_forward, pytorch, trial
from jetson_mamba.ops.ssd.contract import Case, Mixer
from tests.gpu.ssd_cases import BRAIN, FLOAT, backward_errors, drawn, forward_errors
from tests.kernels.emulated import emulate
from tests.references.ssd import ssd_mixer
from tests.references.tolerance import relative_norm

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")

# Of few states and channels, so that the kernels are small.
SMALL: dict[str, Any] = {
    **{"batch": 2, "seqlen": 150, "heads": 4, "groups": 2, "headdim": 24, "dstate": 16},
    **{"D": "channels", "first": True, "packed": True},
}
TOLERANCE = {FLOAT: 1e-5, BRAIN: 6e-3}


@pytest.fixture(autouse=True)
def on_the_cpu(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch, libraries)
    for module in (cuda_forward, cuda_backward):
        monkeypatch.setattr(module, "_plans", Memo(8))
        monkeypatch.setattr(module, "processors", lambda index: 1)


def segments_at_most(chunks: int, *others: object) -> tuple[int, int]:
    """Eight at most, so that some are of several chunks."""
    length = -(-chunks // 8)
    return length, -(-chunks // length)


def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut time into segments and share heads out, as where they are too few for a GPU."""
    monkeypatch.setattr(cuda_forward, "segments_of", segments_at_most)
    monkeypatch.setattr(cuda_forward, "walks_along_time", lambda *sizes: False)
    monkeypatch.setattr(cuda_backward, "walks_along_time", lambda *sizes: False)
    monkeypatch.setattr(cuda_backward, "slots_of", lambda heads, blocks, index: 2)


@pytest.mark.parametrize("is_cut", (False, True))
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_scan_and_its_gradients_agree_with_float64(
    dtype: torch.dtype, is_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_cut:
        cut(monkeypatch)
    scan = drawn(**SMALL, dtype=dtype)
    errors = {**forward_errors(scan), **backward_errors(scan)}
    assert all(error < TOLERANCE[dtype] for error, _ in errors.values()), errors


# Of the sizes that products of warpgroups are of: five heads, of which a block takes two; backward
# pass goes through more than it keeps at once.
WHOLE: dict[str, Any] = {
    **{"batch": 1, "seqlen": 80, "heads": 5, "headdim": 64, "dstate": 64},
    **{"D": "channels", "z": True, "first": True, "packed": True},
}


@pytest.mark.parametrize("is_cut", (False, True))
def test_products_of_warpgroups_agree_with_float64(
    is_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_forward, "has_warpgroups", lambda index: True)
    monkeypatch.setattr(cuda_forward, "full_blocks", lambda heads, units, index: 1)
    monkeypatch.setattr(cuda_forward, "room", lambda index: 227 * 1024)
    if is_cut:
        cut(monkeypatch)
    scan = drawn(**WHOLE, dtype=BRAIN)
    forward = forward_errors(scan)
    error, rounding = forward["out"]
    assert error < rounding + 5e-4 and forward["state"][0] < 1e-5
    # A's and dt_bias's are sums of many signs.
    most = {"dA": 5e-2, "ddt_bias": 5e-2, "dinitial_states": 1e-5}
    for name, (error, _) in backward_errors(scan).items():
        assert error < most.get(name, TOLERANCE[BRAIN]), name


def test_chunks_of_a_head_use_their_places_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_forward, "has_warpgroups", lambda index: True)
    monkeypatch.setattr(cuda_forward, "room", lambda index: 227 * 1024)
    # More chunks than are in shared memory.
    errors = forward_errors(drawn(seqlen=400, heads=1, dstate=64, D="heads", dtype=BRAIN))
    assert errors["out"][0] < errors["out"][1] + 5e-4 and errors["state"][0] < 1e-5


def test_blocks_take_two_heads_where_all_are_done_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_forward, "processors", lambda index: 4)
    find = cuda_forward.full_blocks.__wrapped__
    # A multiprocessor to each head; two each; and six on four, of which two take one more.
    assert [find(heads, 1, 0) for heads in (1, 4, 8, 6)] == [0, 0, 4, 2]
    assert find(1, 100, 0) == 0


def test_few_heads_of_long_sequences_are_cut_into_segments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_forward, "processors", lambda index: 132)
    walks = cuda_forward.walks_along_time
    assert [walks(16, heads, 0) for heads in (1, 24, 192)] == [False, True, True]
    assert [walks(128, heads, 0) for heads in (1, 24, 80, 128)] == [False, False, True, True]


def test_fewer_heads_walk_along_time_by_products_of_warpgroups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_backward, "processors", lambda index: 132)
    walks = cuda_backward.walks_along_time.__wrapped__
    assert [walks(16, heads, 0, True) for heads in (8, 24, 80)] == [False, True, True]
    assert [walks(16, heads, 0, False) for heads in (8, 24, 80)] == [False, False, True]
    assert walks(1, 1, 0, True)


def test_the_trial_of_the_op_accepts_the_kernels_and_no_wrong_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(torch.device("cpu"), FLOAT, number=BRAIN, headdim=24, dstate=16)
    trial.trial(cuda.IMPLEMENTATION, case)
    right = cuda_forward.forward
    monkeypatch.setattr(cuda_forward, "forward", lambda scan: (right(scan)[0] * 2, None))
    with pytest.raises(RuntimeError, match="expected"):
        trial.trial(cuda.IMPLEMENTATION, case)


def mixer_of(ngroups: int = 2) -> tuple[Mixer, dict[str, Tensor]]:
    torch.manual_seed(0)
    heads, headdim, dstate, seqlen = 4, 16, 16, 70
    channels = heads * headdim + 2 * ngroups * dstate
    tensors = {
        "zxbcdt": torch.randn(2, seqlen, heads * headdim + channels + heads),
        "conv1d_weight": torch.randn(channels, 4),
        "conv1d_bias": torch.randn(channels),
        "dt_bias": torch.randn(heads),
        "A": -torch.rand(heads) - 0.1,
        "D": torch.randn(heads),
        "rmsnorm_weight": torch.rand(heads * headdim) + 0.5,
        "outproj_weight": torch.randn(8, heads * headdim),
    }
    given = Mixer(
        **tensors,  # type: ignore[arg-type]
        initial_states=None,
        outproj_bias=None,
        seq_idx=None,
        chunk_size=64,
        dt_limit=(0.0, float("inf")),
        activation="silu",
        rmsnorm_eps=1e-5,
        headdim=headdim,
        ngroups=ngroups,
        norm_before_gate=False,
    )
    return given, tensors


def test_a_mixer_and_its_gradients_agree_with_float64() -> None:
    given, tensors = mixer_of()
    leaves: dict[str, Any] = {name: each.clone().requires_grad_() for name, each in tensors.items()}
    exact: dict[str, Any] = {name: each.double().requires_grad_() for name, each in tensors.items()}
    out, state = cuda.mixer(given._replace(**leaves))
    expected, last = ssd_mixer(
        **exact, headdim=16, ngroups=2, rmsnorm_eps=1e-5, norm_before_gate=False
    )
    assert relative_norm(out, expected) < 1e-5
    assert relative_norm(state, last) < 1e-5
    weight = torch.randn(out.shape)
    found = torch.autograd.grad((out * weight).sum() + state.sum(), list(leaves.values()))
    wanted = torch.autograd.grad((expected * weight).sum() + last.sum(), list(exact.values()))
    errors = {name: relative_norm(*each) for name, *each in zip(leaves, found, wanted)}
    assert all(error < 1e-5 for error in errors.values()), errors
    with torch.no_grad():
        assert torch.equal(cuda.mixer_forward(given)[0], out)


def with_columns(given: Mixer) -> Mixer:
    """With an MLP beside the scan: its columns come first, and as many of the projection."""
    more, wide = torch.randn(2, 70, 12), given.zxbcdt
    weight = torch.randn(8, given.outproj_weight.shape[1] + 6)  # type: ignore[union-attr]
    return given._replace(zxbcdt=torch.cat([more, wide], -1), outproj_weight=weight)


MIXERS: dict[str, Callable[[Mixer], Mixer]] = {
    "whole": lambda given: given,
    "without a norm": lambda given: given._replace(rmsnorm_weight=None),
    "with states": lambda given: given._replace(initial_states=torch.randn(2, 4, 16, 16)),
    "with columns": with_columns,
    "without a projection": lambda given: given._replace(outproj_weight=None),
    "with sequences": lambda given: given._replace(
        seq_idx=(torch.arange(70) // 23).int().expand(2, -1).contiguous()
    ),
}


@pytest.mark.parametrize("kind", MIXERS)
def test_whatever_a_mixer_has_it_is_what_pytorch_computes(kind: str) -> None:
    given = MIXERS[kind](mixer_of()[0])
    names = [
        name
        for name, each in given._asdict().items()
        if isinstance(each, Tensor) and each.is_floating_point()
    ]
    results = []
    for implementation in (cuda.IMPLEMENTATION, pytorch.IMPLEMENTATION):
        leaves = {name: getattr(given, name).clone().requires_grad_() for name in names}
        out, state = implementation.mixer(given._replace(**leaves))
        loss = out.double().square().sum() + state.double().sin().sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        results.append([out, state, *gradients])
        with torch.no_grad():
            forward = implementation.mixer_forward(given)
        assert all(relative_norm(*each) < 1e-5 for each in zip(forward, (out, state)))
    for name, one, other in zip(("out", "state", *names), *results):
        assert relative_norm(one, other) < 2e-5, name


@pytest.mark.parametrize("gated", [False, True])
def test_the_states_of_packed_sequences_are_given_too(gated: bool) -> None:
    scan = drawn(**{**SMALL, "batch": 1, "z": gated, "first": False}, dtype=FLOAT)
    ends = torch.tensor([0, 40, 100, 150], dtype=torch.int32)
    which = (torch.arange(150)[None] >= ends[1:-1, None]).sum(0, dtype=torch.int32)[None]
    given = scan._replace(cu_seqlens=ends, seq_idx=which)
    found, right = (each.scan(given) for each in (cuda.IMPLEMENTATION, pytorch.IMPLEMENTATION))
    for one, other in zip(found, right):
        assert one is not None and other is not None and relative_norm(one, other) < 1e-5


def test_a_core_and_its_gradients_are_what_pytorch_computes() -> None:
    given = mixer_of()[0]
    dout, dstate = torch.randn(2, 70, 64), torch.randn(2, 4, 16, 16)
    kept = [each.core_forward(given) for each in (cuda.IMPLEMENTATION, pytorch.IMPLEMENTATION)]
    for name, one, other in zip(kept[0]._fields, *kept):
        assert relative_norm(one, other) < 1e-5, name
    for last in (None, dstate):
        gradients = [
            each.core_backward(given, kept[0], dout, last)
            for each in (cuda.IMPLEMENTATION, pytorch.IMPLEMENTATION)
        ]
        for name, one, other in zip(gradients[0]._fields, *gradients):
            assert one is not None and other is not None
            assert relative_norm(one, other) < 2e-5, name
