"""The selective scan: every backend held to the float64 loop, and what the op promises besides."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from typing import Any, Iterator, cast

import pytest
import torch
from torch import Tensor

import tests.emulated
from jetson_mamba.dispatch.paths import Way
from jetson_mamba.ops.selective_scan import op as selective_scan
from jetson_mamba.ops.selective_scan import (
    selective_scan_fn,
)
from jetson_mamba.ops.selective_scan.contract import Case, Scan
from tests.ops.scan_setups import (
    GRADIENTS,
    TENSORS,
    TOLERANCE,
    VARIANTS,
    Variant,
    bwd,
    drawn,
    fn,
    fwd,
    hold_to_reference,
    kinds,
    named,
    on,
    reference,
    use_only,
)
from tests.ops.ways import going
from tests.references.tolerance import relative_norm


@pytest.fixture(params=["pytorch", "extension"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name: str = request.param
    with tests.emulated.installed(selective_scan=True):
        use_only(name, monkeypatch)
        yield name


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
