"""The ops are right under what torch does to functions.

The convolution, the scan, and the two together. Transforms of ``torch.func``, forward-mode
derivatives, second derivatives, subclasses of tensors, checkpoints: each is held to the same of a
function that is nothing but plain operations, in float64.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from jetson_mamba.dispatch.paths import Way
from jetson_mamba.ops import causal_conv1d_fn, mamba_inner_fn, selective_scan_fn
from jetson_mamba.ops.causal_conv1d import causal_conv1d_update
from jetson_mamba.ops.causal_conv1d import op as convolution
from jetson_mamba.ops.selective_scan import op as scan
from tests.ops.ways import going
from tests.references.causal_conv1d import convolve
from tests.references.selective_scan import selective_scan_reference

# torch's own words about what of it is new or old.
pytestmark = pytest.mark.filterwarnings("ignore")


class Function(NamedTuple):
    """An op as a function of tensors that all have gradients, and what it should give."""

    call: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def of_the_scan(is_complex: bool, z: bool, seqlen: int) -> Function:
    torch.manual_seed(0)
    batch, dim, dstate, groups = 2, 4, 3, 2
    A = -torch.rand(dim, dstate, dtype=torch.float64) - 0.1
    if is_complex:
        A = torch.complex(A, drawn(dim, dstate))
    C = drawn(batch, groups, dstate, seqlen * (2 if is_complex else 1))
    B = torch.complex(drawn(dim, dstate), drawn(dim, dstate)) if is_complex else drawn(dim, dstate)
    tensors = [drawn(batch, dim, seqlen), drawn(batch, dim, seqlen) - 1, A, B, C]
    if z:
        tensors += [drawn(dim), drawn(batch, dim, seqlen), drawn(dim)]

    def call(*given: Tensor) -> Tensor:
        D, gate, bias = given[5:] if z else (None, None, None)
        op: Any = selective_scan_fn
        out: Tensor = op(*given[:5], D, gate, bias, True)
        return out

    def reference(*given: Tensor) -> Tensor:
        D, gate, bias = given[5:] if z else (None, None, None)
        scanned: Any = selective_scan_reference
        out: Tensor = scanned(*given[:5], D, gate, bias, True)[1]
        return out

    return Function(call, reference, tuple(tensors))


def of_the_convolution(sequences: bool) -> Function:
    torch.manual_seed(0)
    batch, dim, seqlen, width = 2, 3, 7, 4
    tensors = [drawn(batch, dim, seqlen), drawn(dim, width), drawn(dim)]
    rows = [[0, 0, 1, 1, -1, 2, 2], [0, 1, 0, 1, 0, 1, 1]]
    seq_idx = torch.tensor(rows, dtype=torch.int32) if sequences else None
    if not sequences:
        tensors.append(drawn(batch, dim, width - 1))

    def call(*given: Tensor) -> Tensor:
        states = None if sequences else given[3]
        op: Any = causal_conv1d_fn
        found = op(*given[:3], seq_idx, states, not sequences, None, "silu")
        out: Tensor = found if sequences else torch.cat(found, -1)
        return out

    def reference(*given: Tensor) -> Tensor:
        x, weight, bias, *states = given
        initial = states[0] if states else None
        out, final = convolve(x, weight, bias, seq_idx, initial, silu=True)
        return out if sequences else torch.cat((out, final), -1)

    return Function(call, reference, tuple(tensors))


def of_the_block(normalised: bool) -> Function:
    torch.manual_seed(0)
    batch, dim, seqlen, rank, dstate, width = 2, 4, 5, 2, 3, 3
    tensors = [
        drawn(batch, 2 * dim, seqlen),
        drawn(dim, 1, width),
        drawn(dim),
        drawn(rank + 2 * dstate, dim) / 3,
        drawn(dim, rank),
        drawn(5, dim),
        -torch.rand(dim, dstate, dtype=torch.float64),
        drawn(dim),
        drawn(dim),
    ]
    if normalised:
        tensors += [torch.rand(size, dtype=torch.float64) for size in (dstate, dstate, dim)]
    names = (
        *("xz", "conv1d_weight", "conv1d_bias", "x_proj_weight", "delta_proj_weight"),
        *("out_proj_weight", "A", "D", "delta_bias", "b_rms_weight", "c_rms_weight"),
        "dt_rms_weight",
    )

    def call(*given: Tensor) -> Tensor:
        options: dict[str, Any] = dict(zip(names, given))
        return mamba_inner_fn(out_proj_bias=None, **options)

    def norm(rows: Tensor, weight: Tensor | None) -> Tensor:
        # In float32, which is what it is upstream.
        if weight is None:
            return rows
        wide = rows.float()
        scale = (wide.square().mean(1, keepdim=True) + 1e-6).rsqrt()
        return (wide * scale * weight.float()[:, None]).double()

    def reference(*given: Tensor) -> Tensor:
        xz, taps, bias, x_proj, delta_proj, out_proj, A, D, delta_bias, *weights = given
        b, c, dt = weights if normalised else (None, None, None)
        x, z = xz.chunk(2, 1)
        x, _ = convolve(x, taps[:, 0], bias, silu=True)
        step, B, C = (x_proj @ x).split([rank, dstate, dstate], 1)
        delta, B, C = norm(delta_proj @ step, dt), norm(B, b), norm(C, c)
        out = selective_scan_reference(x, delta, A, B, C, D, z, delta_bias, True)[1]
        return (out_proj @ out).transpose(1, 2)

    return Function(call, reference, tuple(tensors))


FUNCTIONS = {
    "scan": of_the_scan(False, True, 5),
    "scan of many steps": of_the_scan(False, False, 35),
    "scan, complex": of_the_scan(True, True, 5),
    "convolution": of_the_convolution(False),
    "convolution of sequences": of_the_convolution(True),
    "block": of_the_block(False),
    "block, normalised": of_the_block(True),
}
each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
SMALL = {name: each for name, each in FUNCTIONS.items() if "many" not in name}


def close(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def tolerance_of(function: Function) -> float:
    """Where a root mean square is taken it is in float32."""
    return 1e-5 if function is FUNCTIONS["block, normalised"] else 1e-9


def loss(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *tensors: call(*tensors).square().sum().log()


def leaves(function: Function) -> tuple[Tensor, ...]:
    return tuple(each.clone().requires_grad_() for each in function.tensors)


@each_function
def test_second_derivatives(function: Function) -> None:
    """The gradient of a penalty on the gradients, by every tensor."""
    found = []
    for call in (function.call, function.reference):
        of = leaves(function)
        first = torch.autograd.grad(loss(call)(*of), of, create_graph=True)
        penalty = sum(gradient.abs().square().sum() for gradient in first)
        assert isinstance(penalty, Tensor)
        second = torch.autograd.grad(penalty, of, allow_unused=True)
        pairs = zip(of, second)
        found.append((first, [torch.zeros_like(x) if y is None else y for x, y in pairs]))
    close(found[0][0], found[1][0], tolerance_of(function))
    close(found[0][1], found[1][1], 10 * tolerance_of(function))


@pytest.mark.parametrize("function", SMALL.values(), ids=SMALL)
def test_third_derivatives(function: Function) -> None:
    found = []
    for call in (function.call, function.reference):
        first_of, *others = leaves(function)
        value = loss(call)(first_of, *others)
        for _ in range(3):
            (derivative,) = torch.autograd.grad(value, first_of, create_graph=True)
            value = derivative.square().sum()
        found.append(value.detach())
    close(found[0], found[1], 100 * tolerance_of(function))


@each_function
def test_reverse_and_forward_mode_transforms(function: Function) -> None:
    tensors = function.tensors
    everywhere = tuple(range(len(tensors)))
    tolerance = tolerance_of(function)
    tangents = tuple(torch.randn_like(each) for each in tensors)

    def each_transform(call: Callable[..., Tensor]) -> list[Any]:
        vjp: Any = torch.func.vjp
        out, pull = vjp(call, *tensors)
        tangent = torch.func.jvp(call, tensors, tangents)[1]
        with torch.no_grad():
            without = torch.func.jvp(call, tensors, tangents)[1]
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*each) for each in zip(tensors, tangents)]
            dual = forward_ad.unpack_dual(call(*duals)).tangent
        gradients = torch.func.grad(loss(call), everywhere)
        return [
            pull(torch.ones_like(out)),
            tangent,
            without,
            dual,
            gradients(*tensors),
            # Forward over reverse: a product with the matrix of second derivatives.
            torch.func.jvp(gradients, tensors, tangents)[1],
        ]

    for found, expected in zip(each_transform(function.call), each_transform(function.reference)):
        close(found, expected, 10 * tolerance)


@each_function
def test_vmap_over_any_one_tensor_and_over_all(function: Function) -> None:
    tensors, tolerance = function.tensors, tolerance_of(function)
    count = len(tensors)
    for mapped in (*((place,) for place in range(count)), tuple(range(count))):
        dims = tuple(0 if place in mapped else None for place in range(count))
        given = [
            torch.stack((each, each * 0.5, each * 1.5)) if place in mapped else each
            for place, each in enumerate(tensors)
        ]
        found = torch.vmap(function.call, dims)(*given)
        for row in range(3):
            of = [each[row] if place in mapped else each for place, each in enumerate(given)]
            close(found[row], function.reference(*of), tolerance)


@pytest.mark.parametrize("function", SMALL.values(), ids=SMALL)
def test_gradients_of_each_sample(function: Function) -> None:
    tensors, tolerance = function.tensors, tolerance_of(function)
    samples = torch.stack([tensors[0], tensors[0] * 0.5])
    dims = (0, *[None] * (len(tensors) - 1))
    everywhere = tuple(range(len(tensors)))
    found = torch.vmap(torch.func.grad(loss(function.call), everywhere), dims)(
        samples, *tensors[1:]
    )
    expected = torch.func.grad(loss(function.reference), everywhere)
    for row, sample in enumerate(samples):
        of = [gradient[row] for gradient in found]
        close(of, list(expected(sample, *tensors[1:])), tolerance)


@pytest.mark.parametrize("mode", [torch.func.jacfwd, torch.func.jacrev])
@pytest.mark.parametrize("function", SMALL.values(), ids=SMALL)
def test_jacobians(function: Function, mode: Any) -> None:
    if any(each.is_complex() for each in function.tensors):
        pytest.skip("torch takes none by complex numbers")
    jacobian = mode(function.call)(*function.tensors)
    close(jacobian, mode(function.reference)(*function.tensors), tolerance_of(function))


@pytest.mark.parametrize("create_graph", [True, False])
@each_function
def test_a_batch_of_gradients(function: Function, create_graph: bool) -> None:
    """One backward pass for several gradients, which torch shows to no transform."""
    found = []
    for call in (function.call, function.reference):
        of = leaves(function)
        out = call(*of)
        torch.manual_seed(1)
        rows = torch.randn(3, *out.shape, dtype=out.dtype)
        batch = torch.autograd.grad(out, of, rows, is_grads_batched=True, create_graph=create_graph)
        found.append([*batch])
        if create_graph:
            penalty = torch.stack([each.abs().square().sum() for each in batch]).sum().log()
            found[-1].extend(torch.autograd.grad(penalty, of))
    close(found[0], found[1], 10 * tolerance_of(function))


@each_function
def test_a_backward_pass_is_mapped_by_itself(function: Function) -> None:
    of = leaves(function)
    out = function.call(*of)
    rows = torch.randn(2, *out.shape, dtype=out.dtype)

    def pulled(row: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, of, row, retain_graph=True)

    found = torch.vmap(pulled)(rows)
    for place, row in enumerate(rows):
        close([each[place] for each in found], list(pulled(row)), tolerance_of(function))


class Marked(Tensor):
    """A subclass that changes nothing, and is asked of every operation."""


@each_function
def test_subclasses_of_tensors_stay_what_they_are(function: Function) -> None:
    first, *others = function.tensors
    out = function.call(first.as_subclass(Marked), *others)
    assert isinstance(out, Marked)
    close(out.as_subclass(Tensor), function.reference(first, *others), tolerance_of(function))


@pytest.mark.parametrize("way", list(Way))
@pytest.mark.parametrize("reentrant", [True, False])
@each_function
def test_checkpoints(function: Function, reentrant: bool, way: Way) -> None:
    with going(way, scan, convolution) if way is not Way.KERNELS else torch.enable_grad():
        of = leaves(function)
        checkpoint(function.call, *of, use_reentrant=reentrant).square().sum().log().backward()
    expected = leaves(function)
    loss(function.reference)(*expected).backward()
    close([x.grad for x in of], [x.grad for x in expected], 10 * tolerance_of(function))


@pytest.mark.parametrize("create_graph", [True, False])
@each_function
def test_saved_tensors_are_unpacked_once(function: Function, create_graph: bool) -> None:
    packed: list[Tensor] = []
    counts: dict[int, int] = {}

    def pack(tensor: Tensor) -> int:
        packed.append(tensor)
        return len(packed) - 1

    def unpack(place: int) -> Tensor:
        counts[place] = counts.get(place, 0) + 1
        return packed[place]

    of = leaves(function)
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        out = loss(function.call)(*of)
    saved = len(packed)
    torch.autograd.grad(out, of, create_graph=create_graph)
    assert {place: count for place, count in counts.items() if count != 1 and place < saved} == {}


def test_saved_tensors_may_be_kept_elsewhere() -> None:
    for function in FUNCTIONS.values():
        of = leaves(function)
        with torch.autograd.graph.save_on_cpu():
            out = loss(function.call)(*of)
        out.backward()
        expected = leaves(function)
        loss(function.reference)(*expected).backward()
        close([x.grad for x in of], [x.grad for x in expected], tolerance_of(function))


def test_selective_checkpoints_keep_what_they_are_told_to() -> None:
    from torch.utils import checkpoint as checkpoints

    if not hasattr(checkpoints, "create_selective_checkpoint_contexts"):
        pytest.skip("this torch has none")
    function = FUNCTIONS["block"]
    kept = [torch.ops.aten.bmm.default, torch.ops.jetson_mamba.selective_scan_rows.default]
    contexts = partial(checkpoints.create_selective_checkpoint_contexts, kept)
    of = leaves(function)
    out: Tensor = checkpoint(function.call, *of, use_reentrant=False, context_fn=contexts)
    out.square().sum().log().backward()
    expected = leaves(function)
    loss(function.reference)(*expected).backward()
    close([x.grad for x in of], [x.grad for x in expected])


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("indices", [False, True])
def test_a_step_of_the_convolution_is_mapped(indices: bool, ring: bool) -> None:
    x, states, weight = drawn(3, 2, 4), drawn(3, 5, 4, 4), drawn(4, 3)
    places = torch.tensor([3, -1], dtype=torch.int32) if indices else None
    if not indices:
        states = states[:, :2].contiguous()
    steps = torch.tensor([2, 7], dtype=torch.int32) if ring else None

    def step(x: Tensor, state: Tensor) -> Tensor:
        return causal_conv1d_update(x, state, weight, None, "silu", steps, places)

    each_state = states.clone()
    expected = torch.stack([step(*row) for row in zip(x, each_state)])
    close(torch.vmap(step)(x, states), expected)
    close(states, each_state)
