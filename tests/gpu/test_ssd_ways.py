"""Mamba-2's op on a GPU, whichever way a call goes: the same numbers, whatever looks at it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.ops.test_ssd import mixer, mixer_case, scan, scan_tensors
from tests.references.ssd import ssd_mixer, ssd_scan
from tests.references.tolerance import relative_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
SEQLEN = 70
# Upstream's kernels take products in TF32.
TOLERANCE = 5e-3


@pytest.fixture(params=["scan", "mixer"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any, list[Tensor]]:
    """The op and the recurrence as functions of tensors alone, and these, in float64 on a CPU."""
    torch.manual_seed(0)
    if request.param == "scan":
        tensors, options = scan_tensors(SEQLEN), {"dt_softplus": True}
        function: Any = scan
        recurrence: Any = ssd_scan
    else:
        tensors, options = mixer_case("groups", SEQLEN)
        function, recurrence = mixer, ssd_mixer
    names = list(tensors)

    def op(*values: Tensor) -> Any:
        given = dict(zip(names, values))
        return function(**given, **options, chunk_size=64, return_final_states=True)

    def reference(*values: Tensor) -> Any:
        return recurrence(**dict(zip(names, values)), **options)[:2]

    return op, reference, list(tensors.values())


def on_gpu(tensors: list[Tensor]) -> list[Tensor]:
    return [each.to("cuda", torch.float32) for each in tensors]


def assert_near(found: Any, expected: Any) -> None:
    assert len(found) == len(expected)
    for index, (actual, right) in enumerate(zip(found, expected)):
        assert relative_norm(actual, right) < TOLERANCE, index


def second_derivatives(function: Any, tensors: list[Tensor]) -> list[Tensor]:
    given = [each.detach().requires_grad_() for each in tensors]
    total = sum((each * each).sum() for each in function(*given))
    first = torch.autograd.grad(total, given, create_graph=True)
    penalty = sum((each.square().sum() for each in first), first[0].new_zeros(()))
    return [*first, *torch.autograd.grad(penalty, given)]


def test_second_derivatives(pair: Any) -> None:
    op, reference, tensors = pair
    assert_near(second_derivatives(op, on_gpu(tensors)), second_derivatives(reference, tensors))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_transforms(pair: Any) -> None:
    op, reference, tensors = pair
    given = on_gpu(tensors)
    tangents = [torch.randn_like(each) for each in tensors]
    found = torch.func.jvp(op, tuple(given), tuple(on_gpu(tangents)))[1]
    assert_near(found, torch.func.jvp(reference, tuple(tensors), tuple(tangents))[1])
    stacked = [torch.stack([each, each * 0.5]) for each in tensors]
    expected = [torch.stack(each) for each in zip(*map(reference, *stacked))]
    assert_near(torch.vmap(op)(*on_gpu(stacked)), expected)


def test_a_recorded_graph_gives_what_the_function_gives(pair: Any) -> None:
    """Kernels that are launched past torch are invisible to what records."""
    from torch.fx.experimental.proxy_tensor import make_fx

    op, reference, tensors = pair
    given = on_gpu(tensors)
    with torch.no_grad():
        for _ in range(3):  # a graph or recorded launches would serve from now on
            op(*given)
        graph = make_fx(op)(*given)
    others = [each * 0.5 if each.dim() > 2 else each for each in tensors]
    assert_near(graph(*on_gpu(others)), reference(*others))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_trace_is_right(pair: Any) -> None:
    op, reference, tensors = pair
    trace = torch.jit.trace(op, tuple(on_gpu(tensors)), check_trace=False)
    others = [each * 0.5 if each.dim() > 2 else each for each in tensors]
    assert_near(trace(*on_gpu(others)), reference(*others))


class Overridden(TorchFunctionMode):
    """Counts the functions that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


def test_a_function_mode_sees_as_much_at_every_call(pair: Any) -> None:
    op, reference, tensors = pair
    given = on_gpu(tensors)
    seen = []
    with torch.no_grad():
        for _ in range(4):
            with Overridden() as mode:
                results = op(*given)
            seen.append(mode.seen)
    assert len(set(seen[1:])) == 1 and seen[1] > 0
    assert_near(results, reference(*tensors))


@pytest.mark.parametrize("grad", [True, False])
def test_states_between_chunks_are_kept_in_the_dtype_that_is_named(grad: bool) -> None:
    """Where upstream's kernels know no such dtype, another backend does."""
    torch.manual_seed(0)
    tensors = scan_tensors(150)
    given = {name: each.to("cuda", torch.float32) for name, each in tensors.items()}
    with torch.set_grad_enabled(grad):
        found = scan(**given, chunk_size=64, state_dtype=torch.float32)
        exact = {name: each.double() for name, each in given.items()}
        assert relative_norm(found, scan(**exact, chunk_size=64)) < TOLERANCE


@pytest.mark.parametrize("decay", [3e38, float("inf")])
def test_a_state_that_decays_at_once_is_no_nan_without_triton(decay: float) -> None:
    import jetson_mamba

    torch.manual_seed(0)
    given = {name: each.to("cuda", torch.float32) for name, each in scan_tensors(70).items()}
    given["A"] = torch.full_like(given["A"], -decay)
    with jetson_mamba.backend(ssd="pytorch"):
        assert scan(**given, chunk_size=64, dt_softplus=True).isfinite().all()


@pytest.mark.parametrize("initial_states", [True, False])
def test_factors_in_bfloat16_give_float64s_results_at_every_call(initial_states: bool) -> None:
    """By the second call graphs launch what lies between the products, by numbers of each call."""
    import jetson_mamba
    from jetson_mamba.ops.ssd import short

    torch.manual_seed(0)
    batch, seqlen, nheads, headdim, dstate = 2, 700, 8, 64, 128
    heads = (batch, seqlen, nheads)
    shapes: dict[str, Any] = {"x": (*heads, headdim), "dt": heads, "A": (nheads,)}
    shapes.update(dict.fromkeys(("B", "C"), (batch, seqlen, 1, dstate)))
    if initial_states:
        shapes["initial_states"] = (batch, nheads, headdim, dstate)
    # They outlast a call, as parameters do.
    lasting = {name: torch.randn(nheads, device="cuda") for name in ("D", "dt_bias")}
    for _ in range(4):
        low = {name: torch.randn(shape, device="cuda") for name, shape in shapes.items()}
        low["A"] = -low["A"].exp()
        for name in ("x", "dt", "B", "C"):
            low[name] = low[name].bfloat16()
        low.update(lasting)
        found = []
        for dtype in (None, torch.float64):
            given = low if dtype is None else {name: each.to(dtype) for name, each in low.items()}
            given = {name: each.detach().requires_grad_() for name, each in given.items()}
            with jetson_mamba.backend(ssd="pytorch"):
                out, state = scan(
                    **given, chunk_size=64, dt_softplus=True, return_final_states=True
                )
                total = (out.double() ** 2).sum() + (state.double() ** 2).sum()
                found.append([out, state, *torch.autograd.grad(total, list(given.values()))])
        for name, actual, right in zip(("out", "state", *low), *found):
            # Sums over all steps, in which rounded terms cancel.
            most = 5e-2 if name in ("A", "D", "dt_bias") else 8e-3
            most = 1e-5 if name == "state" else most
            assert relative_norm(actual, right) < most, name
    assert short.FACTORS.graphs() and short.SLOPES.graphs()
