"""Each form of a recurrence, by itself in ONNX Runtime, against loops in float64."""

from __future__ import annotations

import math
from typing import Any, Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.references.causal_conv1d import convolve
from tests.references.selective_scan import selective_scan_reference
from tests.references.ssd import ssd_scan
from tests.references.tolerance import relative_norm

ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")

from jetson_mamba.export import forms  # noqa: E402 - needs them

TOLERANCE = 1e-5
# One step, about a chunk of both kinds, and many.
LENGTHS = [1, 2, 7, 8, 9, 63, 64, 65, 1000]
OPEN = {"batch", "seqlen"}


def alone(
    name: str, inputs: dict[str, tuple[Any, ...] | None], outputs: int, form: str, **options: Any
) -> Any:
    """A graph of one placeholder that a form has been written for; shapes by name."""
    values = [
        None
        if shape is None
        else ir.Value(name=each, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        for each, shape in inputs.items()
    ]
    while values and values[-1] is None:
        values.pop()
    attributes = ir.convenience.convert_attributes(options)
    node = ir.Node(forms.DOMAIN, name, values, attributes, num_outputs=outputs)
    for place, value in enumerate(node.outputs):
        value.name, value.type = f"result_{place}", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [value for value in values if value is not None],
        node.outputs,
        nodes=[node],
        opset_imports={"": 20, forms.DOMAIN: 1},
        name="alone",
    )
    return forms.written(ir.Model(graph, ir_version=10), {name: form})


def session(
    name: str, inputs: dict[str, tuple[Any, ...] | None], outputs: int, form: str, **options: Any
) -> Any:
    """A session of :func:`alone`."""
    data = ir.to_proto(alone(name, inputs, outputs, form, **options)).SerializeToString()
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def run(session: Any, tensors: dict[str, Tensor | None]) -> list[Tensor]:
    names = {each.name for each in session.get_inputs()}
    given = {name: each.numpy() for name, each in tensors.items() if name in names}  # type: ignore[union-attr]
    return [torch.from_numpy(each) for each in session.run(None, given)]


def shapes(tensors: dict[str, Tensor | None], batch: int, seqlen: int) -> dict[str, Any]:
    """The shapes of all, with names for the sizes that are open."""
    names = {batch: "batch", seqlen: "seqlen"}
    return {
        name: None if each is None else tuple(names.get(size, size) for size in each.shape)
        for name, each in tensors.items()
    }


# Sizes of the tensors that shapes are taken of: each of its own, so that it can be told by it.
BATCH, SEQLEN = 101, 103


def scan_tensors(case: str, batch: int, seqlen: int) -> dict[str, Tensor | None]:
    torch.manual_seed(seqlen)
    dim, groups, dstate = 12, 3 if "groups" in case else 1, 4
    varying = (batch, groups, dstate, seqlen)
    constant = (dim, dstate)
    A = -torch.rand(dim, dstate) * (300 if "strong" in case else 3)
    return {
        "u": torch.randn(batch, dim, seqlen),
        "delta": torch.randn(batch, dim, seqlen),
        "A": A * (torch.rand(dim, dstate) < 0.5) if "strong" in case else A,
        "B": torch.randn(constant if "constant B" in case else varying),
        "C": torch.randn(constant if "constant C" in case else varying),
        "D": None if "alone" in case else torch.randn(dim),
        "z": None if "alone" in case else torch.randn(batch, dim, seqlen),
        "delta_bias": None if "alone" in case else torch.randn(dim),
    }


@pytest.mark.parametrize("form", ["scan", "blocks"])
@pytest.mark.parametrize(
    "case", ["plain", "alone", "groups", "constant B", "constant C, groups", "strong"]
)
def test_a_form_of_the_selective_scan_is_right_at_every_length(form: str, case: str) -> None:
    runs = session(
        "selective_scan",
        shapes(scan_tensors(case, BATCH, SEQLEN), BATCH, SEQLEN),
        2,
        form,
        delta_softplus=1,
        longest=0,
    )
    for batch, seqlen in [(2, length) for length in LENGTHS] + [(3, 70)]:
        tensors = scan_tensors(case, batch, seqlen)
        out, last = run(runs, tensors)
        _, gated, states, _ = selective_scan_reference(**tensors, delta_softplus=True)  # type: ignore[arg-type]
        assert relative_norm(out, gated) < TOLERANCE, (batch, seqlen)
        assert relative_norm(last, states[..., -1]) < TOLERANCE, (batch, seqlen)


@pytest.mark.parametrize("longest", [1, 8, 9, 64, 65, 513])
def test_blocks_have_as_many_levels_as_the_longest_sequence_asks_for(longest: int) -> None:
    tensors = scan_tensors("plain", 2, longest)
    given = shapes(scan_tensors("plain", BATCH, SEQLEN), BATCH, SEQLEN)
    options = {"delta_softplus": 1, "longest": longest}
    out, last = run(session("selective_scan", given, 2, "blocks", **options), tensors)
    _, gated, states, _ = selective_scan_reference(**tensors, delta_softplus=True)  # type: ignore[arg-type]
    assert relative_norm(out, gated) < TOLERANCE
    assert relative_norm(last, states[..., -1]) < TOLERANCE


