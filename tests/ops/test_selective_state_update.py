"""One step of decoding against a float64 loop: every option, both layouts, every dtype."""

from __future__ import annotations

import inspect
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch import triton_dispatch
from jetson_mamba.ops import where_triton_runs
from jetson_mamba.ops.decoding import selective_state_update
from tests.references.selective_state_update import selective_state_update_reference
from tests.references.tolerance import TOLERANCES, relative_norm

BATCH, NHEADS, NGROUPS, DIM, DSTATE, STATES = 3, 4, 2, 5, 6, 7
OPTIONAL = ("D", "z", "dt_bias")


def arguments(
    nheads: int = NHEADS, ngroups: int = NGROUPS, states: int = BATCH, **options: Any
) -> dict[str, Any]:
    """Every argument with its axis of heads or groups, in float32; no softplus, no indices."""
    torch.manual_seed(0)
    return {
        "state": torch.randn(states, nheads, DIM, DSTATE),
        "x": torch.randn(BATCH, nheads, DIM),
        "dt": torch.rand(BATCH, nheads, DIM),
        "A": -torch.rand(nheads, DIM, DSTATE) - 0.1,
        "B": torch.randn(BATCH, ngroups, DSTATE),
        "C": torch.randn(BATCH, ngroups, DSTATE),
        "D": torch.randn(nheads, DIM),
        "z": torch.randn(BATCH, nheads, DIM),
        "dt_bias": torch.randn(nheads, DIM),
        **options,
    }


def tied(given: dict[str, Any]) -> dict[str, Any]:
    """With one step size, decay and skip for all channels of a head, as in Mamba-2."""
    return {
        **given,
        "dt": given["dt"][..., :1].expand(-1, -1, DIM),
        "A": given["A"][:, :1, :1].expand(-1, DIM, DSTATE),
        "D": given["D"][:, :1].expand(-1, DIM),
        "dt_bias": given["dt_bias"][:, :1].expand(-1, DIM),
    }


def without_heads(given: dict[str, Any]) -> dict[str, Any]:
    axes = {"A": 0, "D": 0, "dt_bias": 0}
    return {
        name: each.squeeze(axes.get(name, 1)) if isinstance(each, Tensor) else each
        for name, each in given.items()
    }


def errors(given: dict[str, Any], call: dict[str, Any] | None = None) -> dict[str, float]:
    """How far the op's output and states are from the reference's; ``call`` is what it takes."""
    expected, states = selective_state_update_reference(**given)
    call = given if call is None else call
    state = call["state"].clone()
    out = selective_state_update(**{**call, "state": state})
    assert (out.dtype, out.device) == (call["x"].dtype, call["x"].device)
    assert state.dtype == call["state"].dtype
    return {
        "out": relative_norm(out, expected.view(out.shape)),
        "state": relative_norm(state, states.view(state.shape)),
    }


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize(
    "left_out", [each for size in range(4) for each in itertools.combinations(OPTIONAL, size)]
)
@pytest.mark.parametrize("heads", [NHEADS, 1])
def test_every_option_agrees_with_float64(
    heads: int, left_out: tuple[str, ...], softplus: bool
) -> None:
    given = arguments(heads, NGROUPS if heads > 1 else 1, dt_softplus=softplus)
    given.update(dict.fromkeys(left_out))
    found = errors(given, without_heads(given) if heads == 1 else given)
    assert max(found.values()) <= 1e-6, found


@pytest.mark.parametrize("ngroups", [1, 2, 4])
@pytest.mark.parametrize("is_tied", [False, True])
def test_groups_and_tied_channels_agree_with_float64(ngroups: int, is_tied: bool) -> None:
    given = arguments(ngroups=ngroups, dt_softplus=True)
    found = errors(tied(given) if is_tied else given)
    assert max(found.values()) <= 1e-6, found


def test_each_argument_may_lack_an_axis_of_length_1() -> None:
    given = arguments(1, 1)
    short = without_heads(given)
    for name in short.keys() - {"state"}:
        call = {**given, name: short[name]}
        assert max(errors(given, call).values()) <= 1e-6, name
    for state, shape in (
        (given["state"], (BATCH, 1, DIM)),
        (short["state"], (BATCH, DIM)),
    ):
        out = selective_state_update(**{**given, "state": state.clone()})
        assert out.shape == shape


@pytest.mark.parametrize("name", ["state", "x", "dt", "A", "B", "C", "D", "z", "dt_bias"])
def test_one_argument_in_float64_has_all_computed_in_it(name: str) -> None:
    single = arguments(dt_softplus=True)
    double: dict[str, Any] = {
        each: value.double() if isinstance(value, Tensor) else value
        for each, value in single.items()
    }
    exact = selective_state_update(**double)
    given = {**single, name: single[name].double()}
    found = selective_state_update(**given)
    assert torch.equal(found, exact.to(found.dtype))
    assert torch.equal(given["state"], double["state"].to(given["state"].dtype))


