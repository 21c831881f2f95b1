"""A node of a recurrence is like what its operator gives, in dtypes as in shapes."""

from __future__ import annotations

import logging
import sys
import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba import ops  # noqa: F401 (defines the operators)
from jetson_mamba.errors import CannotRun
from jetson_mamba.export import capture
from jetson_mamba.ops.ssd.library import ScanArguments

pytest.importorskip("onnxscript")
pytestmark = pytest.mark.skipif(
    not hasattr(getattr(torch.onnx, "ops", None), "symbolic_multi_out"),
    reason="this torch has no nodes of one's own",
)
BATCH, DIM, SEQLEN, DSTATE, HEADS = 2, 6, 9, 5, 3


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


def convolution(dtype: torch.dtype, initial: bool, final: bool) -> tuple[Any, ...]:
    states = drawn(BATCH, DIM, 3, dtype=dtype) if initial else None
    x, weight = drawn(BATCH, DIM, SEQLEN, dtype=dtype), drawn(DIM, 4, dtype=dtype)
    return (x, weight, drawn(DIM, dtype=dtype), None, states, final, True)


def scan(dtype: torch.dtype, gated: bool) -> tuple[Any, ...]:
    rows, matrix = (BATCH, DIM, SEQLEN), (BATCH, 2, DSTATE, SEQLEN)
    return (
        *(drawn(*rows, dtype=dtype), drawn(*rows, dtype=dtype).abs(), -torch.rand(DIM, DSTATE)),
        *(drawn(*matrix, dtype=dtype), drawn(*matrix, dtype=dtype), drawn(DIM)),
        *(drawn(*rows, dtype=dtype) if gated else None, drawn(DIM), True),
    )


def ssd(dtype: torch.dtype) -> tuple[Any, ...]:
    matrix = (BATCH, SEQLEN, 1, DSTATE)
    given: dict[str, Any] = {
        "x": drawn(BATCH, SEQLEN, HEADS, 4, dtype=dtype),
        "dt": drawn(BATCH, SEQLEN, HEADS, dtype=dtype).abs(),
        "A": -torch.rand(HEADS),
        "B": drawn(*matrix, dtype=dtype),
        "C": drawn(*matrix, dtype=dtype),
        "D": drawn(HEADS),
        "chunk_size": 16,
        "dt_softplus": True,
        "dt_least": 0.0,
        "dt_most": float("inf"),
    }
    fields = ScanArguments._fields
    return tuple(given.get(name) for name in fields)


OPERATORS = torch.ops.jetson_mamba
CASES = [
    *(
        (OPERATORS.causal_conv1d, convolution(dtype, initial, final))
        for dtype in (torch.float32, torch.bfloat16)
        for initial in (False, True)
        for final in (False, True)
    ),
    (OPERATORS.selective_scan_output, scan(torch.float32, True)),
    *(
        (OPERATORS.selective_scan_rows, (*scan(dtype, gated), 3))
        for dtype in (torch.float32, torch.bfloat16)
        for gated in (False, True)
    ),
    (OPERATORS.ssd_scan, ssd(torch.float32)),
    (OPERATORS.ssd_scan, ssd(torch.bfloat16)),
]


def likeness(results: Any) -> list[tuple[torch.dtype, torch.Size]]:
    several = [results] if isinstance(results, Tensor) else results
    return [(each.dtype, each.shape) for each in several]


@pytest.mark.parametrize(("operator", "arguments"), CASES)
def test_its_results_are_like_the_operators(operator: Any, arguments: tuple[Any, ...]) -> None:
    found = capture._table()[operator.default](*arguments)
    assert likeness(found) == likeness(operator(*arguments))


