"""The operators that stand for the convolution in a graph, or for the scan.

``torch.library.opcheck`` holds each to its schema, its fake implementation and its gradient, in
eager mode and traced, with static and symbolic sizes.
"""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops import (
    causal_conv1d_bwd,
    causal_conv1d_fn,
    causal_conv1d_update,
    selective_scan_bwd,
    selective_scan_fn,
    selective_scan_fwd,
)
from tests import interpreters
from tests.references.tolerance import relative_norm

# What torch's own checks and compiler warn of is theirs.
pytestmark = [
    pytest.mark.skipif(
        not hasattr(torch.library, "opcheck"), reason="this torch has no operators of this form"
    ),
    pytest.mark.filterwarnings("ignore"),
]
TOLERANCE = 1e-5
# Of the scan only the final output is differentiated, and second derivatives are not compiled.
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor")


def operator(name: str) -> Any:
    return getattr(torch.ops.jetson_mamba, name).default


def drawn(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=grad)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("stateful", [False, True])
def test_the_convolution_keeps_to_its_schema(channels_last: bool, stateful: bool) -> None:
    batch, dim, seqlen, width = 2, 6, 9, 4
    x = drawn(batch, seqlen, dim).transpose(1, 2) if channels_last else drawn(batch, dim, seqlen)
    initial = drawn(batch, dim, width - 1) if stateful else None
    indices = None if stateful else torch.zeros(batch, seqlen, dtype=torch.int32)
    arguments = (x, drawn(dim, width), drawn(dim), indices, initial, stateful, True)
    torch.library.opcheck(operator("causal_conv1d"), arguments)
    gradients = (
        *(each.detach() for each in (x, *arguments[1:3], x)),
        indices,
        None if initial is None else initial.detach(),
        None,
        stateful,
        True,
    )
    torch.library.opcheck(operator("causal_conv1d_backward"), gradients)
    # A function itself, of which derivatives are taken.
    recorded = (x, *arguments[1:3], drawn(batch, dim, seqlen), *gradients[4:])
    torch.library.opcheck(operator("causal_conv1d_backward"), recorded, test_utils=UTILITIES)


def test_the_convolution_of_a_slice_has_the_strides_that_its_fake_tells() -> None:
    x = torch.randn(2, 12, 9)[:, 6:].requires_grad_()
    arguments = (x, drawn(6, 4), None, None, None, False, False)
    torch.library.opcheck(operator("causal_conv1d"), arguments)


