"""The selective scan: every backend held to the float64 loop, and what the op promises besides."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
import warnings
from contextlib import contextmanager
from typing import Any, Iterator, NamedTuple, cast

import pytest
import torch
from torch import Tensor

import tests.emulated
from jetson_mamba.dispatch.backends import BackendWarning, Op
from jetson_mamba.dispatch.paths import Way
from jetson_mamba.ops.selective_scan import op as selective_scan
from jetson_mamba.ops.selective_scan import (
    selective_scan_bwd,
    selective_scan_fn,
    selective_scan_fwd,
)
from jetson_mamba.ops.selective_scan.contract import Case, Scan
from tests.ops.ways import going
from tests.references.once import once
from tests.references.selective_scan import selective_scan_reference
from tests.references.tolerance import relative_norm

CHUNK = 2048
TENSORS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
GRADIENTS = ("du", "ddelta", "dA", "dB", "dC", "dD", "ddelta_bias", "dz")
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.2e-2,
}


class Variant(NamedTuple):
    """One combination of arguments."""

    is_complex: bool = False
    variable_b: bool = True
    variable_c: bool = True
    groups: int = 2
    d: bool = True
    z: bool = True
    delta_bias: bool = True
    softplus: bool = True
    seqlen: int = 35
    dtype: torch.dtype = torch.float32
    batch: int = 2
    dim: int = 6
    dstate: int = 5
    stiff: bool = False
    steep: bool = False


def kinds(**others: Any) -> list[Variant]:
    """Real and complex A, with B and C each constant and variable."""
    return [
        Variant(is_complex, variable_b, variable_c, **others)
        for is_complex in (False, True)
        for variable_b in (True, False)
        for variable_c in (True, False)
    ]


VARIANTS = [
    *kinds(),
    *kinds(d=False, z=False, delta_bias=False, softplus=False, seqlen=7),
    *kinds(groups=1, z=False, seqlen=1),
    Variant(groups=3, delta_bias=False),
    Variant(groups=6, d=False),
    Variant(softplus=False),
    *(
        Variant(seqlen=length, batch=1, dim=4, dstate=3, is_complex=is_complex)
        for length in (2047, 2048, 2049)
        for is_complex in (False, True)
    ),
    Variant(False, False, False, seqlen=2049, batch=1, dim=4, dstate=3),
    Variant(seqlen=8192, batch=1, dim=2, dstate=2),
    Variant(seqlen=600, stiff=True, softplus=False),
    Variant(seqlen=600, stiff=True, is_complex=True),
    *kinds(dtype=torch.float64),
    Variant(dtype=torch.float64, steep=True, delta_bias=False, seqlen=13),
    Variant(dtype=torch.float64, steep=True, seqlen=13),
    *kinds(dtype=torch.bfloat16),
    *kinds(dtype=torch.float16),
    Variant(batch=1, dim=600, seqlen=130, dstate=16),
    Variant(dim=2, dstate=256, groups=1, seqlen=9),
]


def named(variant: Variant) -> str:
    """What sets the variant apart, as a test's name."""
    told = [
        f"{name}={str(value).replace('torch.', '')}"
        for name, value in variant._asdict().items()
        if value != Variant._field_defaults[name]
    ]
    return ",".join(told) or "default"


