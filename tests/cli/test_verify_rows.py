"""What a row of ``verify`` measures."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.report import verify

SIZE = verify.Size(2, 32, 7)
# Of each function, in its order: the shapes of what it is given at that size.
GIVEN = {
    "selective_scan_fn": {
        **{"u": (2, 32, 7), "delta": (2, 32, 7), "A": (32, 16), "B": (2, 16, 7)},
        **{"C": (2, 16, 7), "D": (32,), "z": (2, 32, 7), "delta_bias": (32,)},
    },
    "mamba_inner_fn": {
        **{"xz": (2, 64, 7), "conv1d_weight": (32, 1, 4), "conv1d_bias": (32,)},
        **{"x_proj_weight": (36, 32), "delta_proj_weight": (32, 4), "out_proj_weight": (24, 32)},
        **{"A": (32, 16), "D": (32,), "delta_bias": (32,)},
    },
    "mamba_chunk_scan_combined": {
        **{"x": (2, 7, 2, 16), "dt": (2, 7, 2), "A": (2,), "B": (2, 7, 1, 16)},
        **{"C": (2, 7, 1, 16), "D": (2,), "z": (2, 7, 2, 16), "dt_bias": (2,)},
    },
    "mamba_split_conv1d_scan_combined": {
        **{"zxbcdt": (2, 7, 98), "conv1d_weight": (64, 4), "conv1d_bias": (64,)},
        **{"dt_bias": (2,), "A": (2,), "D": (2,), "rmsnorm_weight": (32,)},
        **{"outproj_weight": (24, 32)},
    },
}
# What is drawn smaller than it would be, by the square root of what is summed over it.
SCALES = {
    "conv1d_weight": 0.5,
    "x_proj_weight": 32**-0.5,
    "delta_proj_weight": 0.5,
    "out_proj_weight": 32**-0.5,
    "outproj_weight": 32**-0.5,
}
OF_ITS_OWN: dict[str, dict[str, Any]] = {
    "selective_scan_fn": {"delta_softplus": True},
    "mamba_inner_fn": {"out_proj_bias": None, "delta_softplus": True},
    "mamba_chunk_scan_combined": {"chunk_size": 64, "dt_softplus": True},
    "mamba_split_conv1d_scan_combined": {
        **{"chunk_size": 64, "rmsnorm_eps": 1e-5, "headdim": 16, "norm_before_gate": False}
    },
}


@pytest.mark.parametrize("function", verify.FUNCTIONS, ids=lambda each: each.name)
def test_a_function_is_given_what_a_model_gives_it(function: verify.Function) -> None:
    def drawn(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.ones(shape, dtype=torch.float64) * scale

    given = function.arguments(SIZE, drawn)
    assert {name: tuple(each.shape) for name, each in given.items()} == GIVEN[function.name]
    for name, each in given.items():
        value = -math.e if name == "A" else SCALES.get(name, 1.0)
        torch.testing.assert_close(each, torch.full_like(each, value))
    assert function.kept_in_float32 == {"A", "D", "delta_bias", "dt_bias"}
    called: list[Any] = []

    def noted(**keywords: Any) -> Tensor:
        called.append(keywords)
        return given["A"]

    assert function.call(SimpleNamespace(**{function.name: noted}), given) is given["A"]
    assert called == [{**given, **OF_ITS_OWN[function.name]}]
    module_of = (
        "selective_scan_interface" if "u" in given or "xz" in given else "triton.ssd_combined"
    )
    assert function.target == f"mamba_ssm.ops.{module_of}"


def test_the_rows_are_of_every_function_size_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_row", lambda *given: given)
    chosen = list(verify.FUNCTIONS[:2])
    found: Any = list(verify.rows(torch.device("cpu"), chosen))
    sizes = [(2, 32, 1), (2, 32, 35), (1, 64, 200)]
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    assert found == [
        (function, size, dtype, torch.device("cpu"))
        for function in chosen
        for size in sizes
        for dtype in dtypes
    ]
    assert verify.row_count(chosen) == len(found)
    tolerances = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
    assert tolerances == verify.TOLERANCES


def test_the_functions_are_those_that_the_release_has(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking: dict[str, str | None] = {}

    def imported(name: str) -> None:
        if name in lacking:
            raise ModuleNotFoundError(f"No module named {lacking[name]}", name=lacking[name])

    monkeypatch.setattr(verify, "import_module", imported)
    names = [each.name for each in verify.functions()]
    assert names == list(GIVEN)
    for lacks in ("mamba_ssm.ops.triton.ssd_combined", "mamba_ssm.ops.triton", "mamba_ssm"):
        lacking[verify.COMBINED] = lacks
        assert [each.name for each in verify.functions()] == names[:2]
    for other in ("einops", None):
        lacking[verify.COMBINED] = other
        with pytest.raises(ModuleNotFoundError, match=f"No module named {other}"):
            verify.functions()


WEIGHTS = frozenset(("A", "D", "delta_bias", "dt_bias"))


def measured(
    call: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, target: str = "a"
) -> Any:
    """The row of a function that doubles what it is given, as ``call`` computes it."""
    monkeypatch.setattr(verify, "import_module", lambda name: name)

    def arguments(size: verify.Size, drawn: Any) -> dict[str, Tensor]:
        return {"x": drawn(*size), "D": drawn(*size)}

    function = verify.Function("f", target, lambda x, D: 2 * x + D, arguments, WEIGHTS, call)
    return verify._row(function, verify.Size(2, 3, 5), dtype, torch.device("cpu"))


@pytest.mark.parametrize("dtype", verify.TOLERANCES)
def test_a_row_has_the_numbers_of_its_dtype(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def call(module: Any, given: dict[str, Tensor]) -> Tensor:
        seen.append((module, given))
        return 2 * given["x"] + given["D"]

    row = measured(call, dtype, monkeypatch)
    ((module, given),) = seen
    assert module == "a"
    assert given["x"].dtype == dtype and given["D"].dtype == torch.float32
    assert row.function == "f" and row.size == "batch 2, dim 3, seqlen 5"
    assert row.dtype == str(dtype).partition(".")[2]
    assert row.tolerance == verify.TOLERANCES[dtype]
    assert row.passed and row.failure is None and not row.unsupported
    assert 0 <= row.forward < 1e-6 and row.backward < row.tolerance
    source = torch.Generator().manual_seed(0)
    right = torch.randn(2, 3, 5, generator=source, dtype=torch.float64)
    assert torch.equal(given["x"].detach().double(), right.to(dtype).double())


def scaled(forward: float, of_x: float, of_D: float) -> Any:
    """The function with errors of these sizes, relative to what is right."""

    def call(_: Any, given: dict[str, Tensor]) -> Tensor:
        x, D = given["x"], given["D"]
        wrong = (2 * x + D).detach() * (1 + forward)
        gradients = 2 * x * (1 + of_x) + D * (1 + of_D)
        return wrong + (gradients - gradients.detach())

    return call


@pytest.mark.parametrize(
    ("errors", "passed", "worst"),
    [
        ((0.0, 0.0, 9e-6), True, "D"),
        ((0.0, 9e-6, 0.0), True, "x"),
        ((0.0, 9e-6, 8e-6), True, "x"),
        ((9e-6, 0.0, 9e-6), True, "D"),
        ((2e-5, 0.0, 1e-6), False, "D"),
        ((0.0, 2e-5, 1e-6), False, "x"),
        ((0.0, 1e-6, 2e-5), False, "D"),
    ],
)
def test_the_error_of_a_row_is_the_worst_of_its_gradients(
    errors: tuple[float, float, float],
    passed: bool,
    worst: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = measured(scaled(*errors), torch.float32, monkeypatch)
    assert (row.passed, row.worst) == (passed, worst)
    assert row.forward == pytest.approx(errors[0], abs=3e-7)
    assert row.backward == pytest.approx(max(errors[1:]), abs=3e-7)


def test_an_output_of_another_shape_has_no_error_and_does_not_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = measured(lambda _, given: given["x"][:1] * 2, torch.float32, monkeypatch)
    assert row.forward is None and not row.passed
    assert verify._error(torch.ones(2), torch.ones(1)) == math.inf
    assert verify._error(torch.full((2,), math.nan), torch.ones(2)) == math.inf
    assert verify._error(torch.full((2,), 3.0), torch.zeros(2)) > 1e300
    assert verify._error(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0]).double()) == 0.75


@pytest.mark.parametrize(
    ("kind", "target", "dtype", "tolerance"),
    [
        ("cuda", verify.COMBINED, torch.float32, 5e-3),
        ("cuda", verify.COMBINED, torch.bfloat16, 5e-2),
        ("cuda", verify.INTERFACE, torch.float32, 1e-5),
        ("cpu", verify.COMBINED, torch.float32, 1e-5),
    ],
)
def test_on_a_gpu_mamba2_has_the_tolerance_of_its_products(
    kind: str,
    target: str,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    to = Tensor.to
    monkeypatch.setattr(
        Tensor,
        "to",
        lambda self, *given, **keywords: to(
            self, *(each for each in given if getattr(each, "type", "") != "cuda"), **keywords
        ),
    )
    function = verify.Function(
        *("f", target, lambda x: 2 * x, lambda size, drawn: {"x": drawn(*size)}, frozenset()),
        lambda _, given: 2 * given["x"],
    )
    monkeypatch.setattr(verify, "import_module", lambda name: name)
    row = verify._row(function, SIZE, dtype, torch.device(kind))
    assert row.tolerance == tolerance and row.passed