def test_complex_numbers_are_refused() -> None:
    arguments = list(scan(torch.float32, False))
    arguments[2] = arguments[2].to(torch.complex64)
    with pytest.raises(CannotRun, match="A: expected real numbers, found complex ones"):
        capture._scan_output(*arguments)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What nodes are made, with what they are given."""
    made: list[tuple[Any, ...]] = []

    def note(name: str, tensors: Any, options: Any, *, version: int, **results: Any) -> Any:
        made.append((name, tensors, options))
        assert version == 1
        return [torch.zeros(shape, dtype=dtype) for dtype, shape in zip(*results.values())]

    monkeypatch.setattr(torch.onnx.ops, "symbolic_multi_out", note)
    return made


def same(found: Any, *expected: Any) -> bool:
    return len(found) == len(expected) and all(a is b for a, b in zip(found, expected))


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("final", [False, True])
def test_a_node_of_the_convolution_is_told_all(
    final: bool, silu: bool, nodes: list[tuple[Any, ...]]
) -> None:
    given = (*convolution(torch.float32, True, final)[:-1], silu)
    capture._table()[OPERATORS.causal_conv1d.default](*given)
    ((name, tensors, options),) = nodes
    assert name == "jetson_mamba::causal_conv1d"
    assert same(tensors, *given[:3], given[4])
    assert options == {"return_final_states": int(final), "silu": int(silu)}


def test_a_node_of_the_scan_is_told_all(nodes: list[tuple[Any, ...]]) -> None:
    given = scan(torch.float32, True)
    capture._table()[OPERATORS.selective_scan_output.default](*given)
    ((name, tensors, options),) = nodes
    assert name == "jetson_mamba::selective_scan"
    assert same(tensors, *given[:8])
    assert options == {"delta_softplus": 1, "longest": SEQLEN}
    capture._table()[OPERATORS.selective_scan_rows.default](*given[:8], False, 1)
    assert nodes[1][2] == {"delta_softplus": 0, "longest": SEQLEN}
    # What the gate does stands in the graph.
    assert nodes[1][1][6] is None and same(nodes[1][1][:6], *given[:6])


@pytest.mark.parametrize(("least", "most"), [(0.0, float("inf")), (0.1, 0.2)])
def test_a_node_of_mamba_2s_scan_is_told_all(
    least: float, most: float, nodes: list[tuple[Any, ...]]
) -> None:
    given = ScanArguments(*ssd(torch.float32))._replace(dt_least=least, dt_most=most)
    given = given._replace(dt_bias=drawn(HEADS), initial_states=drawn(BATCH, HEADS, 4, DSTATE))
    capture._table()[OPERATORS.ssd_scan.default](*given)
    ((name, tensors, options),) = nodes
    assert name == "jetson_mamba::ssd_scan"
    names = ("x", "dt", "A", "B", "C", "D", "dt_bias", "initial_states")
    assert same(tensors, *(getattr(given, each) for each in names))
    assert options == {"dt_softplus": 1, "dt_least": least, "dt_most": most}


@pytest.mark.parametrize("name", ["seq_idx", "state_dtype"])
def test_what_no_node_of_mamba_2s_scan_is_told_is_decomposed(
    name: str, nodes: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = torch.zeros(BATCH, SEQLEN, dtype=torch.int32)
    value: Any = {"seq_idx": sequences, "state_dtype": torch.bfloat16}[name]
    given = ScanArguments(*ssd(torch.float32))._replace(**{name: value})
    operator = OPERATORS.ssd_scan.default
    monkeypatch.setattr(capture, "decompositions", lambda: {operator: lambda *each: ("by", *each)})
    assert capture._ssd(*given)[0] == "by"
    assert same(capture._ssd(*given)[1:], *given)
    assert nodes == []


def test_a_convolution_of_sequences_is_decomposed(nodes: list[tuple[Any, ...]]) -> None:
    x, weight, bias, *_ = convolution(torch.float32, False, False)
    sequences = (torch.arange(SEQLEN) // 4).expand(BATCH, SEQLEN).int().contiguous()
    for silu in (False, True):
        arguments = (x, weight, bias, sequences, None, False, silu)
        found = capture._table()[OPERATORS.causal_conv1d.default](*arguments)
        torch.testing.assert_close(found[0], OPERATORS.causal_conv1d(*arguments)[0])
    assert nodes == []


def test_the_longest_sequence_of_a_graph_is_known_by_its_bound() -> None:
    found: list[int] = []

    class Lengths(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found.append(capture._longest(x.shape[1]))
            return x + 1

    for most, expected in ((None, 0), (512, 512), (1000, 1024), (3, 4)):
        found.clear()
        bound = torch.export.Dim("n", min=1, max=most)
        program = torch.export.export(
            Lengths(), (torch.zeros(2, 3),), dynamic_shapes=({1: bound},), strict=False
        )
        assert program is not None and found[-1] == expected
    assert capture._longest(7) == 7


def test_the_first_error_is_the_reason() -> None:
    def caused(error: Exception, *causes: Exception) -> Exception:
        for each, cause in zip((error, *causes), causes):
            each.__cause__ = cause
        return error

    own = CannotRun("A: expected real numbers")
    assert capture._reason(caused(ValueError("late"), KeyError("later"), own)) == str(own)
    said = capture._reason(caused(RuntimeError("late"), ValueError("first\n  of all")))
    assert said.startswith("torch cannot export the model; ")
    assert said.endswith("torch says: first of all")
    assert capture._reason(ValueError()).endswith("torch says: ValueError")
    long = capture._reason(ValueError("x" * 600))
    assert long.endswith("says: " + "x" * 500)


def test_what_torch_says_by_itself_is_not_heard(caplog: pytest.LogCaptureFixture) -> None:
    class Asks(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logging.getLogger("torch").warning("a word")
            logging.getLogger("torch").error("a fault")
            warnings.warn("another", UserWarning, stacklevel=1)
            raise KeyError("its own")

    before = logging.root.manager.disable
    with pytest.raises(CannotRun, match=r"^torch cannot export the model.*its own"):
        capture.captured(Asks(), (torch.ones(2),), None)
    said = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert "a word" not in said and "a fault" in said
    assert logging.root.manager.disable == before


def test_transformers_calls_mamba_ssm_while_a_model_is_exported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it is there; what it asks is put back."""
    name = "transformers.integrations.hub_kernels"
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    with capture._functions_serve_transformers():
        assert vars(sys.modules[name]).get("is_torchdynamo_exporting") is None
    asked: Any = object()
    sys.modules[name].is_torchdynamo_exporting = asked  # type: ignore[attr-defined]
    with pytest.raises(KeyError), capture._functions_serve_transformers():
        assert vars(sys.modules[name])["is_torchdynamo_exporting"]() is False
        raise KeyError
    assert vars(sys.modules[name])["is_torchdynamo_exporting"] is asked