class Arguments(NamedTuple):
    """What is scanned, and the gradient that comes back."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    dout: Tensor


def drawn(variant: Variant, device: str = "cpu") -> Arguments:
    torch.manual_seed(0)
    dtype = variant.dtype
    real = torch.promote_types(dtype, torch.float32)
    rows = (variant.batch, variant.dim, variant.seqlen)
    dim, dstate = variant.dim, variant.dstate
    A = -torch.rand(dim, dstate, dtype=torch.float64) - 0.1
    delta = torch.randn(rows, dtype=torch.float64) - 1
    if variant.stiff:
        A = -torch.logspace(-4, 2, dim * dstate, dtype=torch.float64).view(dim, dstate)
        delta = torch.logspace(-3, 1, variant.seqlen, dtype=torch.float64).expand(rows)
        delta = delta * (0.5 + 0.5 * torch.rand(rows, dtype=torch.float64))
    elif variant.steep:
        # On both sides of the threshold past which softplus is its argument: 1e-9 less than it.
        A = A / 100
        delta = torch.linspace(19, 22, variant.seqlen, dtype=torch.float64).expand(rows)
    elif not variant.softplus:
        delta = delta.abs()
    if variant.is_complex:
        # In float32 the angle of a long step rounds by itself, whatever computes with it.
        turns = 0.3 if variant.stiff else 3.0
        A = torch.complex(A, turns * torch.randn(dim, dstate, dtype=torch.float64))
    weights = torch.promote_types(real, torch.complex64) if variant.is_complex else real

    def weight(variable: bool) -> Tensor:
        if not variable:
            return torch.randn(dim, dstate, dtype=weights)
        width = variant.seqlen * (2 if variant.is_complex else 1)
        return torch.randn(variant.batch, variant.groups, dstate, width).to(dtype)

    found = Arguments(
        torch.randn(rows).to(dtype),
        delta.to(dtype),
        A.to(weights),
        weight(variant.variable_b),
        weight(variant.variable_c),
        torch.randn(dim, dtype=real) if variant.d else None,
        torch.randn(rows).to(dtype) if variant.z else None,
        torch.rand(dim, dtype=real) if variant.delta_bias else None,
        variant.softplus,
        torch.randn(rows).to(dtype),
    )
    return Arguments(*(on(device, field) for field in found))


def on(device: str, field: Any) -> Any:
    return field.to(device) if isinstance(field, Tensor) else field


def fwd(arguments: Arguments) -> list[Any]:
    return list(selective_scan_fwd(*arguments[:9]))


def bwd(
    arguments: Arguments,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None = None,
    recompute_out_z: bool = True,
) -> list[Any]:
    *tensors, delta_softplus, dout = arguments
    call: Any = selective_scan_bwd
    return list(call(*tensors, dout, x, out, dz, delta_softplus, recompute_out_z))


def fn(arguments: Arguments, return_last_state: bool = False) -> Any:
    return selective_scan_fn(*arguments[:9], return_last_state)


class Reference(NamedTuple):
    """The float64 results; ``gradients`` by name, for the tensors that are given."""

    out: Tensor
    out_z: Tensor
    states: Tensor
    decays: Tensor
    gradients: dict[str, Tensor]


@once
def reference(arguments: Arguments) -> Reference:
    leaves: list[Any] = [
        field.to(torch.complex128 if field.is_complex() else torch.float64).requires_grad_()
        if isinstance(field, Tensor)
        else field
        for field in arguments[:8]
    ]
    scanned: Any = selective_scan_reference
    out, out_z, states, decays = scanned(*leaves, arguments.delta_softplus)
    given = [place for place, leaf in enumerate(leaves) if leaf is not None]
    gradients = torch.autograd.grad(
        out_z, [leaves[place] for place in given], arguments.dout.double()
    )
    return Reference(
        out.detach(),
        out_z.detach(),
        states.detach(),
        decays.detach(),
        {"d" + TENSORS[place]: found for place, found in zip(given, gradients)},
    )


def hold_to_reference(arguments: Arguments, upstream_rows: bool = True) -> None:
    """Forward and backward of the op agree with the reference within each result's dtype.

    ``upstream_rows``: whether x is in upstream's form, with the states of every 2048 steps.
    """
    expected = reference(arguments)
    u, z = arguments.u, arguments.z

    def close(name: str, actual: Tensor | None, right: Tensor) -> None:
        assert actual is not None, name
        assert actual.shape == right.shape, name
        if not right.any():
            assert not actual.any(), name
            return
        dtype = actual.real.dtype if actual.is_complex() else actual.dtype
        error = relative_norm(actual, right)
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"

    out, x, *gated = fwd(arguments)
    assert len(gated) == (z is not None)
    close("out", out, expected.out)
    if z is not None:
        close("out_z", gated[0], expected.out_z)
    close("last state", x[:, :, -1, 1::2], expected.states[..., -1])
    if upstream_rows:
        ends = [*range(CHUNK - 1, u.shape[2] - 1, CHUNK), u.shape[2] - 1]
        close("states", x[..., 1::2], expected.states[..., ends].transpose(-1, -2))
        products = expected.decays.cumprod(-1)[..., ends].transpose(-1, -2)
        torch.testing.assert_close(x[..., 0::2].to(products), products, atol=1e-5, rtol=1e-4)

    found = bwd(arguments, x, out, recompute_out_z=z is not None)
    assert len(found) == (9 if z is not None else 7)
    for name, gradient in zip(GRADIENTS, found):
        if name in expected.gradients:
            close(name, gradient, expected.gradients[name])
        else:
            assert gradient is None, name
    if z is not None:
        close("recomputed out_z", found[8], expected.out_z)


def use_only(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = Op("selective_scan", selective_scan.OP._package, (backend,), selective_scan.OP._trial)
    monkeypatch.setattr(selective_scan, "OP", op)


@pytest.fixture(params=["pytorch", "extension"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name: str = request.param
    with tests.emulated.installed(selective_scan=True):
        use_only(name, monkeypatch)
        yield name


def without_extension(monkeypatch: pytest.MonkeyPatch) -> Op[Any, Any]:
    """The op as it stands on a machine with nothing installed, no choice made yet."""
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    whole = selective_scan.OP
    op = Op("selective_scan", selective_scan.OP._package, whole.order, whole._trial)
    monkeypatch.setattr(selective_scan, "OP", op)
    return op


@contextmanager
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_agrees_with_the_loop_over_time(backend: str, variant: Variant) -> None:
    if backend == "extension" and variant.dtype == torch.float64:
        pytest.skip("the extension takes no float64")
    hold_to_reference(drawn(variant))


@pytest.mark.parametrize("way", [Way.OPERATORS, Way.COMPOSED])
@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_agrees_by_every_way(monkeypatch: pytest.MonkeyPatch, way: Way, variant: Variant) -> None:
    use_only("pytorch", monkeypatch)
    with going(way, selective_scan):
        hold_to_reference(drawn(variant))


def test_agrees_with_strided_arguments(backend: str) -> None:
    arguments = drawn(Variant(seqlen=256, dim=4))
    assert arguments.z is not None
    assert arguments.D is not None
    doubled = torch.cat((arguments.z, arguments.u), 1)
    strided = arguments._replace(
        u=doubled[:, 4:],
        z=doubled[:, :4],
        delta=arguments.delta.transpose(1, 2).contiguous().transpose(1, 2),
        A=arguments.A.t().contiguous().t(),
        B=arguments.B.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
        C=torch.cat((arguments.C[..., :1], arguments.C), -1)[..., 1:],
        D=arguments.D.repeat_interleave(2)[::2],
        dout=arguments.dout[:, :1].expand(-1, 4, -1),
    )
    hold_to_reference(strided)


def test_agrees_when_one_tensor_is_passed_twice(backend: str) -> None:
    arguments = drawn(Variant(softplus=True))
    u, B = arguments.u, arguments.B
    hold_to_reference(arguments._replace(delta=u, z=u, C=B, dout=u))


def test_arguments_are_left_as_they_were(backend: str) -> None:
    arguments = drawn(Variant(dim=1, groups=1, batch=1, dstate=1))
    before = [
        on("cpu", field).clone() if isinstance(field, Tensor) else field for field in arguments
    ]
    out, x, _ = fwd(arguments)
    bwd(arguments, x, out, None, True)
    for field, copy in zip(arguments, before):
        assert field is copy or torch.equal(*cast(Any, (field, copy)))


@pytest.mark.parametrize("layout", ["own", "half", "steps apart"])
def test_backward_writes_into_the_given_dz(backend: str, layout: str) -> None:
    arguments = drawn(Variant(seqlen=130))
    u = arguments.u
    batch, dim, seqlen = u.shape
    whole = torch.full((batch, 2 * dim, seqlen), 7.0)
    given = {
        "own": torch.empty_like(u),
        "half": whole.chunk(2, dim=1)[1],
        "steps apart": torch.empty(batch, seqlen, dim).transpose(1, 2),
    }[layout]
    out, x, _ = fwd(arguments)
    found = bwd(arguments, x, out, given, False)
    assert len(found) == 8
    assert found[7] is not None
    assert found[7].data_ptr() == given.data_ptr()
    assert found[7].stride() == given.stride()
    assert relative_norm(given, reference(arguments).gradients["dz"]) < 1e-5
    assert bool((whole[:, :dim] == 7).all())


@pytest.mark.parametrize(("z", "recompute", "count"), [(0, 0, 7), (1, 0, 8), (1, 1, 9)])
def test_number_of_results(backend: str, z: int, recompute: int, count: int) -> None:
    arguments = drawn(Variant(z=bool(z)))
    out, x, *gated = fwd(arguments)
    assert len(gated) == z
    found = bwd(arguments, x, out, None, bool(recompute))
    assert len(found) == count
    if recompute:
        assert torch.allclose(found[8], gated[0])


@pytest.mark.parametrize("seqlen", [35, 2049])
@pytest.mark.parametrize("rows", [0, 5])
def test_backward_needs_no_states_of_its_own_making(backend: str, seqlen: int, rows: int) -> None:
    arguments = drawn(Variant(seqlen=seqlen, batch=1, dim=2, dstate=2))
    out, x, _ = fwd(arguments)
    other = x[:, :, :1].expand(-1, -1, rows, -1) if rows else None
    for one, expected in zip(bwd(arguments, other, out), bwd(arguments, x, out)):
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("gated", [False, True])
def test_the_output_alone_is_what_the_forward_pass_gives_last(backend: str, gated: bool) -> None:
    scan = Scan(*drawn(Variant(z=gated))[:9])
    case = Case(scan.u.device, scan.u.dtype, False, scan.A.shape[1])
    implementation = selective_scan.OP.implementation(case)
    scanned = implementation.forward(scan)
    last = scanned.out_z if gated else scanned.out
    assert last is not None
    assert torch.equal(implementation.output(scan), last)


def test_the_last_state_is_the_reference_s(backend: str) -> None:
    arguments = drawn(Variant(seqlen=2050, batch=1, dim=2, dstate=2))
    output, last_state = fn(arguments, return_last_state=True)
    expected = reference(arguments)
    assert relative_norm(output, expected.out_z) < 1e-5
    assert relative_norm(last_state, expected.states[..., -1]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", kinds(groups=1), ids=named)
def test_dtypes_are_the_extension_s(
    variant: Variant, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_only("pytorch", monkeypatch)
    arguments = drawn(variant._replace(dtype=dtype))
    out, x, out_z = fwd(arguments)
    assert out.dtype == out_z.dtype == dtype
    assert x.dtype == arguments.A.dtype
    found = bwd(arguments, x, out, None, True)
    for name, gradient in zip(GRADIENTS, found):
        assert gradient.dtype == getattr(arguments, name[1:]).dtype, name
    assert found[8].dtype == dtype


@pytest.mark.parametrize("narrow", [("u",), ("delta", "B", "C"), ("u", "delta"), ("z",), ("B",)])
def test_mixed_dtypes_are_computed_in_the_widest(backend: str, narrow: tuple[str, ...]) -> None:
    arguments = drawn(Variant())
    mixed = arguments._replace(
        **{name: getattr(arguments, name).to(torch.bfloat16) for name in narrow}
    )
    out, x, out_z = fwd(mixed)
    assert out.dtype == out_z.dtype == mixed.u.dtype
    assert x.dtype == torch.float32
    assert mixed.z is not None
    dz = torch.empty_like(mixed.z)
    found = bwd(mixed, x, out, dz, True)
    assert found[7] is dz
    expected = reference(mixed).gradients
    for name, gradient in zip(GRADIENTS, found):
        assert gradient is not None
        assert gradient.dtype == getattr(mixed, name[1:]).dtype, name
        # A narrow u makes `out`, from which dz is computed, narrow too.
        rounded = name == "dz" and "u" in narrow
        tolerance = TOLERANCE[torch.bfloat16 if rounded else gradient.dtype]
        assert relative_norm(gradient, expected[name]) <= tolerance, name


def test_float64_parameters_make_the_scan_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    use_only("pytorch", monkeypatch)
    arguments = drawn(Variant())
    out, x, _ = fwd(arguments._replace(A=arguments.A.double()))
    assert out.dtype == torch.float32
    assert x.dtype == torch.float64
    exact = reference(arguments).states[..., -1]
    assert relative_norm(x[:, :, -1, 1::2], exact) < 1e-11


def test_autocast_does_not_narrow_the_sums(backend: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hold_to_reference(drawn(Variant(seqlen=130)))


@pytest.mark.parametrize("variant", kinds(seqlen=6, dtype=torch.float64), ids=named)
def test_gradcheck(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    use_only("pytorch", monkeypatch)
    arguments = drawn(variant._replace(dim=4, dstate=2))
    leaves = [field.requires_grad_() if isinstance(field, Tensor) else field for field in arguments]
    assert torch.autograd.gradcheck(selective_scan_fn, cast(Any, tuple(leaves[:9])))


@pytest.mark.parametrize("name", TENSORS)
def test_any_one_tensor_may_ask_for_a_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_only("pytorch", monkeypatch)
    arguments = drawn(Variant())
    leaf = getattr(arguments, name).requires_grad_()
    fn(arguments).backward(arguments.dout)
    assert relative_norm(leaf.grad, reference(arguments).gradients["d" + name]) < 1e-5
    assert all(
        field.grad is None for field in arguments if isinstance(field, Tensor) and field is not leaf
    )


@pytest.mark.parametrize("is_complex", [False, True])
def test_one_group_may_leave_the_groups_out(
    is_complex: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_only("pytorch", monkeypatch)
    arguments = drawn(Variant(is_complex=is_complex, groups=1))
    B, C = arguments.B.squeeze(1).requires_grad_(), arguments.C.squeeze(1).requires_grad_()
    fn(arguments._replace(B=B, C=C)).backward(arguments.dout)
    expected = reference(arguments).gradients
    assert B.grad is not None
    assert C.grad is not None
    assert relative_norm(B.grad, expected["dB"].squeeze(1)) < 1e-5
    assert relative_norm(C.grad, expected["dC"].squeeze(1)) < 1e-5


def test_the_last_state_sends_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    use_only("pytorch", monkeypatch)
    arguments = drawn(Variant())
    arguments.u.requires_grad_()
    output, last_state = fn(arguments, return_last_state=True)
    assert output.requires_grad
    assert not last_state.requires_grad


BAD = {
    "u no tensor": ({"u": [1.0]}, TypeError, "u: expected a tensor, found list"),
    "u integer": ({"u": torch.ones(2, 6, 35).int()}, TypeError, r"u: expected one of .*int32"),
    "u 2-d": ({"u": torch.ones(6, 35)}, ValueError, r"u: expected 3 dim.*found \(6, 35\)"),
    "u empty": ({"u": torch.ones(2, 6, 0)}, ValueError, r"u: expected at least one step"),
    "delta short": ({"delta": torch.ones(2, 6, 34)}, ValueError, r"delta: .*35\), found .*34\)"),
    "delta complex": ({"delta": torch.ones(2, 6, 35) * 1j}, TypeError, "delta: .*complex64"),
    "delta elsewhere": (
        {"delta": torch.ones(2, 6, 35, device="meta")},
        ValueError,
        "delta: expected the device of u, cpu, found meta",
    ),
    "A other dim": ({"A": torch.ones(5, 5)}, ValueError, r"A: .*dim=6.*found \(5, 5\)"),
    "A without states": ({"A": torch.ones(6, 0)}, ValueError, r"A: .*found \(6, 0\)"),
    "B other dstate": (
        {"B": torch.ones(2, 2, 4, 35)},
        ValueError,
        r"B: expected shape .*dstate=5.* found \(2, 2, 4, 35\)",
    ),
    "B groups that do not divide dim": (
        {"B": torch.ones(2, 4, 5, 35)},
        ValueError,
        r"B: expected .*a divisor of dim=6",
    ),
    "B 3-d": ({"B": torch.ones(2, 5, 35)}, ValueError, r"B: expected .*found \(2, 5, 35\)"),
    "B of width for complex A": ({"B": torch.ones(2, 2, 5, 70)}, ValueError, "B: .*35.*70"),
    "constant B complex": ({"B": torch.ones(6, 5) * 1j}, TypeError, "B: .*complex64"),
    "C of other groups": ({"C": torch.ones(2, 3, 5, 35)}, ValueError, "C: .*2 groups.*found 3"),
    "D too long": ({"D": torch.ones(7)}, ValueError, r"D: expected .*\(6,\), found \(7,\)"),
    "z None-like": ({"z": False}, TypeError, "z: expected a tensor, found bool"),
    "z other shape": ({"z": torch.ones(2, 6, 3)}, ValueError, "z: .*found"),
    "delta_bias 2-d": ({"delta_bias": torch.ones(6, 1)}, ValueError, r"delta_bias: .*\(6, 1\)"),
}


@pytest.mark.parametrize(("changes", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = drawn(Variant())._replace(**changes)
    with pytest.raises(error, match=message):
        fwd(arguments)


BAD_BACKWARD = {
    "dout short": ({"dout": torch.ones(2, 6, 34)}, ValueError, "dout: .*found"),
    "x of other states": ({"x": torch.ones(2, 6, 2, 9)}, ValueError, r"x: expected .*10\), found"),
    "x complex": ({"x": torch.ones(2, 6, 1, 10) * 1j}, TypeError, "x: expected torch.float32"),
    "out missing": ({"out": None}, ValueError, "out: expected .*found None"),
    "dz short": ({"dz": torch.ones(2, 6, 34)}, ValueError, "dz: .*found"),
    "out_z without z": ({"z": None}, ValueError, "recompute_out_z: expected False"),
}


@pytest.mark.parametrize(("changes", "error", "message"), BAD_BACKWARD.values(), ids=BAD_BACKWARD)
def test_bad_input_of_backward_is_named(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = drawn(Variant())
    out, x, _ = fwd(arguments)
    given = dict(arguments._asdict(), x=x, out=out, dz=None)
    given.update(changes)
    order = (*TENSORS, "dout", "x", "out", "dz", "delta_softplus")
    call: Any = selective_scan_bwd
    with pytest.raises(error, match=message):
        call(*(given[name] for name in order), True)


def test_nothing_installed_means_pytorch_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    op = without_extension(monkeypatch)
    with no_warnings():
        hold_to_reference(drawn(Variant()))
    (choice,) = op.choices().values()
    assert choice.backend == "pytorch"
    assert ("extension", "selective_scan_cuda is not installed") in choice.passed_over


def test_an_extension_for_cuda_is_passed_over_on_the_cpu_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    op = without_extension(monkeypatch)
    cuda_only = tests.emulated.CUDA_ONLY
    with tests.emulated.installed(selective_scan=True, failure=cuda_only), no_warnings():
        hold_to_reference(drawn(Variant()))
    (choice,) = op.choices().values()
    assert choice.backend == "pytorch"
    assert "is_cuda() to be true" in dict(choice.passed_over)["extension"]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (tests.emulated.UNDEFINED_SYMBOL, "undefined symbol"),
        (tests.emulated.NO_KERNEL_IMAGE, "no kernel image"),
        (tests.emulated.WRONG_RESULTS, "is wrong by"),
    ],
)
def test_an_extension_that_does_not_work_is_named_once(
    failure: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = without_extension(monkeypatch)
    broken = tests.emulated.installed(selective_scan=True, failure=failure)
    with broken, pytest.warns(BackendWarning, match=message) as caught:
        hold_to_reference(drawn(Variant()))
        hold_to_reference(drawn(Variant(dtype=torch.bfloat16)))
    assert len(caught) == 1
    assert {choice.backend for choice in op.choices().values()} == {"pytorch"}


def test_a_working_extension_is_used_first(monkeypatch: pytest.MonkeyPatch) -> None:
    op = without_extension(monkeypatch)
    with tests.emulated.installed(selective_scan=True):
        hold_to_reference(drawn(Variant()))
        hold_to_reference(drawn(Variant(dtype=torch.float64)))
        hold_to_reference(drawn(Variant(dim=2, dstate=257, groups=1, seqlen=9)))
    chosen = {(case.dtype, case.dstate): choice.backend for case, choice in op.choices().items()}
    assert chosen == {
        (torch.float32, 5): "extension",
        (torch.float64, 5): "pytorch",
        (torch.float32, 257): "pytorch",
    }


def test_choosing_a_backend_leaves_the_random_numbers_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_extension(monkeypatch)
    arguments = drawn(Variant())
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fwd(arguments)
    assert torch.equal(torch.rand(4), expected)


def test_extra_memory_stays_under_a_gigabyte() -> None:
    script = r"""
        import re
        from pathlib import Path
        import torch
        from jetson_mamba.ops.selective_scan import selective_scan_bwd, selective_scan_fwd

        def peak():
            # Not getrusage: what it says of a child includes its parent's memory before exec.
            return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

        def scanned(dim, seqlen, dstate):
            rows = [torch.randn(1, dim, seqlen) for _ in range(4)]
            A = -torch.rand(dim, dstate)
            B, C = (torch.randn(1, 1, dstate, seqlen) for _ in range(2))
            D, bias = torch.randn(dim), torch.rand(dim)
            before = peak()
            u, delta, z, dout = rows
            out, x, _ = selective_scan_fwd(u, delta, A, B, C, D, z, bias, True)
            selective_scan_bwd(u, delta, A, B, C, D, z, bias, dout, x, out, None, True, True)
            return peak() - before

        scanned(2, 2, 2)
        print(scanned(1536, 2048, 16))
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    kibibytes = int(found.stdout)
    assert math.isfinite(kibibytes)
    # The results alone are 1536 x 2048 float32 six times over: a smaller figure measures nothing.
    assert 6 * 1536 * 2048 * 4 / 1024 / 2 < kibibytes < 1024**2
