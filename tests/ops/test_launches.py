"""Repeated launches give what the function gives.

They are made only where that is certain. The kernels here are Triton's own objects as far as
binding arguments goes; what would be compiled is a Python function on addresses, so that a repeated
launch really computes from them.
"""

from __future__ import annotations

import ctypes
import inspect
from typing import Any, Callable

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from jetson_mamba.dispatch import triton_dispatch
from jetson_mamba.replay import launches
from jetson_mamba.replay.launches import Repeatable

triton = pytest.importorskip("triton", minversion="3.3")  # before, it wants a GPU to tune on
from triton import language as tl  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402


class Compiled:
    """A kernel that runs once for the whole grid. ``constants`` says if it is given those too."""

    constants = True

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        parameters = [
            each for each in self._kernel.params if self.constants or not each.is_constexpr
        ]

        def launch(*arguments: Any) -> None:
            if len(arguments) != len(parameters):
                raise TypeError(f"expected {len(parameters)} arguments, found {len(arguments)}")
            given = {each.name: argument for each, argument in zip(parameters, arguments)}
            self._kernel.execute(*(given.get(each.name) for each in self._kernel.params))

        return launch


class PythonKernel(JITFunction):  # type: ignore[misc]
    """A Triton kernel the body of which is Python."""

    compiles = True

    def execute(self, *arguments: Any) -> None:
        """Run the body unseen by PyTorch, as a GPU would."""
        with _disable_current_modes():
            self.fn(*arguments)

    def run(self, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        """Run the body and return what stands for its compiled form."""
        signature = inspect.signature(self.fn)
        known = {name: each for name, each in keywords.items() if name in signature.parameters}
        bound = signature.bind(*arguments, **known)
        bound.apply_defaults()
        assert not callable(grid) or len(grid(bound.arguments)) <= 3
        self.execute(*bound.args)
        return Compiled(self) if self.compiles else None


def floats(pointer: Any, count: int) -> Tensor:
    """The float32 numbers at an address, or of a tensor from its first one on."""
    address = pointer.data_ptr() if isinstance(pointer, Tensor) else pointer
    return torch.frombuffer((ctypes.c_float * count).from_address(address), dtype=torch.float32)


def weighted_sum(x, y, out, size, stride_x, stride_y, scale, FACTOR: tl.constexpr):  # type: ignore[no-untyped-def]
    values = floats(x, 1 + (size - 1) * stride_x)[::stride_x] * scale
    if y is not None:
        values = values + floats(y, 1 + (size - 1) * stride_y)[::stride_y]
    # FACTOR is what the heuristic says where constants are given, and 2 in any case.
    floats(out, size).copy_(values * 2)


def counted(out, size):  # type: ignore[no-untyped-def]
    floats(out, size).fill_(next(NUMBERS))


NUMBERS = iter(range(1000))
_plain = PythonKernel(weighted_sum)
_sum = triton.autotune([triton.Config({}, num_warps=2)], key=["size"])(
    triton.heuristics({"FACTOR": lambda arguments: 2 if arguments["size"] else 0})(_plain)
)
_count = PythonKernel(counted)


def launch_sum(x: Tensor, y: Tensor | None, scale: float) -> Tensor:
    """Twice ``scale * x + y``."""
    (size,) = x.shape
    out = torch.empty(size)
    stride_y = 0 if y is None else y.stride(0)
    _sum[lambda arguments: (arguments["size"], 1)](x, y, out, size, x.stride(0), stride_y, scale)
    return out


def launch_sums(x: Tensor, y: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Two results by way of a buffer, of views of the arguments and of the buffer."""
    buffer = launch_sum(x, y, scale)
    first = launch_sum(buffer[1:], x[1:], 1.0)
    return first, launch_sum(first[:-1], None, scale)


def expected(x: Tensor, y: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    buffer = 2 * (scale * x + (0 if y is None else y))
    first = 2 * (buffer[1:] + x[1:])
    return first, 2 * scale * first[:-1]


class Counted:
    """A function for :class:`Repeatable`, and how often it was called."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self.calls = 0
        self._function = function

    def __call__(self, launchers: Any, tensors: Any, *options: Any) -> tuple[Tensor, ...]:
        """Call it."""
        self.calls += 1
        return self._function(launchers, tensors, *options)


def sums(launchers: Any, tensors: Any, *options: Any) -> tuple[Tensor, ...]:
    (launch,) = launchers
    results: tuple[Tensor, ...] = launch(*tensors, *options)
    return results


def assert_gives(repeatable: Repeatable, x: Tensor, y: Tensor | None, scale: float = 3.0) -> None:
    results = repeatable((x, y), scale)
    for actual, wanted in zip(results, expected(x, y, scale)):
        assert torch.allclose(actual, wanted)


def test_from_the_third_call_on_a_function_is_not_called() -> None:
    function = Counted(sums)
    repeatable = Repeatable(function, (launch_sums,))
    for calls in (1, 2, 2, 2):
        assert_gives(repeatable, torch.randn(5), torch.randn(5))
        assert function.calls == calls


def test_a_launcher_that_its_copy_leads_past_triton_is_repeated_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_dispatch, "triton_runs_on", lambda device: True)
    led = triton_dispatch.where_triton_runs(launch_sums, expected)
    function = Counted(sums)
    repeatable = Repeatable(function, (led,))
    for calls in (1, 2, 2, 2):
        assert_gives(repeatable, torch.randn(5), torch.randn(5))
        assert function.calls == calls
    assert repeatable.refused() == []


def test_results_of_one_call_are_not_those_of_another() -> None:
    repeatable = Repeatable(sums, (launch_sums,))
    x, y = torch.randn(5), torch.randn(5)
    results = [repeatable((x + step, y), 3.0) for step in range(5)]
    for step, pair in enumerate(results):
        for actual, wanted in zip(pair, expected(x + step, y, 3.0)):
            assert torch.allclose(actual, wanted)


def test_calls_of_other_kinds_are_told_apart() -> None:
    function = Counted(sums)
    repeatable = Repeatable(function, (launch_sums,))
    rows = torch.randn(9, 9)
    kinds: list[tuple[Tensor, Tensor | None, float]] = [
        (rows[0, :8], rows[1, :8], 3.0),
        (rows[0, :7], rows[1, :7], 3.0),
        (rows[:8, 0], rows[1, :8], 3.0),
        (rows[0, 1:], rows[1, :8], 3.0),
        (rows[0, :8], None, 3.0),
        (rows[0, :8], rows[1, :8], 4.0),
    ]
    for _ in range(4):
        for x, y, scale in kinds:
            assert_gives(repeatable, x, y, scale)
    assert function.calls == 2 * len(kinds)


def test_tensors_that_share_memory_while_they_are_recorded_need_not_share_it_later() -> None:
    repeatable = Repeatable(sums, (launch_sums,))
    x = torch.randn(8)
    for _ in range(3):
        assert_gives(repeatable, x, x)
    assert_gives(repeatable, x, torch.randn(8))
    both = torch.randn(32)
    for _ in range(3):
        assert_gives(repeatable, both[::4], both[:8])
        assert_gives(repeatable, both[16:24], both[4:12])
    assert_gives(repeatable, torch.randn(32)[::4], torch.randn(8))


def test_constants_are_left_out_where_triton_wants_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiled, "constants", False)
    function = Counted(sums)
    repeatable = Repeatable(function, (launch_sums,))
    for _ in range(4):
        assert_gives(repeatable, torch.randn(5), torch.randn(5))
    assert function.calls == 2