def test_the_ops_are_imported_without_torchs_compiler() -> None:
    """It takes longer to import than torch itself."""
    program = "import jetson_mamba.ops, sys; print('torch._dynamo' in sys.modules)"
    done = interpreters.run(["-c", program])
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_inductor_leaves_the_operators_whole_whenever_it_is_imported() -> None:
    """It takes over torch's table of decompositions, which holds what an export puts in place."""
    program = """
import jetson_mamba.ops, sys, torch
from jetson_mamba.dispatch.operators import decompositions
assert decompositions() and "torch._inductor.decomposition" not in sys.modules
from torch._inductor import decomposition as inductor
assert not decompositions().keys() & inductor.decompositions.keys()
if hasattr(torch.export, "default_decompositions"):
    assert not decompositions().keys() - torch.export.default_decompositions().keys()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)


def test_a_step_of_the_convolution_writes_its_state() -> None:
    x, state = drawn(2, 6, 1, grad=False), drawn(2, 6, 3, grad=False)
    arguments = (x, state, drawn(6, 4, grad=False), None, None, None, True)
    torch.library.opcheck(operator("causal_conv1d_update"), arguments)


def scan_arguments(z: bool, groups: int = 2, is_complex: bool = False) -> tuple[Any, ...]:
    batch, dim, seqlen, dstate = 2, 4, 9, 3
    A = -torch.rand(dim, dstate)
    if is_complex:
        A = torch.complex(A, torch.randn(dim, dstate))
    width = seqlen * (2 if is_complex else 1)
    return (
        drawn(batch, dim, seqlen),
        drawn(batch, dim, seqlen),
        A.requires_grad_(),
        drawn(batch, groups, dstate, width),
        drawn(batch, groups, dstate, width),
        drawn(dim) if z else None,
        drawn(batch, dim, seqlen) if z else None,
        drawn(dim) if z else None,
        True,
    )


@pytest.mark.parametrize("z", [False, True])
@pytest.mark.parametrize("is_complex", [False, True])
def test_gradients_of_the_scan_keep_to_their_schema_as_functions_themselves(
    z: bool, is_complex: bool
) -> None:
    arguments = scan_arguments(z, is_complex=is_complex)
    torch.library.opcheck(operator("selective_scan_rows"), (*arguments, 1), test_utils=UTILITIES)
    plain = tuple(each.detach() if isinstance(each, Tensor) else each for each in arguments)
    out, x, _ = operator("selective_scan")(*plain)
    backward = (*arguments, torch.randn_like(out, requires_grad=True), x, out if z else None, z)
    torch.library.opcheck(operator("selective_scan_backward"), backward, test_utils=UTILITIES)


@pytest.mark.parametrize("z", [False, True])
@pytest.mark.parametrize("is_complex", [False, True])
def test_the_scan_keeps_to_its_schema(z: bool, is_complex: bool) -> None:
    arguments = scan_arguments(z, is_complex=is_complex)
    torch.library.opcheck(operator("selective_scan"), arguments, test_utils=UTILITIES)
    plain = tuple(each.detach() if isinstance(each, Tensor) else each for each in arguments)
    torch.library.opcheck(operator("selective_scan_output"), plain)
    out, x, _ = operator("selective_scan")(*plain)
    backward = (*plain, torch.randn_like(out), x, out if z else None, z)
    torch.library.opcheck(operator("selective_scan_backward"), backward)


def compare(function: Callable[..., Tensor], arguments: tuple[Any, ...], **options: Any) -> None:
    """Hold a compiled function, whole in one graph, to itself: output and gradients."""
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", **options)
    results = []
    for each in (function, compiled):
        leaves = [
            argument.detach().clone().requires_grad_(argument.requires_grad)
            if isinstance(argument, Tensor)
            else argument
            for argument in arguments
        ]
        out = each(*leaves)
        wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
        results.append([out, *torch.autograd.grad((out * weights).sum(), wanted)])
    for found, expected in zip(results[1], results[0]):
        assert relative_norm(found, expected) < TOLERANCE


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_convolution_compiles_without_a_break(dynamic: bool) -> None:
    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = causal_conv1d_fn(x, weight, bias, activation="silu")
        return out

    for seqlen in (9, 12):
        compare(function, (drawn(2, 6, seqlen), drawn(6, 4), drawn(6)), dynamic=dynamic)


def test_the_final_states_of_a_compiled_convolution_are_written_where_they_are_wanted() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(x: Tensor, weight: Tensor, states: Tensor) -> Tensor:
        out: Tensor = causal_conv1d_fn(x, weight, final_states_out=states)
        return out

    x, weight = drawn(2, 6, 9, grad=False), drawn(6, 4, grad=False)
    states, expected = torch.zeros(2, 6, 3), torch.zeros(2, 6, 3)
    out = function(x, weight, states)
    torch.testing.assert_close(out, causal_conv1d_fn(x, weight, final_states_out=expected))
    assert torch.equal(states, expected)


def test_a_compiled_step_writes_the_state_of_its_caller() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(x: Tensor, state: Tensor, weight: Tensor) -> Tensor:
        return causal_conv1d_update(x, state, weight, activation="silu")

    x, weight, state = (drawn(*shape, grad=False) for shape in ((2, 6), (6, 4), (2, 6, 4)))
    expected_state = state.clone()
    expected = causal_conv1d_update(x, expected_state, weight, activation="silu")
    torch.testing.assert_close(function(x, state, weight), expected)
    assert torch.equal(state, expected_state)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("z", [False, True])
def test_the_scan_compiles_without_a_break(z: bool, dynamic: bool) -> None:
    def function(*arguments: Any) -> Tensor:
        out = selective_scan_fn(*arguments)
        assert isinstance(out, Tensor)
        return out

    compare(function, scan_arguments(z), dynamic=dynamic)


def test_a_compiled_scan_gives_its_last_state() -> None:
    arguments = (*scan_arguments(True), True)
    compiled = torch.compile(selective_scan_fn, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(*arguments), selective_scan_fn(*arguments)):
        torch.testing.assert_close(found, expected)


def test_calls_of_the_extension_compile_inside_an_autograd_function_of_a_fork() -> None:
    """A fork's function calls forward and backward itself, and gives the targets to write to."""

    class ForksFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, xz: Tensor, weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
            x, z = xz.chunk(2, dim=1)
            u = causal_conv1d_fn(x, weight, activation="silu")
            out, states, out_z = selective_scan_fwd(u, u, A, B, B, None, z, None, True)
            ctx.save_for_backward(xz, weight, A, B, u, out, states)
            return out_z

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
            xz, weight, A, B, u, out, states = ctx.saved_tensors
            x, z = xz.chunk(2, dim=1)
            dxz = torch.empty_like(xz)
            dx, dz = dxz.chunk(2, dim=1)
            gradients: list[Any] = selective_scan_bwd(
                u, u, A, B, B, None, z, None, dout, states, out, dz, True, True
            )
            du, ddelta, dA, dB, dC = gradients[:5]
            _, dweight, *_ = causal_conv1d_bwd(
                x, weight, None, du + ddelta, dx=dx, activation="silu"
            )
            return dxz, dweight, dA, dB + dC

    def function(*arguments: Tensor) -> Tensor:
        out: Tensor = ForksFunction.apply(*arguments)  # type: ignore[no-untyped-call]
        return out

    A = (-torch.rand(4, 3)).requires_grad_()
    compare(function, (drawn(2, 8, 9), drawn(4, 4), A, drawn(2, 1, 3, 9)))


