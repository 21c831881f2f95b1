"""How an op picks its backend: in order, once for each case, and loud only where it must be."""

from __future__ import annotations

import errno
import sys
import threading
import time
import warnings
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from jetson_mamba.dispatch import backends
from jetson_mamba.dispatch.backends import (
    BackendWarning,
    first_line,
)
from jetson_mamba.errors import Unavailable
from tests.ops.small_op import Make, broken, named, serve, unavailable


def test_the_first_backend_that_serves_is_used(make: Make) -> None:
    op = make(first=unavailable, second=serve, third=broken)
    assert op.implementation("gpu") == "served gpu"
    choice = op.choices()["gpu"]
    assert choice == ("second", (("first", "not for gpu"),))


def test_a_backend_is_chosen_once_for_each_case(make: Make) -> None:
    loaded = []

    def load(case: str) -> str:
        loaded.append(case)
        return case

    op = make(only=load)
    for case in ("a", "b", "a", "b", "a"):
        assert op.implementation(case) == case
    assert loaded == ["a", "b"]
    assert set(op.choices()) == {"a", "b"}


def test_threads_that_come_together_choose_once(make: Make) -> None:
    loaded = []

    def load(case: str) -> str:
        loaded.append(case)
        time.sleep(0.02)
        return case

    op = make(only=load)
    threads = [threading.Thread(target=op.implementation, args=("a",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == ["a"]


def test_a_backend_that_this_installation_lacks_is_passed_over(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = make(first=serve, second=serve)
    monkeypatch.delitem(sys.modules, "package_of_thing.first")
    assert op.implementation("a") == "served a"
    assert op.choices()["a"].passed_over == (("first", "not part of this installation"),)


def test_a_module_that_a_backend_lacks_is_not_taken_for_the_backend(make: Make) -> None:
    def load(case: str) -> str:
        raise ModuleNotFoundError("No module named 'absent'", name="absent")

    op = make(first=load, second=serve)
    with pytest.warns(BackendWarning, match="No module named 'absent'"):
        op.implementation("a")


def test_what_is_broken_is_said_once_and_together(make: Make) -> None:
    def refused(implementation: str, case: str) -> None:
        if implementation == "bad":
            raise RuntimeError("no kernel image is available")

    op = make(first=broken, second=unavailable, third=lambda case: "bad", last=serve, trial=refused)
    with pytest.warns(BackendWarning) as caught:
        assert op.implementation("a") == "served a"
    (warning,) = caught
    assert "'first' (ImportError: x.so: undefined symbol: _ZN3c10); 'third'" in str(warning.message)
    assert "'last' is used" in str(warning.message) and "stack" not in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert op.implementation("b") == "served b"


def test_what_breaks_later_is_said_too(make: Make) -> None:
    def load(case: str) -> str:
        raise OSError(case)

    op = make(first=lambda case: broken(case) if case == "a" else unavailable(case), second=serve)
    with pytest.warns(BackendWarning, match="first"):
        op.implementation("a")
    op = make(first=lambda case: serve(case) if case == "a" else load(case), second=serve)
    assert op.implementation("a") == "served a"
    with pytest.warns(BackendWarning, match="OSError: b"):
        op.implementation("b")


def test_a_warning_that_is_an_error_does_not_undo_the_choice(make: Make) -> None:
    op = make(first=broken, second=serve)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BackendWarning):
            op.implementation("a")
        assert op.implementation("a") == "served a"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Expected u.is_cuda() to be true, but got false.  (Could this error ..."),
        NotImplementedError("Could not run 'lib::op' with arguments from the 'CPU' backend."),
    ],
)
def test_an_extension_that_is_not_for_this_device_is_passed_over_in_silence(
    make: Make, error: Exception
) -> None:
    def trial(implementation: str, case: str) -> None:
        if implementation == "gpu only":
            raise error

    op = make(first=lambda case: "gpu only", second=serve, trial=trial)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert op.implementation("cpu") == "served cpu"
    assert str(error)[:20] in op.choices()["cpu"].passed_over[0][1]


class Listens(TorchFunctionMode):
    """Wants to hear of nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was seen")


class Watches(TorchDispatchMode):
    """Wants to see nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was seen")


def in_a_transform(call: Callable[[], Any]) -> None:
    torch.func.grad(lambda x: (call(), x.sum())[1])(torch.ones(2))


def in_make_fx(call: Callable[[], Any]) -> None:
    make_fx(lambda x: (call(), x + 1)[1], tracing_mode="symbolic")(torch.ones(2))


def in_a_dual_level(call: Callable[[], Any]) -> None:
    with forward_ad.dual_level():
        call()


def within(*contexts: Callable[[], Any]) -> Callable[[Callable[[], Any]], None]:
    def run(call: Callable[[], Any]) -> None:
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            call()

    return run


SURROUNDINGS: dict[str, Callable[[Callable[[], Any]], None]] = {
    "nothing": lambda call: call(),
    "autocast": within(lambda: torch.autocast("cpu", torch.bfloat16)),
    "inference mode": within(torch.inference_mode),
    "no gradients": within(torch.no_grad),
    "a default device": within(lambda: torch.device("meta")),
    "a mode of functions": within(Listens),
    "a mode of operations": within(Watches),
    "fake tensors": within(FakeTensorMode),
    "a counter": within(lambda: FlopCounterMode(display=False)),
    "a transform": in_a_transform,
    "a level of dual numbers": in_a_dual_level,
    "make_fx": in_make_fx,
    "several": within(lambda: torch.device("meta"), Watches, torch.inference_mode, Listens),
}


@pytest.mark.parametrize("threads", [True, False], ids=["a thread", "no thread to be had"])
@pytest.mark.parametrize("around", SURROUNDINGS)
def test_a_trial_neither_sees_what_surrounds_the_call_nor_is_seen(
    around: str, threads: bool, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the trial has to run in the caller's own thread."""
    if not threads:
        monkeypatch.setattr(threading.Thread, "start", cannot_start)

    ran_in: list[int] = []

    def trial(implementation: str, case: str) -> None:
        ran_in.append(threading.get_ident())
        x = torch.ones(2, 3, dtype=torch.float32)
        assert type(x) is torch.Tensor and x.device.type == "cpu" and not x.is_inference()
        product = x.requires_grad_() @ x.t()
        assert product.dtype == torch.float32
        product.sum().backward()
        assert x.grad is not None and x.grad.tolist() == [[4.0] * 3] * 2

    op = make(first=serve, second=unavailable, trial=trial)
    found: list[str] = []
    SURROUNDINGS[around](lambda: found.append(op.implementation("a")))
    assert found == ["served a"]
    assert [each != threading.get_ident() for each in ran_in] == [threads]
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def cannot_start(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_choice_asked_for_while_a_module_is_imported_does_not_wait_for_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread would wait for the module, and the module for that thread."""

    def load(case: str) -> str:
        import_module("asks_while_it_is_imported")
        return "loaded"

    op = make(first=load)
    (tmp_path / "asks_while_it_is_imported.py").write_text(
        "import sys\nfound = sys.modules['the_op_that_is_asked'].implementation('a')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "the_op_that_is_asked", op)
    found: list[str] = []
    thread = threading.Thread(
        target=lambda: found.append(import_module("asks_while_it_is_imported").found), daemon=True
    )
    thread.start()
    thread.join(20)
    sys.modules.pop("asks_while_it_is_imported", None)
    assert found == ["loaded"]


PASSING: dict[str, BaseException] = {
    "of torch": torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
    "of Python": MemoryError(),
    "of the CPU's allocator": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"
    ),
    "of the driver": RuntimeError("CUresult: CUDA_ERROR_OUT_OF_MEMORY"),
    "of cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    "of a busy GPU": RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"),
    "of threads": RuntimeError("can't start new thread"),
    "of files": OSError(errno.EMFILE, "Too many open files"),
    "of the disk": OSError(errno.ENOSPC, "No space left on device"),
    "of the linker": ImportError("x.so: failed to map segment: Cannot allocate memory"),
}


def raised_from(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("wrapped", [None, ImportError("it cannot be loaded"), Unavailable("no")])
@pytest.mark.parametrize("name", PASSING)
def test_an_error_that_may_pass_decides_nothing(
    name: str, wrapped: BaseException | None, is_named: bool, make: Make
) -> None:
    error, left = PASSING[name], [2]

    def load(case: str) -> str:
        if left[0]:
            left[0] -= 1
            if wrapped is not None:
                raise wrapped from error
            raise error
        return "fast"

    op = make(fast=load, slow=serve)
    op.select(named("fast") if is_named else None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(type(error)) as caught:
            op.implementation("a")
        assert caught.value is error
        assert op.choices() == {}
        assert op.implementation("a") == "fast"
        # Once is tried again before it is raised.
        left[0] = 1
        assert op.implementation("b") == "fast"
    op.select(None)


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libgomp.so.1: cannot allocate memory in static TLS block"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        OSError(errno.ENOENT, "No such file or directory"),
    ],
)
def test_an_error_that_stays_passes_the_backend_over(error: Exception, make: Make) -> None:
    def load(case: str) -> str:
        raise error

    op = make(fast=load, slow=serve)
    with pytest.warns(BackendWarning, match="fast"):
        assert op.implementation("a") == "served a"


def test_an_interrupt_leaves_the_choice_to_go_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    goes_on = threading.Event()

    def load(case: str) -> str:
        loaded.append(case)
        goes_on.wait(10)
        return "loaded"

    op = make(first=broken, second=load)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Future, "result", interrupted)
        op.implementation("a")
    goes_on.set()
    with pytest.warns(BackendWarning, match="first"):
        assert op.implementation("a") == "loaded"
    assert loaded == ["a"]


def interrupted(self: Future[Any], timeout: float | None = None) -> Any:
    raise KeyboardInterrupt


def test_what_a_thread_cannot_handle_is_the_callers(make: Make) -> None:
    def load(case: str) -> str:
        raise SystemExit(3)

    op = make(first=load, second=serve)
    for _ in range(2):
        with pytest.raises(SystemExit):
            op.implementation("a")


def test_a_backend_that_asks_for_itself_does_not_wait_for_ever(make: Make) -> None:
    def load(case: str) -> str:
        return op.implementation(case)

    op = make(first=load, second=serve)
    with pytest.warns(BackendWarning, match="asks for itself while it is tried"):
        assert op.implementation("a") == "served a"


class Case(NamedTuple):
    """A case on a device."""

    device: torch.device


def test_in_the_capture_of_a_graph_nothing_is_tried_and_nothing_is_decided(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []
    op = make(
        first=unavailable,
        second=lambda case: "second",
        trial=lambda implementation, case: tried.append(implementation),
    )
    case = Case(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert op.implementation(case) == "second"
    assert (tried, op.choices()) == ([], {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert op.implementation(case) == "second"
    assert tried == ["second"]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert op.implementation(case) == "second"


def test_a_trial_runs_on_the_callers_device(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int] = []

    @contextmanager
    def device(index: int) -> Iterator[None]:
        entered.append(index)
        yield

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "device", device)
    assert make(first=serve).implementation("a") == "served a"
    assert entered == [3]


def test_cases_are_remembered_in_a_bounded_memory(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "MOST_CASES", 3)
    loaded: list[str] = []
    op = make(first=lambda case: loaded.append(case) or case)  # type: ignore[func-returns-value]
    for case in "abcadabe":
        op.implementation(case)
    assert len(op.choices()) == 3
    assert loaded == ["a", "b", "c", "d", "b", "e"]


def test_where_nothing_serves_every_reason_is_given(make: Make) -> None:
    op = make(first=unavailable, second=broken)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"first: not for a; second: ImportError: x\.so"):
            op.implementation("a")
    assert op.choices() == {}


def test_the_first_line_of_an_error_stands_for_it() -> None:
    assert first_line(RuntimeError("\n CUDA error: x\nstack")) == "CUDA error: x"
    assert first_line(RuntimeError()) == "no message"