def test_blocks_refuse_a_sequence_that_they_were_not_written_for() -> None:
    given = shapes(scan_tensors("plain", BATCH, SEQLEN), BATCH, SEQLEN)
    short = session("selective_scan", given, 2, "blocks", delta_softplus=0, longest=64)
    with pytest.raises(Exception, match=r"(?i)shape|dimension|broadcast|invalid"):
        run(short, scan_tensors("plain", 2, 600))


def ssd_tensors(case: str, batch: int, seqlen: int) -> dict[str, Tensor | None]:
    torch.manual_seed(seqlen)
    nheads, headdim, groups, dstate = 6, 5, 3 if "groups" in case else 1, 4
    A = -torch.rand(nheads) * 3
    if "strong" in case:  # of some heads, and beside steps that decay nothing
        A = torch.tensor([0.0, -0.1, -3.0, -50.0, -2000.0, -math.inf])
    return {
        "x": torch.randn(batch, seqlen, nheads, headdim),
        "dt": torch.randn(batch, seqlen, nheads) * (4 if "strong" in case else 1),
        "A": A,
        "B": torch.randn(batch, seqlen, groups, dstate),
        "C": torch.randn(batch, seqlen, groups, dstate),
        "D": None
        if "alone" in case
        else torch.randn(nheads, headdim)
        if "D of channels" in case
        else torch.randn(nheads),
        "dt_bias": None if "alone" in case else torch.randn(nheads),
        "initial_states": torch.randn(batch, nheads, headdim, dstate) if "from" in case else None,
    }


@pytest.mark.parametrize("form", ["chunks", "attention"])
@pytest.mark.parametrize(
    "case", ["plain", "alone", "groups, D of channels", "from states", "limits", "strong"]
)
def test_a_form_of_mamba_2s_scan_is_right_at_every_length(form: str, case: str) -> None:
    limits = (0.3, 0.9) if case == "limits" else (0.0, math.inf)
    given = shapes(ssd_tensors(case, BATCH, SEQLEN), BATCH, SEQLEN)
    options = {"dt_softplus": 1, "dt_least": limits[0], "dt_most": limits[1]}
    try:
        runs = session("ssd_scan", given, 2, form, **options)
    except Exception as error:
        if form == "attention" and "LinearAttention" in str(error):
            pytest.skip("this ONNX Runtime has no LinearAttention")
        raise
    for batch, seqlen in [(2, length) for length in LENGTHS] + [(3, 70)]:
        tensors = ssd_tensors(case, batch, seqlen)
        out, last = run(runs, tensors)
        exact = {n: None if each is None else each.double() for n, each in tensors.items()}
        if case == "strong":
            A = exact["A"]
            assert A is not None
            exact["A"] = A.clamp(min=-1e9)
        right, state, _ = ssd_scan(**exact, dt_softplus=True, dt_limit=limits)  # type: ignore[arg-type]
        assert relative_norm(out, right) < TOLERANCE, (batch, seqlen)
        assert relative_norm(last, state) < TOLERANCE, (batch, seqlen)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("stateful", [False, True])
def test_the_convolution_is_right_at_every_length(silu: bool, width: int, stateful: bool) -> None:
    def tensors(batch: int, seqlen: int) -> dict[str, Tensor | None]:
        torch.manual_seed(seqlen)
        return {
            "x": torch.randn(batch, 6, seqlen),
            "weight": torch.randn(6, width),
            "bias": torch.randn(6) if silu else None,
            "initial_states": torch.randn(batch, 6, width - 1) if stateful else None,
        }

    given = shapes(tensors(BATCH, SEQLEN), BATCH, SEQLEN)
    options = {"return_final_states": 1, "silu": int(silu)}
    runs = session("causal_conv1d", given, 2, "", **options)
    check: Callable[..., Any] = convolve
    for seqlen in (1, 3, 9):
        found = tensors(2, seqlen)
        out, last = run(runs, found)
        right, final = check(
            found["x"], found["weight"], found["bias"], None, found["initial_states"], silu
        )
        assert relative_norm(out, right) < TOLERANCE
        if stateful or seqlen >= width - 1:
            assert relative_norm(last, final) < TOLERANCE


@pytest.mark.parametrize("wide", [False, True])
def test_numbers_of_a_graph_are_as_wide_as_what_it_computes_with(wide: bool) -> None:
    from jetson_mamba.export.forms.writer import Writer

    kinds = [ir.DataType.FLOAT, None, ir.DataType.DOUBLE if wide else ir.DataType.BFLOAT16]
    values = [None if kind is None else ir.Value(type=ir.TensorType(kind)) for kind in kinds]
    writer = Writer("of", *values)
    assert writer.dtype == (np.float64 if wide else np.float32)
    assert writer.onnx_dtype == (ir.DataType.DOUBLE if wide else ir.DataType.FLOAT)