def test_an_autograd_function_of_a_fork_is_not_differentiated_in_part() -> None:
    """Its second derivative is an error: not zero, and not what the op alone can see of it."""

    class ForksScan(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, u: Tensor, A: Tensor, B: Tensor, weight: Tensor) -> Tensor:
            inner = causal_conv1d_fn(u * u, weight)
            out, states = selective_scan_fwd(inner, u, A, B, B, None, None, None, True)
            ctx.save_for_backward(u, inner, A, B, weight, states)
            return out

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> Any:
            u, inner, A, B, weight, states = ctx.saved_tensors
            found: list[Any] = selective_scan_bwd(
                inner, u, A, B, B, None, None, None, dout, states, None, None, True, False
            )
            dinner, dweight, *_ = causal_conv1d_bwd(u * u, weight, None, found[0])
            return 2 * u * dinner + found[1], found[2], found[3] + found[4], dweight

    leaves = [drawn(2, 4, 9), (-torch.rand(4, 3)).requires_grad_(), drawn(2, 1, 3, 9), drawn(4, 4)]

    def function(*tensors: Tensor) -> Tensor:
        out: Tensor = ForksScan.apply(*tensors)  # type: ignore[no-untyped-call]
        return out.square().sum()

    once = torch.autograd.grad(function(*leaves), leaves)
    recorded = torch.autograd.grad(function(*leaves), leaves, create_graph=True)
    torch.testing.assert_close(recorded, once)
    rows = torch.ones(1)
    batch = torch.autograd.grad(function(*leaves), leaves, rows, is_grads_batched=True)
    torch.testing.assert_close([each[0] for each in batch], list(once), rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(
            function(*leaves), leaves, rows, is_grads_batched=True, create_graph=True
        )
    for gradient in recorded:
        with pytest.raises(RuntimeError, match="second derivatives"):
            torch.autograd.grad(gradient.sum(), leaves, allow_unused=True, retain_graph=True)
    # What writes into a part of a larger gradient is refused at once.
    x, dxz = drawn(2, 4, 9), torch.zeros(2, 8, 9)

    class ForksConvolution(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            out: Tensor = causal_conv1d_fn(x, weight)
            return out

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> Any:
            x, weight = ctx.saved_tensors
            dx, _ = dxz.clone().chunk(2, 1)
            dx, dweight, *_ = causal_conv1d_bwd(x, weight, None, dout, dx=dx)
            return dx, dweight

    call: Any = ForksConvolution.apply
    torch.autograd.grad(call(x, leaves[3]).sum(), x)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(call(x, leaves[3]).sum(), x, create_graph=True)


class Everything(torch.nn.Module):
    """The convolution and the scan, as a program to export."""

    def forward(self, x: Tensor, weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """Both of them."""
        u, states = causal_conv1d_fn(x, weight, return_final_states=True, activation="silu")
        out = selective_scan_fn(u, x, A, B, B, z=x, delta_softplus=True)
        assert isinstance(out, Tensor)
        total: Tensor = states.sum()
        return out * total


def everything() -> list[Tensor]:
    A = (-torch.rand(4, 3, dtype=torch.float64)).requires_grad_()
    wide = torch.float64
    return [drawn(2, 4, 9, dtype=wide), drawn(4, 3, dtype=wide), A, drawn(2, 3, 9, dtype=wide)]


@pytest.mark.parametrize("decomposed", [False, True])
def test_second_derivatives_of_an_exported_program_are_those_of_the_function(
    decomposed: bool,
) -> None:
    leaves = everything()
    program = torch.export.export(Everything(), tuple(leaves))
    if decomposed:
        program = program.run_decompositions()
    results = []
    for call in (Everything(), program.module()):
        first = torch.autograd.grad(call(*leaves).square().sum(), leaves, create_graph=True)
        penalty = torch.stack([gradient.square().sum() for gradient in first]).sum()
        results.append([*first, *torch.autograd.grad(penalty, leaves)])
    torch.testing.assert_close(results[1], results[0])


def test_an_exported_program_is_mapped() -> None:
    if not hasattr(torch.library, "register_vmap"):
        pytest.skip("this torch maps no operators of others")
    given = [each.detach() for each in everything()]
    called = torch.export.export(Everything(), tuple(given)).module()
    xs = torch.stack([given[0], given[0] * 0.5, given[0] * 2])
    with torch.no_grad():
        found = torch.vmap(called, (0, None, None, None))(xs, *given[1:])
        for row, x in zip(found, xs):
            torch.testing.assert_close(row, Everything()(x, *given[1:]))


def transformed(run: Callable[..., Tensor], given: list[Tensor]) -> list[Any]:
    """A gradient, a tangent, gradients of each sample, and a derivative of a gradient."""
    x, *others = given

    def loss(x: Tensor) -> Tensor:
        return run(x, *others).square().sum()

    gradient = torch.func.grad(loss)
    return [
        gradient(x),
        torch.func.jvp(lambda x: run(x, *others), (x,), (x.cos(),))[1],
        torch.func.vmap(gradient)(torch.stack([x, x / 2])),
        torch.func.grad(lambda x: gradient(x).square().sum())(x),
    ]


def test_an_exported_program_is_transformed() -> None:
    given = [each.detach() for each in everything()]
    called = torch.export.export(Everything(), tuple(given)).module()
    torch.testing.assert_close(transformed(called, given), transformed(Everything(), given))


def test_a_transform_is_compiled() -> None:
    given = [each.detach() for each in everything()]
    gradient = torch.func.grad(lambda *tensors: Everything()(*tensors).square().sum(), (0, 1, 2, 3))
    compiled = torch.compile(gradient, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), gradient(*given))


def other_rows(case: Any) -> Any:
    """A backend that keeps three rows where PyTorch's keeps one, and can check them."""
    from jetson_mamba.ops.selective_scan import pytorch

    whole = pytorch.IMPLEMENTATION

    def rows(seqlen: int) -> int:
        return 3 * whole.rows(seqlen)

    def forward(scan: Any) -> Any:
        found = whole.forward(scan)
        return found._replace(x=found.x.repeat_interleave(3, dim=2))

    def backward(scan: Any, returning: Any) -> Any:
        x = returning.x
        if x is not None and x.shape[2] == rows(scan.u.shape[2]):
            torch.testing.assert_close(x, forward(scan).x)
        return whole.backward(scan, returning._replace(x=None))

    return whole._replace(forward=forward, backward=backward, rows=rows)


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("traced", ["other", "pytorch"])
@pytest.mark.parametrize("there", [True, False])
def test_a_graph_outlives_the_backend_that_it_was_traced_with(
    monkeypatch: pytest.MonkeyPatch, traced: str, there: bool, decomposed: bool
) -> None:
    import jetson_mamba
    from jetson_mamba.ops.selective_scan import op as selective_scan

    module: Any = ModuleType("jetson_mamba.ops.selective_scan.other")
    module.load = other_rows
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(selective_scan.OP, "order", ("other", "pytorch"))
    selective_scan._named.cache_clear()
    leaves = everything()
    switched = {"other": "pytorch", "pytorch": "other"}[traced]
    expected = torch.autograd.grad(Everything()(*leaves).sum(), leaves)
    with jetson_mamba.backend(selective_scan=traced):
        torch._dynamo.reset()
        calls: list[Any] = [torch.compile(Everything(), fullgraph=True, backend="aot_eager")]
        program = torch.export.export(Everything(), tuple(leaves))
        calls.append((program.run_decompositions() if decomposed else program).module())
        results = [call(*leaves) for call in calls]
    if not there:
        # As on another machine.
        monkeypatch.setattr(selective_scan._OPERATORS, "_others", lambda case: ())
    for call, result in zip(calls, results):
        with jetson_mamba.backend(selective_scan=switched):
            # Forward under the one and backward under the other, then both under the other.
            if there:
                found = torch.autograd.grad(result.sum(), leaves)
                torch.testing.assert_close(found, expected)
            out = call(*leaves)
            found = torch.autograd.grad(out.sum(), leaves)
            torch.testing.assert_close(found, expected)
            out = call(*leaves)
        if there:
            with jetson_mamba.backend(selective_scan=traced):
                torch.testing.assert_close(torch.autograd.grad(out.sum(), leaves), expected)
    selective_scan._named.cache_clear()