def test_what_is_computed_beside_the_kernels_is_not_left_out() -> None:
    def and_more(launchers: Any, tensors: Any, *options: Any) -> tuple[Tensor, ...]:
        first, second = sums(launchers, tensors, *options)
        return first, second + 1

    function = Counted(and_more)
    repeatable = Repeatable(function, (launch_sums,))
    x, y = torch.randn(5), torch.randn(5)
    for _ in range(4):
        assert torch.allclose(repeatable((x, y), 3.0)[1], expected(x, y, 3.0)[1] + 1)
    # Once more for the attempt to record it.
    assert function.calls == 5
    assert repeatable.refused() == ["Unrepeatable: it calls aten::add"]


def test_kernels_that_are_not_compiled_are_launched_by_the_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PythonKernel, "compiles", False)
    function = Counted(sums)
    repeatable = Repeatable(function, (launch_sums,))
    for _ in range(4):
        assert_gives(repeatable, torch.randn(5), torch.randn(5))
    assert function.calls == 5
    assert repeatable.refused() == ["Unrepeatable: a kernel is not compiled"]


def test_results_that_differ_when_they_are_repeated_are_computed_by_the_function() -> None:
    def count(x: Tensor) -> Tensor:
        out = torch.empty(x.shape)
        _count[(1,)](out, x.shape[0])
        return out

    function = Counted(lambda launchers, tensors: (launchers[0](*tensors),))
    repeatable = Repeatable(function, (count,))
    numbers = [float(repeatable((torch.randn(3),))[0][0]) for _ in range(4)]
    assert len(set(numbers)) == 4
    assert function.calls == 5
    assert repeatable.refused() == ["Unrepeatable: its results differ when it is repeated"]


def test_a_result_that_is_an_argument_stays_one() -> None:
    repeatable = Repeatable(lambda launchers, tensors: tensors, (launch_sums,))
    x = torch.randn(3)
    for _ in range(4):
        assert repeatable((x,))[0] is x


def test_an_error_is_raised_every_time() -> None:
    repeatable = Repeatable(sums, (launch_sums,))
    for _ in range(4):
        with pytest.raises(ValueError, match="too many values"):
            repeatable((torch.randn(5, 5), None), 3.0)


def test_the_kind_that_was_used_least_recently_is_forgotten_where_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launches, "MOST_KINDS", 2)
    function = Counted(sums)
    repeatable = Repeatable(function, (launch_sums,))

    def calls(*sizes: int) -> int:
        before = function.calls
        for size in sizes:
            assert_gives(repeatable, torch.randn(size), None)
        return function.calls - before

    assert calls(4, 4, 4, 5, 5, 5) == 4
    assert calls(4, 5, 4) == 0
    # Another one takes the place of 5, which has then to come anew.
    assert calls(6, 6, 6) == 2
    assert calls(4, 4) == 0
    assert calls(5, 5, 5) == 2


def test_what_decides_and_is_set_elsewhere_is_heeded() -> None:
    function = Counted(sums)
    repeatable = Repeatable(function, (launch_sums,))
    for _ in range(3):
        assert_gives(repeatable, torch.randn(5), None)
    assert function.calls == 2
    torch.use_deterministic_algorithms(True)
    try:
        assert_gives(repeatable, torch.randn(5), None)
    finally:
        torch.use_deterministic_algorithms(False)
    assert function.calls == 3


def test_a_mode_that_listens_sees_the_function() -> None:
    function = Counted(sums)
    repeatable = Repeatable(function, (launch_sums,))
    for _ in range(3):
        assert_gives(repeatable, torch.randn(5), None)

    class Listens(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return func(*args, **(kwargs or {}))

    with Listens():
        assert_gives(repeatable, torch.randn(5), None)
    assert function.calls == 3
