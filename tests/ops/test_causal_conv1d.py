"""The convolution: every backend against the loop over time."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain, combinations, product
from types import SimpleNamespace
from typing import Any, Iterator, NamedTuple

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch.paths import Way
from jetson_mamba.ops.causal_conv1d import (
    causal_conv1d_bwd,
    causal_conv1d_fn,
    causal_conv1d_update,
    extension,
    op,
    pytorch,
)
from tests import emulated
from tests.ops.conv1d_setups import (
    LAYOUTS,
    OPTIONS,
    RELEASES,
    SETUPS,
    Setup,
    check,
    fresh_op,
    laid_out,
    name,
)
from tests.ops.ways import going
from tests.references.causal_conv1d import convolve
from tests.references.causal_conv1d import update as reference_update
from tests.references.tolerance import TOLERANCES, relative_norm

CPU = torch.device("cpu")
BACKENDS = (
    "pytorch",
    *(f"{kind} {release}" for kind in ("extension", "package") for release in RELEASES),
)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The op with nothing but the backend that the parameter names."""
    kind, _, release = request.param.partition(" ")
    monkeypatch.setattr(op, "OP", fresh_op(kind))
    if release:
        with emulated.installed(causal_conv1d=release, package=kind == "package"):
            yield request.param
    else:
        yield request.param


@pytest.fixture
def only_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "OP", fresh_op("pytorch"))


# Releases repeat each other: PyTorch's backend meets every setup, each of theirs every set of
# options in two dtypes and layouts, others for the next, so that any two of the three meet.
FORMS = len(SETUPS) // len(OPTIONS)
MEETING = [
    (backend, setup)
    for number, backend in enumerate(BACKENDS)
    for place, setup in enumerate(SETUPS)
    if not number or (place + number + place // FORMS) % FORMS in (0, 4)
]


def named(value: Any) -> str:
    """A part of a test's name."""
    if isinstance(value, Setup):
        return name(value)
    return value if isinstance(value, str) else "-".join(map(str, value))


def test_any_two_of_backend_options_and_form_meet() -> None:
    forms = {(each.dtype, each.layout) for each in SETUPS}
    found = {(backend, setup.options) for backend, setup in MEETING}
    assert found == set(product(BACKENDS, OPTIONS))
    assert {(backend, setup[:2]) for backend, setup in MEETING} == set(product(BACKENDS, forms))
    releases = [setup for backend, setup in MEETING if backend != BACKENDS[0]]
    assert set(releases) == set(SETUPS)


@pytest.mark.parametrize(("backend", "setup"), MEETING, indirect=["backend"], ids=named)
def test_agrees_with_the_loop_over_time(backend: str, setup: Setup) -> None:
    check(setup, CPU)


@pytest.mark.parametrize("way", [Way.OPERATORS, Way.COMPOSED])
@pytest.mark.parametrize("setup", SETUPS, ids=name)
def test_agrees_by_every_way(only_pytorch: None, way: Way, setup: Setup) -> None:
    with going(way, op):
        check(setup, CPU)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [2, 5, 7])
def test_pytorch_serves_float64_and_wide_kernels(
    only_pytorch: None, layout: str, width: int
) -> None:
    x = laid_out(torch.randn(2, 3, 10, dtype=torch.float64), layout)
    weight, bias = torch.randn(3, width).double(), torch.randn(3).double()
    out = causal_conv1d_fn(x, weight, bias, activation="swish")
    assert relative_norm(out, convolve(x, weight, bias, silu=True)[0]) < 1e-12


