"""What torch asks of the ssd op beyond results.

Gradients, transforms, traces, hooks and modes. Each is held to the recurrence in float64 under the
same transform, which is plain operations.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from jetson_mamba.dispatch.operators import has_operators
from jetson_mamba.ops.ssd import op as ssd
from tests.ops.test_ssd import (
    leaves,
    mixer,
    mixer_case,
    mixer_tensors,
    packed,
    scan,
    scan_tensors,
)
from tests.references.ssd import ssd_mixer, ssd_scan
from tests.references.tolerance import relative_norm

# torch 2.13 says of its TorchScript, which its own forward-mode derivatives use, that it is old.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

# Untyped: they are given whatever tensors a case has.
reference_scan: Callable[..., Any] = ssd_scan
reference_mixer: Callable[..., Any] = ssd_mixer

Function = Callable[..., Any]
SEQLEN = 9
TOLERANCE = 1e-10


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def scan_pair(**options: Any) -> tuple[Function, Function, list[Tensor]]:
    """The op and the recurrence as functions of tensors alone, and these."""
    names = [*scan_tensors(SEQLEN)]

    def op(*tensors: Tensor) -> Any:
        given = dict(zip(names, tensors))
        return scan(**given, **options, chunk_size=64, dt_softplus=True, return_final_states=True)

    def reference(*tensors: Tensor) -> Any:
        return reference_scan(**dict(zip(names, tensors)), **options, dt_softplus=True)[:2]

    return op, reference, list(scan_tensors(SEQLEN).values())


def mixer_pair(case: str, **options: Any) -> tuple[Function, Function, list[Tensor]]:
    tensors, given = mixer_case(case, SEQLEN)
    names = [*tensors]
    given.update(options)

    def op(*values: Tensor) -> Any:
        return mixer(**dict(zip(names, values)), **given, chunk_size=64, return_final_states=True)

    def reference(*values: Tensor) -> Any:
        return reference_mixer(**dict(zip(names, values)), **given)

    return op, reference, list(tensors.values())


PAIRS: dict[str, Callable[[], tuple[Function, Function, list[Tensor]]]] = {
    "scan": scan_pair,
    "scan of sequences": lambda: scan_pair(seq_idx=packed(SEQLEN).to(torch.int32)),
    "mixer": lambda: mixer_pair("groups"),
    "mixer without a norm": lambda: mixer_pair("gated MLP, no norm"),
    "mixer of sequences": lambda: mixer_pair(
        "norm after the gate", seq_idx=packed(SEQLEN).to(torch.int32)
    ),
}


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[Function, Function, list[Tensor]]:
    return PAIRS[request.param]()


def total(function: Function) -> Function:
    """A number, in which every result takes part, of second order."""
    return lambda *tensors: sum((each * each.sin()).sum() for each in function(*tensors))


def assert_same(found: Any, expected: Any) -> None:
    assert len(found) == len(expected)
    for index, (actual, right) in enumerate(zip(found, expected)):
        assert relative_norm(actual, right) < TOLERANCE, index


def test_gradients_by_torch_func(pair: Any) -> None:
    op, reference, tensors = pair
    every = tuple(range(len(tensors)))
    assert_same(
        torch.func.grad(total(op), every)(*tensors),
        torch.func.grad(total(reference), every)(*tensors),
    )
    vjp: Any = torch.func.vjp
    results, pull = vjp(op, *tensors)
    expected, reference_pull = vjp(reference, *tensors)
    assert_same(results, expected)
    cotangents = tuple(torch.randn_like(each) for each in expected)
    assert_same(pull(cotangents), reference_pull(cotangents))


@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode_derivatives(pair: Any, grad: bool) -> None:
    op, reference, tensors = pair
    jvp: Any = torch.func.jvp
    tangents = tuple(torch.randn_like(each) for each in tensors)
    with torch.set_grad_enabled(grad):
        results, derivatives = jvp(op, tuple(tensors), tangents)
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*each) for each in zip(tensors, tangents)]
            unpacked = [forward_ad.unpack_dual(each) for each in op(*duals)]
    expected, right = jvp(reference, tuple(tensors), tangents)
    assert_same(results, expected)
    assert_same(derivatives, right)
    assert_same([each.primal for each in unpacked], expected)
    assert_same([each.tangent for each in unpacked], right)


def test_a_batch_of_calls(pair: Any) -> None:
    op, reference, tensors = pair
    stacked = [torch.stack([each, each * 0.5, each.flip(0)]) for each in tensors]
    found = torch.vmap(op)(*stacked)
    assert_same(found, [torch.stack(x) for x in zip(*map(reference, *stacked))])
    # Only the first argument has a batch.
    found = torch.vmap(op, (0, *[None] * (len(tensors) - 1)))(stacked[0], *tensors[1:])
    each = [reference(one, *tensors[1:]) for one in stacked[0]]
    assert_same(found, [torch.stack(x) for x in zip(*each)])


def test_gradients_of_each_sample(pair: Any) -> None:
    op, reference, tensors = pair
    samples = torch.stack([tensors[0], tensors[0].roll(1, 1)])
    where = (0, *[None] * (len(tensors) - 1))
    every = tuple(range(len(tensors)))
    found = torch.vmap(torch.func.grad(total(op), every), where)(samples, *tensors[1:])
    each = [torch.func.grad(total(reference), every)(one, *tensors[1:]) for one in samples]
    assert_same(found, [torch.stack(x) for x in zip(*each)])


@pytest.mark.parametrize("create_graph", [True, False])
def test_a_batch_of_gradients(pair: Any, create_graph: bool) -> None:
    op, reference, tensors = pair
    found = []
    for function in (op, reference):
        of = [each.detach().requires_grad_() for each in tensors]
        out = function(*of)[0]
        rows = torch.stack([torch.ones_like(out), out.detach().cos()])
        batch = torch.autograd.grad(out, of, rows, is_grads_batched=True, create_graph=create_graph)
        found.append([*batch])
        if create_graph:
            penalty = torch.stack([each.square().sum() for each in batch]).sum()
            second = torch.autograd.grad(penalty, of, allow_unused=True)
            found[-1].extend(each for each in second if each is not None)
    assert_same(*found)


def second_derivatives(function: Function, tensors: list[Tensor]) -> list[Tensor]:
    given = [each.detach().requires_grad_() for each in tensors]
    first = torch.autograd.grad(total(function)(*given), given, create_graph=True)
    penalty = sum(each.square().sum() for each in first)
    assert isinstance(penalty, Tensor)
    return [*first, *torch.autograd.grad(penalty, given)]


def test_second_derivatives(pair: Any) -> None:
    op, reference, tensors = pair
    assert_same(second_derivatives(op, tensors), second_derivatives(reference, tensors))


def test_second_derivatives_pass_gradgradcheck() -> None:
    op, _, tensors = scan_pair()
    given = [each.detach().requires_grad_() for each in tensors]
    assert torch.autograd.gradgradcheck(op, given, fast_mode=True)


def test_hessian_vector_products(pair: Any) -> None:
    op, reference, tensors = pair
    direction = torch.randn_like(tensors[0])

    def product(function: Function) -> Tensor:
        def slope(x: Tensor) -> Any:
            return torch.func.grad(total(function))(x, *tensors[1:])

        derivative: Tensor = torch.func.jvp(slope, (tensors[0],), (direction,))[1]
        return derivative

    assert_same([product(op)], [product(reference)])


class Named(Tensor):
    """A tensor of another class, which every operation keeps."""


def test_a_subclass_of_tensors_is_kept(pair: Any) -> None:
    op, reference, tensors = pair
    results = op(tensors[0].as_subclass(Named), *tensors[1:])
    assert {type(each) for each in results} == {Named}
    assert_same(results, reference(*tensors))


@pytest.fixture
def traced(pair: Any) -> tuple[Any, Function, list[Tensor]]:
    """What a trace loses would be a warning, which is an error."""
    op, reference, tensors = pair
    return torch.jit.trace(op, tuple(tensors), check_trace=False), reference, tensors


def test_a_trace_is_right_at_its_sizes(traced: Any) -> None:
    trace, reference, tensors = traced
    others = [each * 0.5 if each.dim() != 1 else each for each in tensors]
    assert_same(trace(*others), reference(*others))


@pytest.mark.parametrize("change", ["longer", "shorter", "one row", "more rows", "as many numbers"])
def test_a_trace_is_right_at_other_sizes(
    request: pytest.FixtureRequest, traced: Any, change: str
) -> None:
    trace, reference, tensors = traced

    def changed(each: Tensor) -> Tensor:
        if each.dim() < 3:
            return each
        if each.shape[1] != SEQLEN:  # states
            rows = {"one row": 1, "more rows": 4, "as many numbers": 1}.get(change, 2)
            return each[:1].expand(rows, *each.shape[1:])
        return {
            "longer": lambda: torch.cat([each] * 9, 1),
            "shorter": lambda: each[:, :-1],
            "one row": lambda: each[:1],
            "more rows": lambda: torch.cat([each, each]),
            "as many numbers": lambda: each.reshape(1, 2 * SEQLEN, *each.shape[2:]),
        }[change]()

    others = [changed(each) for each in tensors]
    if "of sequences" in request.node.name:
        # The index is none of the arguments, but a constant of the trace.
        with pytest.raises(torch.jit.Error, match=r"seq_idx of shape.*another trace"):
            trace(*others)
    else:
        assert_same(trace(*others), reference(*others))


def test_saved_tensors_are_unpacked_once(pair: Any) -> None:
    op, _, tensors = pair
    packed_count, unpacked = 0, []

    def pack(tensor: Tensor) -> tuple[int, Tensor]:
        nonlocal packed_count
        packed_count += 1
        return packed_count, tensor

    def unpack(given: tuple[int, Tensor]) -> Tensor:
        unpacked.append(given[0])
        return given[1]

    given = [each.detach().requires_grad_() for each in tensors]
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss = total(op)(*given)
    loss.backward()
    assert sorted(unpacked) == list(range(1, packed_count + 1))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_gives_the_same_gradients(pair: Any, reentrant: bool) -> None:
    op, _, tensors = pair
    given = [each.detach().requires_grad_() for each in tensors]
    expected = torch.autograd.grad(total(op)(*given), given)
    loss = checkpoint(total(op), *given, use_reentrant=reentrant)
    loss.backward()
    assert_same([each.grad for each in given], expected)


def test_saved_tensors_may_lie_elsewhere(pair: Any) -> None:
    op, _, tensors = pair
    given = [each.detach().requires_grad_() for each in tensors]
    expected = torch.autograd.grad(total(op)(*given), given)
    with torch.autograd.graph.save_on_cpu():
        loss = total(op)(*given)
    assert_same(torch.autograd.grad(loss, given), expected)


@pytest.mark.skipif(not has_operators, reason="this torch has no operators of this form")
def test_a_selective_checkpoint_sees_the_operators() -> None:
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    op, _, tensors = mixer_pair("groups")
    given = [each.detach().requires_grad_() for each in tensors]
    expected = torch.autograd.grad(total(op)(*given), given)
    kept = [torch.ops.jetson_mamba.ssd_scan.default, torch.ops.aten.mm.default]
    context = functools.partial(create_selective_checkpoint_contexts, kept)
    loss = checkpoint(total(op), *given, use_reentrant=False, context_fn=context)
    assert_same(torch.autograd.grad(loss, given), expected)


class Counting(TorchDispatchMode):
    """Notes every operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not has_operators, reason="this torch has no operators of this form")
