"""Which backend serves the convolution, with what is installed."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch.backends import BackendWarning
from jetson_mamba.ops.causal_conv1d import (
    causal_conv1d_fn,
    extension,
    op,
)
from tests import emulated
from tests.ops.conv1d_setups import (
    RELEASES,
    fresh_op,
)
from tests.references.causal_conv1d import convolve
from tests.references.tolerance import relative_norm


def call(dtype: torch.dtype = torch.float32, width: int = 4) -> Tensor:
    x, weight = torch.ones(1, 8, 4, dtype=dtype), torch.ones(8, width, dtype=dtype)
    out: Tensor = causal_conv1d_fn(x, weight)
    assert relative_norm(out, convolve(x, weight)[0]) < 1e-6
    return out


def chosen(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], object] = call
) -> tuple[str, dict[str, str]]:
    """The backend that a new op picks for ``run``, and why the ones before it were not."""
    monkeypatch.setattr(op, "OP", fresh_op())
    run()
    (choice,) = op.OP.choices().values()
    return choice.backend, dict(choice.passed_over)


def test_the_order_of_backends() -> None:
    assert op.OP.order == ("package", "extension", "cuda", "pytorch")


def test_absent_packages_are_passed_over_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    for absent in ("causal_conv1d", "causal_conv1d_cuda"):
        monkeypatch.delitem(sys.modules, absent, raising=False)
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backend, passed_over = chosen(monkeypatch)
    assert backend == "pytorch"
    assert passed_over["package"] == "causal_conv1d is not installed"
    assert passed_over["extension"] == "causal_conv1d_cuda is not installed"
    assert "cuda" in passed_over


@pytest.mark.parametrize("release", RELEASES)
def test_the_package_comes_first_then_the_extension(
    monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    with emulated.installed(causal_conv1d=release, package=True):
        assert chosen(monkeypatch) == ("package", {})
    with emulated.installed(causal_conv1d=release):
        backend, passed_over = chosen(monkeypatch)
    assert backend == "extension"
    assert passed_over == {"package": "causal_conv1d is not installed"}


def test_the_stand_in_for_the_package_is_not_taken_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with emulated.installed(causal_conv1d="1.7.0"):
        package = ModuleType("causal_conv1d")
        package.__dict__["causal_conv1d_fn"] = causal_conv1d_fn
        monkeypatch.setitem(sys.modules, "causal_conv1d", package)
        assert chosen(monkeypatch)[0] == "extension"
        package.__dict__["__jetson_mamba_reason__"] = "ImportError: x.so: undefined symbol: y"
        with pytest.warns(BackendWarning, match=r"\(ImportError: x.so: undefined symbol: y\)"):
            assert chosen(monkeypatch)[0] == "extension"
        package.__dict__["__jetson_mamba_reason__"] = (
            "ModuleNotFoundError: No module named 'causal_conv1d_cuda'"
        )
        assert chosen(monkeypatch)[1] == {"package": "causal_conv1d_cuda is not installed"}


@pytest.mark.parametrize("release", ["1.0.2", "1.5.0", "1.7.0"])
def test_an_extension_for_cuda_only_is_passed_over_in_silence_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    with emulated.installed(release, package=True, failure=emulated.CUDA_ONLY):
        backend, passed_over = chosen(monkeypatch)
    assert backend == "pytorch"
    assert "is_cuda" in passed_over["package"] and "is_cuda" in passed_over["extension"]


@pytest.mark.parametrize("release", ["1.0.2", "1.2.2", "1.7.0"])
@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (emulated.UNDEFINED_SYMBOL, "undefined symbol: _ZN3c10"),
        (emulated.NO_KERNEL_IMAGE, "no kernel image is available"),
        (emulated.WRONG_RESULTS, "of a trial is wrong"),
    ],
)
def test_a_broken_extension_gives_one_warning_and_the_next_backend(
    monkeypatch: pytest.MonkeyPatch, release: str, failure: str, reason: str
) -> None:
    with emulated.installed(release, package=True, failure=failure):
        with pytest.warns(BackendWarning, match=reason) as caught:
            backend, passed_over = chosen(monkeypatch)
        assert backend == "pytorch" and reason in passed_over["extension"]
        assert len(caught) == 1
        message = str(caught[0].message)
        assert "'package'" in message and "'extension'" in message and "'pytorch'" in message
        # Neither the same case nor another says it again.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call()
            call(torch.bfloat16)


def test_a_module_of_no_known_release_gives_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with emulated.installed("1.7.0"):
        module = extension.compiled_module()
        module.causal_conv1d_fwd.__doc__ = "causal_conv1d_fwd(arg0: torch.Tensor) -> None"
        with pytest.warns(BackendWarning, match="no known release has functions of 1, 12 and 8"):
            assert chosen(monkeypatch)[0] == "pytorch"


def test_a_package_and_a_module_that_do_not_belong_together_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with emulated.installed("1.2.2", package=True):
        package = __import__("causal_conv1d")
        with emulated.installed("1.7.0"):
            monkeypatch.setitem(sys.modules, "causal_conv1d", package)
            package.causal_conv1d_fn.__globals__["unused"] = None
            monkeypatch.setattr(package, "causal_conv1d_fn", wrong_module)
            with pytest.warns(BackendWarning, match="incompatible function arguments"):
                assert chosen(monkeypatch)[0] == "extension"


def wrong_module(x: Tensor, weight: Tensor, bias: Any = None, activation: Any = None) -> Any:
    """The wrapper of 1.0, which calls whatever module it finds in the way of 1.0."""
    compiled = extension.compiled_module()
    return compiled.causal_conv1d_fwd(x, weight, bias, activation is not None)


@pytest.mark.parametrize(
    ("dtype", "width", "reason"),
    [
        (torch.float64, 4, "no kernel for torch.float64"),
        (torch.float32, 5, "no kernel for width 5"),
    ],
)
def test_what_no_kernel_serves_goes_to_pytorch_in_silence(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, width: int, reason: str
) -> None:
    with emulated.installed("1.7.0", package=True):
        backend, passed_over = chosen(monkeypatch, lambda: call(dtype, width))
    assert backend == "pytorch"
    assert passed_over["package"].startswith(reason)


def test_a_trial_draws_no_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    with emulated.installed("1.7.0"):
        before = torch.get_rng_state()
        chosen(monkeypatch)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("doc", "count"),
    [
        ("f(arg0: at::Tensor, arg1: Optional[at::Tensor], arg2: bool) -> at::Tensor\n\nText\n", 3),
        ("f(arg0: torch.Tensor, arg1: torch.Tensor | None, arg2: bool) -> None\n", 3),
        ("f(arg0: Union[int, Tuple[int, int]], arg1: Dict[str, List[int]]) -> List[int]", 2),
    ],
)
def test_parameters_are_counted_in_every_style_of_docstring(doc: str, count: int) -> None:
    def f() -> None: ...

    f.__doc__ = doc
    assert extension.parameters(f) == count
    f.__doc__ = "not a signature"
    with pytest.raises(TypeError, match="does not tell its signature"):
        extension.parameters(f)


def test_torch_is_imported_before_the_extension() -> None:
    program = (
        "import tests.emulated as emulated\n"
        "emulated.install(causal_conv1d='1.7.0')\n"
        "from jetson_mamba.ops import causal_conv1d as op\n"
        "import torch\n"
        "op.causal_conv1d_fn(torch.ones(1, 8, 4), torch.ones(8, 4))\n"
        "print([choice.backend for choice in op.OP.choices().values()])\n"
    )
    found = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", program],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    )
    assert found.stdout == b"['extension']\n"