@pytest.mark.parametrize("larger", [20.0, 100.0])
def test_a_step_past_the_threshold_of_softplus_is_its_argument(larger: float) -> None:
    given = arguments(dt_softplus=True)
    given["dt"] = given["dt"] + larger
    given["A"] = given["A"] / larger
    assert max(errors(given).values()) <= 1e-6


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_tied", [False, True])
def test_products_are_in_float32_and_results_keep_their_dtypes(
    dtype: torch.dtype, state_dtype: torch.dtype, is_tied: bool
) -> None:
    given = arguments(dt_softplus=True)
    given = tied(given) if is_tied else given
    lowered = {
        name: each.to(dtype) if isinstance(each, Tensor) and name not in ("A", "D") else each
        for name, each in given.items()
    }
    lowered["state"] = given["state"].to(state_dtype)
    found = errors(lowered)
    # One rounding of each result: half a unit in the last place, at most.
    assert found["out"] <= (1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps / 2)
    rounding = 1e-6 if state_dtype == torch.float32 else torch.finfo(state_dtype).eps / 2
    assert found["state"] <= rounding


def test_the_output_is_of_the_state_before_it_is_rounded() -> None:
    """With D = 0, B = 0 and C a sum, the state's own rounding would show in the output."""
    given = arguments(1, 1, B=torch.zeros(BATCH, 1, DSTATE), D=None, z=None, dt_bias=None)
    given["state"] = given["state"].bfloat16()
    assert errors(given)["out"] <= 1e-6


def test_float64_is_computed_in_float64() -> None:
    given = {
        name: each.double() if isinstance(each, Tensor) else each
        for name, each in arguments().items()
    }
    assert max(errors(given).values()) <= TOLERANCES[torch.float64]


def test_a_step_size_that_would_overflow_an_exponential_is_its_own_softplus() -> None:
    given = arguments(dt=torch.full((BATCH, NHEADS, DIM), 200.0), dt_softplus=True)
    found = errors(given)
    assert max(found.values()) <= 1e-6, found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("indices", [[5, 0, 2], [5, -1, 0], [-1, 0, -7], [-1, 3, 0], [-1] * 3])
@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_indices_say_which_state_is_meant_and_padding_touches_none(
    integer: torch.dtype, indices: list[int], dtype: torch.dtype
) -> None:
    given = arguments(states=STATES, dt_softplus=True)
    given["state"] = given["state"].to(dtype)
    given["state_batch_indices"] = torch.tensor(indices, dtype=integer)
    found = errors(given)
    assert found["out"] <= 1e-6
    assert found["state"] <= (1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps / 2)
    state = given["state"].clone()
    out = selective_state_update(**{**given, "state": state})
    used = [index for index in indices if index >= 0]
    unused = [index for index in range(STATES) if index not in used]
    assert torch.equal(state[unused], given["state"][unused])
    assert not out[torch.tensor(indices) < 0].any()


def test_without_indices_the_first_states_are_used() -> None:
    given = arguments(states=STATES)
    assert max(errors(given).values()) <= 1e-6


def test_a_state_of_any_strides_is_written_in_place() -> None:
    given = arguments()
    expected = given["state"].clone()
    selective_state_update(**{**given, "state": expected})
    whole = torch.zeros(BATCH, DSTATE, 2 * DIM, NHEADS)
    view = whole[:, :, ::2].permute(0, 3, 2, 1)
    view.copy_(given["state"])
    selective_state_update(**{**given, "state": view})
    torch.testing.assert_close(view, expected)
    assert not whole[:, :, 1::2].any()


def test_no_gradient_is_recorded() -> None:
    given = arguments()
    given["A"].requires_grad_()
    given["x"].requires_grad_()
    state = given["state"].clone()
    out = selective_state_update(**{**given, "state": state})
    assert not out.requires_grad and not state.requires_grad