def test_a_mode_sees_the_same_at_every_call(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at the first, which chooses a backend and tries it."""
    op, reference, tensors = pair
    monkeypatch.setattr(ssd.OP, "_chosen", {})
    seen = []
    for _ in range(2):
        given = [each.detach().requires_grad_() for each in tensors]
        with Counting() as counting:
            results = op(*given)
            torch.autograd.grad(sum(each.sum() for each in results), given)
        assert_same(results, reference(*tensors))
        seen.append(counting.seen)
    assert seen[0] == seen[1]
    assert "jetson_mamba.ssd_scan.default" in seen[0]
    assert "jetson_mamba.ssd_scan_backward.default" in seen[0]


@pytest.mark.skipif(not has_operators, reason="this torch has no operators of this form")
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_the_operators(pair: Any, mode: Any) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    op, reference, tensors = pair
    graph = make_fx(op, tracing_mode=mode, _allow_non_fake_inputs=True)(*tensors)
    assert "jetson_mamba.ssd_scan" in graph.code
    assert_same(graph(*tensors), reference(*tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_meta_and_fake_tensors_have_shapes_and_dtypes(dtype: torch.dtype) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    tensors, options = mixer_case("as a Mamba-2 block", SEQLEN)
    expected = mixer(**leaves(tensors, dtype), **options, chunk_size=64, return_final_states=True)

    def found(device: str) -> Any:
        given = {
            name: torch.empty(each.shape, dtype=dtype, device=device, requires_grad=True)
            for name, each in tensors.items()
        }
        results = mixer(**given, **options, chunk_size=64, return_final_states=True)
        gradients = torch.autograd.grad(sum(each.sum() for each in results), list(given.values()))
        assert [g.shape for g in gradients] == [each.shape for each in given.values()]
        return results

    on_meta = found("meta")
    with FakeTensorMode():
        fake = found("cpu")
    for results in (on_meta, fake):
        for actual, right in zip(results, expected):
            assert (actual.shape, actual.dtype) == (right.shape, right.dtype)


@pytest.mark.skipif(not has_operators, reason="this torch has no operators of this form")
@pytest.mark.parametrize("grad", [True, False])
def test_an_exported_scan_is_transformed_as_the_scan_itself(grad: bool) -> None:
    op, reference, tensors = scan_pair()

    class Module(torch.nn.Module):
        def forward(self, *given: Tensor) -> Any:
            return op(*given)

    with torch.set_grad_enabled(grad):
        exported = torch.export.export(Module(), tuple(tensors)).module()
    assert_same(second_derivatives(exported, tensors), second_derivatives(reference, tensors))
    stacked = torch.stack([tensors[0], tensors[0] * 0.5])
    where = (0, *[None] * (len(tensors) - 1))
    each = [reference(one, *tensors[1:]) for one in stacked]
    assert_same(
        torch.vmap(exported, where)(stacked, *tensors[1:]), [torch.stack(x) for x in zip(*each)]
    )
    every = tuple(range(len(tensors)))
    assert_same(
        torch.func.grad(total(exported), every)(*tensors),
        torch.func.grad(total(reference), every)(*tensors),
    )
    tangents = tuple(torch.randn_like(each) for each in tensors)
    expected = torch.func.jvp(reference, tuple(tensors), tangents)[1]
    assert_same(torch.func.jvp(exported, tuple(tensors), tangents)[1], expected)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*each) for each in zip(tensors, tangents)]
        assert_same([forward_ad.unpack_dual(each).tangent for each in exported(*duals)], expected)


@pytest.mark.skipif(not has_operators, reason="this torch has no operators of this form")
def test_a_graph_that_holds_gradients_refuses_forward_mode() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    op, _, tensors = scan_pair()

    def gradients(*given: Tensor) -> Any:
        x = given[0].detach().requires_grad_()
        return torch.autograd.grad(op(x, *given[1:])[0].sum(), x)

    graph = make_fx(gradients)(*tensors)
    assert "ssd_scan_backward" in graph.code
    tangents = tuple(torch.randn_like(each) for each in tensors)
    with pytest.raises(RuntimeError, match=r"ssd_scan_backward: .*transform the function before"):
        torch.func.jvp(graph, tuple(tensors), tangents)


@pytest.mark.skipif(not has_operators, reason="this torch has no operators of this form")
def test_a_core_has_second_derivatives_and_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where a mixer is one operator between its projections."""
    tensors = mixer_tensors(SEQLEN, ngroups=2)
    del tensors["initial_states"]
    names = [*tensors]

    def reference(*values: Tensor) -> Any:
        return reference_mixer(**dict(zip(names, values)), headdim=3, ngroups=2)

    def operators(*values: Tensor) -> Any:
        given = dict(zip(names, values))
        return mixer(**given, headdim=3, ngroups=2, chunk_size=64, return_final_states=True)

    class Module(torch.nn.Module):
        def forward(self, *given: Tensor) -> Any:
            return operators(*given)

    monkeypatch.setattr(ssd, "_is_one_operator", lambda given: True)
    values = list(tensors.values())
    exported = torch.export.export(Module(), tuple(values)).module()
    assert "ssd_core" in exported.code
    assert_same(second_derivatives(exported, values), second_derivatives(reference, values))
    stacked = torch.stack([values[0], values[0] * 0.5])
    where = (0, *[None] * (len(values) - 1))
    each = [reference(one, *values[1:]) for one in stacked]
    found = torch.vmap(exported, where)(stacked, *values[1:])
    assert_same(found, [torch.stack(x) for x in zip(*each)])
