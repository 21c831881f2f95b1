"""What a text gets of Triton where there is none can be looked at, not launched."""

from __future__ import annotations

import copy
import sys
import types
from typing import Any

import pytest

from jetson_mamba.compat import without_triton as triton

TEXT = """
@triton.jit
def kernel(x):
    pass


def launches(x, y=1):
    assert x is not None, "no GPU"
    kernel[(1,)](x)


def does_not(x):
    assert x is not None
    return x
"""


@pytest.fixture
def module() -> Any:
    """A module with a kernel, a function that launches it, and one that does not."""
    found = types.ModuleType("mamba_ssm.ops.triton.small")
    vars(found)["triton"] = triton
    exec(TEXT, vars(found))
    vars(found)["borrowed"] = test_a_number_of_blocks_is_that_of_triton
    return found


def test_whatever_decorates_a_function_makes_a_kernel_that_tells_what_it_was_told() -> None:
    def function(x: Any) -> None:
        """Its words."""

    decorated: Any
    for decorated in (
        triton.jit(function),
        triton.jit(do_not_specialize=["x"])(function),
        triton.autotune([1], key=["x"])(triton.jit(function)).fn,
        triton.heuristics({"x": 1})(triton.jit(function)).fn,
        triton.Placeholder("triton.experimental.jit")(function),
    ):
        assert isinstance(decorated, triton.Kernel)
        assert decorated.fn is function
        assert vars(decorated)["__name__"] == "function" and decorated.__doc__ == "Its words."
    tuned: Any = triton.autotune([1], key=["x"])(triton.jit(function))
    assert (tuned.configs, tuned.key) == ([1], ["x"])
    found: Any = triton.heuristics({"x": 1})(triton.jit(function))
    assert found.values == {"x": 1}
    usual = triton.Config({})
    assert (usual.num_warps, usual.num_stages, usual.num_ctas, usual.pre_hook) == (4, 2, 1, None)
    config = triton.Config({"BLOCK": 8}, num_warps=2)
    assert (config.kwargs, config.num_warps, config.num_stages) == ({"BLOCK": 8}, 2, 2)


def test_anything_else_is_a_placeholder_of_its_name() -> None:
    named: Any = triton.language.math
    assert isinstance(named, triton.Placeholder)
    assert repr(named) == "<triton.language.math, which is not there>"
    assert named == triton.language.math and hash(named) == hash(triton.language.math)
    assert named not in (triton.language, "triton.language.math")
    for other, name in (
        (named(1, 2), "triton.language.math(...)"),
        (named(lambda: None, other=1), "triton.language.math(...)"),
        (named["x"], "triton.language.math[...]"),
        (named | None, "triton.language.math[...]"),
        (None | named, "triton.language.math[...]"),
    ):
        assert isinstance(other, triton.Placeholder) and other.__name__ == name


@pytest.mark.parametrize("name", ["__wrapped__", "__path__", "__no_such__"])
def test_special_names_are_not_made_up(name: str) -> None:
    for of in (triton, triton.language):
        with pytest.raises(AttributeError, match=rf"^{name}$"):
            getattr(of, name)
    assert copy.copy(triton.language) == triton.language


def test_a_launch_names_the_function_that_launches(module: Any) -> None:
    for launch in (module.launches, module.kernel.run, module.kernel.warmup, module.kernel):
        with pytest.raises(triton.NoTriton):
            launch(1)
    with pytest.raises(triton.NoTriton) as caught:
        module.launches(1)
    assert (caught.value.module, caught.value.function) == (module.__name__, "launches")
    assert str(caught.value).startswith(f"{module.__name__}.launches launches a Triton kernel, ")
    assert "jetson-mamba doctor" in str(caught.value)


def test_a_function_that_fails_before_it_launches_says_so_too(module: Any) -> None:
    before = {name: vars(module)[name] for name in ("does_not", "borrowed", "kernel")}
    with pytest.raises(AssertionError):
        module.launches(None)
    triton.explain(vars(module))
    assert {name: vars(module)[name] for name in before} == before
    with pytest.raises(triton.NoTriton) as caught:
        module.launches(None)
    assert isinstance(caught.value.__cause__, AssertionError)
    assert (caught.value.module, caught.value.function) == (module.__name__, "launches")
    with pytest.raises(triton.NoTriton) as caught:
        module.launches(1)
    assert caught.value.__cause__ is None
    # Who calls it with what it does not take is told of that.
    with pytest.raises(TypeError, match="z"):
        module.launches(1, z=2)
    assert module.launches.__name__ == "launches"


@pytest.mark.parametrize(("x", "y"), [(0, 8), (1, 8), (8, 8), (9, 8), (17, 8)])
def test_a_number_of_blocks_is_that_of_triton(x: int, y: int) -> None:
    assert triton.cdiv(x, y) == (x + y - 1) // y


def test_the_next_power_of_two_is_that_of_triton() -> None:
    found = [triton.next_power_of_2(n) for n in (1, 2, 3, 4, 5, 127, 128, 129)]
    assert found == [1, 2, 4, 4, 8, 128, 128, 256]


def test_nobody_but_the_copies_gets_to_see_it() -> None:
    assert triton.__name__ == "jetson_mamba.compat.without_triton"
    assert sys.modules.get("triton") is not triton
    assert triton.set_allocator(print) is None  # type: ignore[func-returns-value]