def test_blocks_of_channels_give_what_a_single_one_gives(
    only_pytorch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [laid_out(torch.randn(2, 37, 9), layout) for layout in ("time", "channels")]
    weight, bias, dout = torch.randn(37, 4), torch.randn(37), torch.randn(2, 37, 9)
    for x in arguments:
        whole = causal_conv1d_bwd(x, weight, bias, dout, activation="silu")[:3]
        with monkeypatch.context() as patch:
            patch.setattr(pytorch, "BLOCK", 90)
            assert len(list(pytorch._blocks(x))) > 2
            parts = causal_conv1d_bwd(x, weight, bias, dout, activation="silu")[:3]
        for part, expected in zip(parts, whole):
            assert part is not None and expected is not None
            assert relative_norm(part, expected) < 1e-6


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("silu", [False, True])
def test_gradcheck(only_pytorch: None, sequences: bool, silu: bool) -> None:
    generator = torch.Generator().manual_seed(1)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    seq_idx = torch.tensor([[0, 0, 1, 0, -1, 1]], dtype=torch.int32) if sequences else None

    def function(x: Tensor, weight: Tensor, bias: Tensor, states: Tensor) -> Any:
        return causal_conv1d_fn(
            x,
            weight,
            bias,
            seq_idx,
            states,
            return_final_states=not sequences,
            activation="silu" if silu else None,
        )

    assert torch.autograd.gradcheck(function, (leaf(1, 3, 6), leaf(3, 4), leaf(3), leaf(1, 3, 3)))


@pytest.mark.parametrize(
    "wanted",
    list(chain.from_iterable(combinations(range(4), size) for size in range(5))),
    ids=lambda wanted: "".join("xwbi"[index] for index in wanted) or "none",
)
def test_any_subset_can_require_grad(only_pytorch: None, wanted: tuple[int, ...]) -> None:
    tensors = [torch.randn(2, 3, 5), torch.randn(3, 4), torch.randn(3), torch.randn(2, 3, 3)]

    def gradients(indices: tuple[int, ...]) -> dict[int, Tensor]:
        leaves = [tensor.clone() for tensor in tensors]
        for index in indices:
            leaves[index].requires_grad_()
        x, weight, bias, states = leaves
        out = causal_conv1d_fn(x, weight, bias, initial_states=states, activation="silu")
        assert out.requires_grad == bool(indices)
        if indices:
            out.square().sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [i in indices for i in range(4)]
        return {index: grad for index in indices if (grad := leaves[index].grad) is not None}

    for index, gradient in gradients(wanted).items():
        assert torch.equal(gradient, gradients((0, 1, 2, 3))[index])


def test_one_tensor_in_two_places_gets_both_gradients(only_pytorch: None) -> None:
    shared = torch.randn(3, 3, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, dtype=torch.float64)
    out = causal_conv1d_fn(shared, weight, initial_states=shared)
    (actual,) = torch.autograd.grad(out.square().sum(), shared)
    expected_out, _ = convolve(shared, weight, initial_states=shared)
    (expected,) = torch.autograd.grad(expected_out.square().sum(), shared)
    assert relative_norm(actual, expected) < 1e-12


def test_only_one_of_two_outputs_need_be_used(only_pytorch: None) -> None:
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    _, final_states = causal_conv1d_fn(x, weight, return_final_states=True, activation="silu")
    dx, dweight = torch.autograd.grad(final_states.sum(), (x, weight))
    assert torch.equal(dx[..., 2:], torch.ones(2, 3, 3)) and not dx[..., :2].any()
    assert not dweight.any()


def test_without_a_gradient_to_come_no_autograd_function_is_made(
    only_pytorch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any) -> None:
        raise AssertionError("an autograd function was made")

    monkeypatch.setattr(op, "differentiable", refused)
    x, weight = torch.randn(1, 2, 4, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    with torch.no_grad():
        assert not causal_conv1d_fn(x, weight).requires_grad
    with torch.inference_mode():
        assert causal_conv1d_fn(x, weight).shape == x.shape
    assert not causal_conv1d_fn(x.detach(), weight.detach()).requires_grad


def test_backward_and_update_record_no_graph(only_pytorch: None) -> None:
    x, weight = torch.randn(1, 2, 4, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    dx, dweight, _, _ = causal_conv1d_bwd(x, weight, None, torch.randn(1, 2, 4))
    assert not dx.requires_grad and not dweight.requires_grad
    assert not causal_conv1d_update(x[..., 0], torch.zeros(1, 2, 3), weight).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(only_pytorch: None, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 9, dtype=dtype, requires_grad=True)
    weight, bias = torch.randn(3, 4, requires_grad=True), torch.randn(3, requires_grad=True)

    def results() -> list[Tensor]:
        out = causal_conv1d_fn(x, weight, bias, activation="silu")
        dout = torch.linspace(-1, 1, out.numel()).view(out.shape).to(dtype)
        return [out, *torch.autograd.grad(out, (x, weight, bias), dout)]

    plain = results()
    with torch.autocast("cpu", torch.bfloat16):
        cast = results()
    for actual, expected in zip(cast, plain):
        assert actual.dtype == expected.dtype and torch.equal(actual, expected)


@pytest.mark.parametrize(
    "backend", ["pytorch", "extension 1.2.2", "extension 1.7.0"], indirect=True
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backward_writes_into_the_given_dx(backend: str, layout: str) -> None:
    x, dout = torch.randn(2, 8, 6), torch.randn(2, 8, 6)
    weight, bias = torch.randn(8, 4), torch.randn(8)
    buffer = torch.full((2, 12, 10), 7.0)
    inside = (slice(None), slice(2, 10), slice(1, 7))
    target = buffer[inside] if layout != "channels" else buffer.mT[:, 1:9, 2:8]
    expected = causal_conv1d_bwd(laid_out(x, layout), weight, bias, dout)[0]
    dx, _, _, _ = causal_conv1d_bwd(laid_out(x, layout), weight, bias, dout, dx=target)
    assert dx is target
    assert torch.equal(target, expected)
    assert int((buffer == 7).sum()) == buffer.numel() - target.numel()


def test_the_buffer_of_the_final_states_is_written_and_stays_out_of_the_graph(
    only_pytorch: None,
) -> None:
    x, weight = torch.randn(2, 3, 5, requires_grad=True), torch.randn(3, 4)
    buffer = torch.zeros(2, 3, 3)
    for _ in range(2):
        out, states = causal_conv1d_fn(x, weight, return_final_states=True, final_states_out=buffer)
        assert torch.equal(buffer, x[..., 2:]) and not buffer.requires_grad
        assert states.data_ptr() == buffer.data_ptr()
        (out.sum() + states.sum()).backward()
    with torch.no_grad():
        _, states = causal_conv1d_fn(x, weight, return_final_states=True, final_states_out=buffer)
    assert states is buffer
    buffer.zero_()
    assert isinstance(causal_conv1d_fn(x, weight, final_states_out=buffer), Tensor)
    assert torch.equal(buffer, x[..., 2:])


@pytest.mark.parametrize(
    "backend", ["pytorch", "extension 1.0.2", "extension 1.7.0"], indirect=True
)
def test_states_can_be_carried_in_place(backend: str) -> None:
    x, weight = torch.randn(2, 8, 12), torch.randn(8, 4)
    whole = causal_conv1d_fn(x, weight, activation="silu")
    state = torch.zeros(2, 8, 3)
    parts = [
        causal_conv1d_fn(
            part, weight, initial_states=state, final_states_out=state, activation="silu"
        )
        for part in x.split([5, 2, 1, 4], dim=2)
    ]
    assert relative_norm(torch.cat(parts, dim=2), whole) < 1e-6
    assert torch.equal(state, x[..., -3:])


def test_nothing_leaks_between_sequences_not_even_nan(only_pytorch: None) -> None:
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1, 1, -1]], dtype=torch.int32)
    x, weight, dout = torch.randn(1, 2, 8), torch.randn(2, 4), torch.randn(1, 2, 8)
    clean = causal_conv1d_fn(x, weight, seq_idx=seq_idx)
    clean_dx, *_ = causal_conv1d_bwd(x, weight, None, dout, seq_idx=seq_idx)
    x[..., :3], dout[..., :3] = float("nan"), float("inf")
    x[..., 7], dout[..., 7] = float("nan"), float("nan")
    dirty = causal_conv1d_fn(x, weight, seq_idx=seq_idx)
    dirty_dx, *_ = causal_conv1d_bwd(x, weight, None, dout, seq_idx=seq_idx)
    assert torch.equal(dirty[..., 3:], clean[..., 3:]) and not dirty[..., 7].any()
    assert torch.equal(dirty_dx[..., 3:], clean_dx[..., 3:]) and not dirty_dx[..., 7].any()


@pytest.mark.parametrize("shape", [(0, 8, 5), (2, 0, 5), (2, 8, 0)])
@pytest.mark.parametrize("backend", ["pytorch", "extension 1.7.0"], indirect=True)
def test_empty_tensors_are_served(backend: str, shape: tuple[int, int, int]) -> None:
    batch, dim, seqlen = shape
    x = torch.randn(shape, requires_grad=True)
    weight, states = torch.randn(dim, 4, requires_grad=True), torch.randn(batch, dim, 3)
    out, final = causal_conv1d_fn(
        x, weight, initial_states=states, return_final_states=True, activation="silu"
    )
    assert out.shape == shape
    assert torch.equal(final, states if seqlen == 0 else x[..., -3:])
    dx, dweight = torch.autograd.grad(out.sum() + final.sum(), (x, weight))
    assert dx.shape == shape and not dweight.any()


@pytest.mark.parametrize("release", ["1.2.2", "1.6.1", "1.7.0"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_extension_is_asked_for_what_its_release_can(
    monkeypatch: pytest.MonkeyPatch, release: str, layout: str
) -> None:
    def refused(*arguments: Any) -> None:
        raise AssertionError("PyTorch was used")

    x, weight, states = torch.randn(2, 8, 8), torch.randn(8, 4), torch.randn(2, 8, 3)
    x = laid_out(x, layout)
    seq_idx = torch.zeros(2, 8, dtype=torch.int32)
    with emulated.installed(causal_conv1d=release):
        monkeypatch.setattr(op, "OP", fresh_op("extension"))
        causal_conv1d_fn(x, weight)
        monkeypatch.setattr(pytorch, "forward", refused)
        monkeypatch.setattr(pytorch, "backward", refused)
        causal_conv1d_fn(x, weight, return_final_states=True)
        choices: list[dict[str, Any]] = [{"seq_idx": seq_idx}, {"initial_states": states}]
        for options in choices:
            causal_conv1d_fn(x, weight, **options)
            causal_conv1d_bwd(x, weight, None, x, **options)
        with pytest.raises(AssertionError, match="PyTorch was used"):
            causal_conv1d_fn(x, weight, seq_idx=seq_idx, initial_states=states)


@pytest.mark.parametrize("layout", ["time", "channels"])
def test_what_an_extension_can_read_is_not_copied(
    monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    def refused(*arguments: Any) -> None:
        raise AssertionError("copied")

    x, dout, dx = (laid_out(torch.randn(2, 8, 8), layout) for _ in range(3))
    weight, bias = torch.randn(8, 4), torch.randn(8)
    with emulated.installed(causal_conv1d="1.7.0"):
        monkeypatch.setattr(op, "OP", fresh_op("extension"))
        causal_conv1d_fn(x, weight, bias)
        monkeypatch.setattr(extension, "_copy", refused)
        causal_conv1d_fn(x, weight, bias)
        causal_conv1d_bwd(x, weight, bias, dout, dx=dx)


class Step(NamedTuple):
    """A call of the decoding step: ``length`` is the state's, ``seqlen`` the steps at once."""

    dtype: torch.dtype
    indices: bool
    ring: bool
    length: int
    seqlen: int


STEPS = [
    Step(dtype, indices, ring, *lengths)
    for dtype in (torch.float32, torch.bfloat16)
    for indices in (False, True)
    for ring in (False, True)
    for lengths in ((3, 1), (4, 1), (4, 3), (9, 2), (5, 8))
]
# As above: every third of a release's, in which any two of a step's choices meet.
MEETING_STEPS = [
    (backend, step)
    for number, backend in enumerate(BACKENDS)
    for place, step in enumerate(STEPS)
    if not number or (place + number) % 3 == 0
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_two_choices_of_a_step_meet(backend: str) -> None:
    def pairs(steps: list[Step]) -> set[Any]:
        return {two for step in steps for two in combinations(zip(Step._fields[:4], step), 2)}

    own = [step for each, step in MEETING_STEPS if each == backend]
    assert pairs(own) == pairs(STEPS)


@pytest.mark.parametrize(("backend", "step"), MEETING_STEPS, indirect=["backend"], ids=named)
def test_update_agrees_with_the_loop_over_time(backend: str, step: Step) -> None:
    dtype, indices, ring, length, seqlen = step
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x, state = normal(3, 8, seqlen), normal(6 if indices else 3, 8, length)
    weight, bias = normal(8, 4), normal(8)
    cache_seqlens = torch.tensor([0, 3, 14], dtype=torch.int32) if ring else None
    rows = torch.tensor([4, -1, 2], dtype=torch.int32) if indices else None
    expected, after = reference_update(x, state, weight, bias, True, cache_seqlens, rows)
    given = x.squeeze(2) if seqlen == 1 else x
    out = causal_conv1d_update(given, state, weight, bias, "silu", cache_seqlens, rows)
    assert out.shape == given.shape and out.dtype == dtype
    assert relative_norm(out.view(x.shape), expected) <= TOLERANCES[dtype]
    assert torch.equal(state.double(), after)


@pytest.mark.parametrize("backend", ["pytorch", "extension 1.0.2", "package 1.7.0"], indirect=True)
def test_decoding_step_by_step_gives_the_sequence(backend: str) -> None:
    x, weight, bias = torch.randn(2, 8, 7), torch.randn(8, 4), torch.randn(8)
    state = torch.zeros(2, 8, 4)
    steps = [causal_conv1d_update(x[..., t], state, weight, bias, "silu") for t in range(7)]
    whole = causal_conv1d_fn(x, weight, bias, activation="silu")
    assert relative_norm(torch.stack(steps, dim=2), whole) < 1e-6
    assert torch.equal(state, x[..., 3:])


def test_peak_memory_is_the_result_and_a_little() -> None:
    program = (
        "import re, torch\n"
        "from pathlib import Path\n"
        "from jetson_mamba.ops.causal_conv1d import causal_conv1d_bwd, causal_conv1d_fn\n"
        # Not getrusage: what it says of a child includes its parent's memory before exec.
        "status = Path('/proc/self/status')\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]) * 1024\n"
        "x, dout, dx = (torch.ones(1, 4096, 6144) for _ in range(3))\n"
        "weight, bias = torch.ones(4096, 4), torch.ones(4096)\n"
        "small = torch.ones(1, 4096, 4)\n"
        "causal_conv1d_fn(small, weight, bias, activation='silu')\n"
        "causal_conv1d_bwd(small, weight, bias, small, activation='silu')\n"
        "start = peak()\n"
        "causal_conv1d_bwd(x, weight, bias, dout, dx=dx, activation='silu')\n"
        "print((peak() - start) / (x.numel() * 4))\n"
        "start = peak()\n"
        "causal_conv1d_fn(x, weight, bias, activation='silu')\n"
        "print((peak() - start) / (x.numel() * 4))\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    backward, forward = map(float, found.stdout.split())
    assert backward < 0.3
    # The result itself is 1: a smaller figure measures nothing.
    assert 0.9 < forward < 1.2


def test_an_activation_may_have_a_name_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    activations = SimpleNamespace(ACT2FN={"gelu": torch.nn.functional.gelu})
    monkeypatch.setitem(sys.modules, "transformers.activations", activations)
    x, weight = torch.randn(2, 3, 6), torch.randn(3, 4)
    plain, last = causal_conv1d_fn(x, weight, return_final_states=True)
    found, states = causal_conv1d_fn(x, weight, return_final_states=True, activation="gelu")
    assert torch.equal(found, torch.nn.functional.gelu(plain))
    assert torch.equal(states, last)
    assert torch.equal(causal_conv1d_fn(x, weight, activation="gelu"), found)
    state = torch.zeros(2, 3, 4)
    stepped = causal_conv1d_update(x, state, weight, activation="gelu")
    assert relative_norm(stepped, found) < 1e-6
    with pytest.raises(ValueError, match="a name of an activation in transformers, found 'gelo'"):
        causal_conv1d_fn(x, weight, activation="gelo")