def test_autocast_leaves_the_products_in_float32() -> None:
    given = arguments(dt_softplus=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert max(errors(given).values()) <= 1e-6


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": None}, TypeError, "x: expected a tensor, found NoneType"),
        ({"D": 1.0}, TypeError, "D: expected a tensor, found float"),
        (
            {"A": torch.zeros(NHEADS, DIM, DSTATE, dtype=torch.complex64)},
            TypeError,
            "A: expected float16, .*found torch.complex64",
        ),
        (
            {"state": torch.zeros(BATCH, DSTATE)},
            ValueError,
            r"state: expected shape \(states, nheads, dim, dstate\) or .*, found \(3, 6\)",
        ),
        (
            {"x": torch.zeros(BATCH, DIM)},
            ValueError,
            r"x: .*\(batch=3, nheads=4, dim=5\), where nheads may be left out if it is 1, "
            r"found \(3, 1, 5\)",
        ),
        ({"dt": torch.zeros(BATCH, NHEADS, 1)}, ValueError, r"dt: .*dim=5.*found \(3, 4, 1\)"),
        ({"A": torch.zeros(NHEADS)}, ValueError, r"A: .*nheads=4, dim=5, dstate=6.*found \(4,\)"),
        ({"B": torch.zeros(BATCH, 3, DSTATE)}, ValueError, "B: .*divisor of nheads=4, found 3"),
        ({"B": torch.zeros(1, 2, DSTATE)}, ValueError, r"B: .*batch=3.*found \(1, 2, 6\)"),
        ({"C": torch.zeros(BATCH, 1, DSTATE)}, ValueError, r"C: .*ngroups=2.*found \(3, 1, 6\)"),
        ({"D": torch.zeros(NHEADS)}, ValueError, r"D: .*found \(1, 4\)"),
        ({"z": torch.zeros(BATCH, 2, DIM)}, ValueError, r"z: .*found \(3, 2, 5\)"),
        ({"dt_bias": torch.zeros(3, DIM)}, ValueError, r"dt_bias: .*found \(3, 5\)"),
        (
            {"state": torch.zeros(2, NHEADS, DIM, DSTATE)},
            ValueError,
            "state: expected at least batch=3 states, found 2",
        ),
        (
            {"state_batch_indices": torch.zeros(BATCH)},
            TypeError,
            "state_batch_indices: expected int32 or int64, found torch.float32",
        ),
        (
            {"state_batch_indices": torch.zeros(2, dtype=torch.int64)},
            ValueError,
            r"state_batch_indices: expected shape \(batch=3,\), found \(2,\)",
        ),
        (
            {"state_batch_indices": torch.tensor([0, 3, 1])},
            ValueError,
            "state_batch_indices: expected less than the 3 states there are, found 3",
        ),
    ],
)
def test_an_argument_that_does_not_fit_is_named_and_no_state_is_written(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = arguments(**change)
    before = given["state"].clone()
    with pytest.raises(error, match=message):
        selective_state_update(**given)
    assert torch.equal(given["state"], before)


def launch(state: Tensor, x: Tensor, scale: float = 2.0) -> str:
    """What stands for a launch of kernels."""
    return f"launched {scale}"


def dispatched_by_name(state: Tensor, x: Tensor) -> str:
    return "launched"


unwrapped = dispatched_by_name
dispatched_by_name = where_triton_runs(dispatched_by_name, selective_state_update)


@pytest.mark.parametrize("runs", [True, False])
def test_the_device_decides_which_function_a_call_reaches(
    runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_dispatch, "triton_runs_on", lambda device: runs)

    def otherwise(state: Tensor, x: Tensor, scale: float) -> str:
        return f"computed {scale}"

    function = where_triton_runs(launch, otherwise)
    state = torch.ones(1)
    expected = "launched" if runs else "computed"
    assert function(state, state, 3.0) == f"{expected} 3.0"
    assert function(x=state, scale=4.0, state=state) == f"{expected} 4.0"


def test_a_dispatched_function_is_told_from_upstreams_by_nothing() -> None:
    assert pickle.loads(pickle.dumps(dispatched_by_name)) is dispatched_by_name
    assert inspect.isfunction(dispatched_by_name)
    assert inspect.signature(dispatched_by_name) == inspect.signature(unwrapped)
    assert inspect.getsource(dispatched_by_name) == inspect.getsource(unwrapped)
    assert dispatched_by_name.__module__ == __name__


def test_a_small_step_on_a_cpu_asks_for_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, dt, B, C = torch.randn(1, 300), torch.randn(1, 300), torch.randn(1, 16), torch.randn(1, 16)
    A, states = -torch.rand(300, 16), torch.randn(1, 300, 16)
    found = states.clone()
    with monkeypatch.context() as patch:
        # Of all operations the one that is divided whatever its size.
        patch.setattr(torch, "exp", lambda *given, **named: pytest.fail("it asks for threads"))
        out = selective_state_update(found, x, dt, A, B, C)
    after = torch.exp(dt.unsqueeze(-1) * A) * states + (dt * x).unsqueeze(-1) * B.unsqueeze(1)
    torch.testing.assert_close(found, after)
    torch.testing.assert_close(out, (after * C.unsqueeze(1)).sum(-1))
