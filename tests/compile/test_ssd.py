"""The operators that stand for Mamba-2's scan in a graph.

The op's functions are compiled too. ``torch.library.opcheck`` holds each operator to its schema,
its fake implementation and its gradient, in eager mode and traced, with static and symbolic sizes.
"""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops.ssd import op as ssd
from tests.ops.test_ssd import (
    MIXERS,
    NHEADS,
    Tensors,
    leaves,
    mixer_case,
    packed,
    scan_tensors,
)
from tests.references.tolerance import relative_norm

# What torch's own checks and compiler warn of is theirs.
pytestmark = [
    pytest.mark.skipif(
        not hasattr(torch.library, "opcheck"), reason="this torch has no operators of this form"
    ),
    pytest.mark.filterwarnings("ignore"),
]
SEQLEN = 70
OPTIONS = (64, True, 0.0, float("inf"), torch.bfloat16)

scan: Callable[..., Any] = ssd.mamba_chunk_scan_combined
mixer: Callable[..., Any] = ssd.mamba_split_conv1d_scan_combined


def operator(name: str) -> Any:
    return getattr(torch.ops.jetson_mamba, name).default


def arguments_of_operator(tensors: Tensors, seq_idx: Tensor | None) -> tuple[Any, ...]:
    order = ("x", "dt", "A", "B", "C", "D", "dt_bias", "initial_states")
    return (*(tensors.get(name) for name in order), seq_idx, *OPTIONS)


@pytest.mark.parametrize("left_out", [(), ("D", "dt_bias", "initial_states")])
@pytest.mark.parametrize("sequences", [False, True])
def test_the_scan_keeps_to_its_schema(left_out: tuple[str, ...], sequences: bool) -> None:
    tensors = leaves(scan_tensors(SEQLEN), torch.float32)
    for name in left_out:
        del tensors[name]
    seq_idx = packed(SEQLEN).to(torch.int32) if sequences else None
    arguments = arguments_of_operator(tensors, seq_idx)
    torch.library.opcheck(operator("ssd_scan"), arguments)
    plain = tuple(each.detach() if isinstance(each, Tensor) else each for each in arguments)
    results = operator("ssd_scan")(*plain)
    backward = (*(torch.randn_like(result) for result in results), *plain)
    torch.library.opcheck(operator("ssd_scan_backward"), backward)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_fake_scan_tells_dtypes_and_strides(dtype: torch.dtype) -> None:
    """The arguments are views of wider tensors, as a block gives them."""
    tensors = leaves(scan_tensors(SEQLEN), {"A": torch.float32, "x": dtype, "B": dtype})
    wide = {
        name: torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]
        for name, tensor in tensors.items()
    }
    torch.library.opcheck(
        operator("ssd_scan"), arguments_of_operator(wide, None), test_utils="test_faketensor"
    )


def assert_compiles(
    function: Callable[..., Any], tensors: Tensors, tolerance: float, dynamic: bool, **options: Any
) -> None:
    """A function in one graph gives what it gives in eager mode, with every gradient."""

    def call(tensors: Tensors) -> Any:
        return function(**tensors, chunk_size=64, return_final_states=True, **options)

    torch._dynamo.reset()
    whole = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    found = []
    for each in (whole, call):
        out, state = each(tensors)
        steps = torch.linspace(-1, 1, out.shape[1]).view(-1, *[1] * (out.dim() - 2))
        loss = (out * steps).sum() + state.square().sum()
        found.append([out, state, *torch.autograd.grad(loss, list(tensors.values()))])
    for actual, expected in zip(*found):
        assert actual.dtype == expected.dtype
        assert relative_norm(actual, expected) < tolerance


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("z", [False, True])
def test_the_scan_compiles_without_a_break(z: bool, dynamic: bool) -> None:
    tensors = leaves(scan_tensors(SEQLEN), torch.float32)
    if not z:
        del tensors["z"]
    seq_idx = packed(SEQLEN).to(torch.int32)
    options = {"dt_softplus": True, "dt_limit": (0.1, 2.0), "seq_idx": seq_idx}
    assert_compiles(scan, tensors, 1e-5, dynamic, **options)


@pytest.mark.parametrize("case", MIXERS)
def test_every_mixer_compiles_without_a_break(case: str) -> None:
    tensors, options = mixer_case(case, SEQLEN)
    assert_compiles(mixer, leaves(tensors, torch.float64), 1e-11, False, **options)


CORES = [
    case
    for case, (sizes, _, left_out) in MIXERS.items()
    if "mlp" not in sizes and "rmsnorm_weight" not in left_out
]

# Sizes are symbolic in the same way in all of them: with sequences, and with several groups.
SYMBOLIC = ("as a Mamba-2 block", "groups")


def core_case(case: str) -> tuple[Tensors, dict[str, Any]]:
    tensors, options = mixer_case(case, SEQLEN)
    tensors.pop("initial_states", None)
    return leaves(tensors, torch.float32), options


@pytest.mark.parametrize(
    ("case", "dynamic"),
    [*((case, False) for case in CORES), *((case, True) for case in SYMBOLIC)],
)
def test_a_core_in_one_operator_is_what_its_steps_are(
    case: str, dynamic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; the operator is computed in PyTorch here."""
    tensors, options = core_case(case)
    if case == "as a Mamba-2 block":
        options["seq_idx"] = packed(SEQLEN).to(torch.int32)
    monkeypatch.setattr(ssd, "_is_one_operator", lambda given: True)
    # Only the core's own operators are left to be called.
    monkeypatch.setattr(ssd._OPERATORS, "scan", None)
    assert_compiles(mixer, tensors, 1e-5, dynamic, **options)


@pytest.mark.parametrize("left_out", [(), ("conv1d_bias",)])
def test_the_core_keeps_to_its_schema(left_out: tuple[str, ...]) -> None:
    tensors, options = core_case("groups")
    for name in left_out:
        del tensors[name]
    order = ("zxbcdt", "conv1d_weight", "conv1d_bias", "dt_bias", "A", "D", "rmsnorm_weight")
    arguments = (
        *(tensors.get(name) for name in order),
        *(None, 64, 0.0, float("inf"), "silu", 1e-6, options["headdim"], 2, True, None),
    )
    torch.library.opcheck(operator("ssd_core"), arguments)
    plain = tuple(each.detach() if isinstance(each, Tensor) else each for each in arguments)
    out, final_states, *kept = operator("ssd_core")(*plain)
    for dfinal_states in (None, torch.randn_like(final_states)):
        backward = (torch.randn_like(out), dfinal_states, *kept, *plain)
        torch.library.opcheck(operator("ssd_core_backward"), backward)


def test_states_at_the_ends_of_sequences_break_no_graph() -> None:
    """Where they end is not known while a graph is traced."""
    tensors = {name: t[:1] if t.dim() > 2 else t for name, t in scan_tensors(20).items()}
    options = {"cu_seqlens": torch.tensor([0, 8, 20]), "return_varlen_states": True}

    def call() -> Any:
        return scan(**tensors, chunk_size=64, **options)

    torch._dynamo.reset()
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    for actual, expected in zip(compiled(), call()):
        assert relative_norm(actual, expected) < 1e-12


def test_a_wrong_argument_is_named_while_a_graph_is_traced() -> None:
    tensors = leaves(scan_tensors(8), torch.float32)
    tensors["A"] = torch.zeros(NHEADS + 1)
    torch._dynamo.reset()
    compiled = torch.compile(scan, backend="eager")
    with pytest.raises(ValueError, match=r"A: .*nheads=4\), found \(5,\)"):
        compiled(**tensors, chunk_size=64)
