"""What is launched for calls of every kind, on GPUs of several sizes.

``python -m tests.kernels.launched`` writes it to ``launched.txt``, which a test holds: how a call
is cut for a GPU was chosen by measurements, and is not to change by accident. A change that is
meant shows there, launch by launch. Nothing is compiled, and no GPU is needed.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.kernels import chains, compiler, tensors
from jetson_mamba.kernels.chains import Place
from jetson_mamba.ops.causal_conv1d import cuda as conv
from jetson_mamba.ops.decoding import cuda as step
from jetson_mamba.ops.decoding import layers_cuda
from jetson_mamba.ops.norms import cuda as norm
from jetson_mamba.ops.selective_scan import cuda as scan
from jetson_mamba.ops.ssd import cuda_backward, cuda_forward
from jetson_mamba.ops.swiglu import cuda as swiglu
from tests.kernels.calls import KINDS

HELD = Path(__file__).with_name("launched.txt")
# Numbers of these are addresses; sizes are less, and the bits of a limit more.
ADDRESSES = range(1 << 32, 1 << 48)


class Gpu(NamedTuple):
    """A GPU; its number is none that a machine has, since what is known of one is remembered."""

    number: int
    capability: tuple[int, int]
    processors: int
    shared_bytes: int

    @property
    def name(self) -> str:
        """As it stands among what is launched."""
        return f"{self.processors} of {self.capability[0]}.{self.capability[1]}"


GPUS = (
    Gpu(1001, (8, 7), 16, 163 * 1024),
    Gpu(1002, (9, 0), 132, 227 * 1024),
    Gpu(1003, (12, 0), 48, 99 * 1024),
)


class Recorder:
    """Notes what is launched in place of the compiler and the driver."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.lines: list[str] = []
        self._named: dict[int, tuple[str, int]] = {}
        # Of the call: what is compiled ahead, plan by plan, and what it loads.
        self.ahead: list[list[Any]] = []
        self.loaded: list[Any] = []

    def begin(self, call: str, given: dict[str, Any]) -> None:
        """Note a call, whose tensors go by these names."""
        self.lines.append(f"{call} ({self.gpu.name})")
        self.ahead, self.loaded = [], []
        self._named = {
            each.data_ptr(): (name, bytes_from(each))
            for name, each in given.items()
            if isinstance(each, Tensor)
        }

    def load(
        self, source: str, entry: str, defines: tuple[tuple[str, str], ...], index: int
    ) -> Any:
        """As :func:`compiler.load` does."""
        assert index == self.gpu.number
        self.loaded.append((source, entry, defines))
        of_source = "" if source == f"{entry}.cu" else f"{source}:"
        told = " ".join(f"{name}={value}" for name, value in defines)
        return SimpleNamespace(said=f"{of_source}{entry}", defines=told)

    def compile_ahead(self, plan: Callable[[], object], index: int) -> None:
        """As :func:`compiler.begin` does, but that nothing is compiled."""
        assert index == self.gpu.number
        loaded, self.loaded = self.loaded, []
        plan()
        self.ahead.append(self.loaded)
        self.loaded = loaded

    def make(self, tensor: Tensor) -> None:
        """Note a tensor that is made for the call; the latest counts, since memory is reused."""
        first, size = tensor.data_ptr(), bytes_from(tensor)
        self._named.pop(first, None)
        self._named[first] = (f"*{size}", size)

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        overlapping: bool = False,
        shared_bytes: int = 0,
    ) -> Any:
        """In place of :class:`compiler.Launch`."""
        assert len(grid) == len(block) == 3
        said = (
            f"  {kernel.said} {grid} of {block}{' overlapping' if overlapping else ''}"
            f"{f' {shared_bytes} bytes' if shared_bytes else ''}"
        )

        def start(stream: object, *arguments: Any) -> None:
            assert stream == "stream"
            self.lines += [said, f"    {kernel.defines}", f"    {self._told(arguments)}"]

        return start

    def chain(self, launches: Any, sources: int) -> Any:
        """In place of :class:`chains.Chain`."""

        def start(index: int, *addresses: int) -> None:
            assert index == self.gpu.number and len(addresses) == sources
            self.lines.append(f"  with {self._told(addresses)}")
            for launch, arguments in launches:
                launch("stream", *arguments)

        return start

    def _told(self, arguments: tuple[Any, ...]) -> str:
        return " ".join(map(self._named_or_number, arguments))

    def _named_or_number(self, argument: Any) -> str:
        if isinstance(argument, Place):
            return f"[{argument.source}]+{argument.offset}"
        number = int(argument)
        if number not in ADDRESSES:
            return str(number)
        # Last, what begins where a tensor ends: of what is kept there, this call has nothing.
        for past in (0, 1):
            for first, (name, size) in reversed(self._named.items()):
                if first <= number < first + size + past:
                    return f"{name}+{number - first}" if number > first else name
        raise AssertionError(f"an address of nothing that this call has: {number}")


def bytes_from(tensor: Tensor) -> int:
    """How much memory there is from a tensor's first number on."""
    storage = tensor.untyped_storage()
    return storage.data_ptr() + storage.nbytes() - tensor.data_ptr()


class Making(TorchDispatchMode):
    """Notes the tensors that are made while it is entered."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        """Call the function, and note its result."""
        found = function(*arguments, **(keywords or {}))
        if (
            isinstance(found, Tensor)
            and not found.is_meta
            and not getattr(function, "is_view", False)
        ):
            self._recorder.make(found)
        return found


def imitate(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> Recorder:
    """Let tensors of the CPU be on a GPU, on which nothing runs."""
    found = Recorder(gpu)
    properties = SimpleNamespace(
        multi_processor_count=gpu.processors,
        shared_memory_per_block_optin=gpu.shared_bytes,
        major=gpu.capability[0],
        minor=gpu.capability[1],
    )
    for module, name, value in (
        (compiler, "load", found.load),
        (compiler, "Launch", found.launch),
        (compiler, "begin", found.compile_ahead),
        (compiler, "current_device", lambda: gpu.number),
        (compiler, "current_stream", lambda index: "stream"),
        (compiler, "nvrtc_version", lambda: "13.0"),
        (chains, "Chain", found.chain),
        (tensors, "planned_for", {}),
        (torch.cuda, "get_device_properties", lambda index: properties),
        (torch.cuda, "get_device_capability", lambda index: gpu.capability),
        (torch.cuda, "current_device", lambda: gpu.number),
        (torch.cuda, "device", nullcontext),
        (Tensor, "get_device", lambda tensor: gpu.number),
        *((module, "index_of", lambda device: gpu.number) for module in (conv, norm, step, swiglu)),
        (layers_cuda, "index_of", lambda device: gpu.number),
        *((module, "_plans", Memo(64)) for module in (cuda_forward, cuda_backward)),
        (scan, "_forward_plans", Memo(64)),
        (scan, "_backward_plans", Memo(64)),
    ):
        monkeypatch.setattr(module, name, value)
    return found


def launched(kind: str) -> list[str]:
    """What is launched for calls of a kind, line by line; on a further GPU what is otherwise."""
    by_gpu: list[list[list[str]]] = []
    for gpu in GPUS:
        with pytest.MonkeyPatch.context() as patch:
            recorder, of_calls = imitate(patch, gpu), []
            for call in KINDS[kind]():
                recorder.begin(call.name, call.given)
                with torch.no_grad(), Making(recorder):
                    call.make()
                # What is compiled ahead of a call is what it takes.
                ahead = [recorder.loaded] if kind == "heads" else []
                assert recorder.ahead == ahead, call.name
                of_calls.append([*recorder.lines])
                recorder.lines.clear()
            by_gpu.append(of_calls)
    lines: list[str] = []
    for first, *others in zip(*by_gpu):
        lines += first
        for other in others:
            new = [line for line in other if line not in first]
            lines += new if len(new) > 1 else []
    return lines


def held() -> dict[str, list[str]]:
    """What stands in the file, by kind."""
    found: dict[str, list[str]] = {}
    for line in HELD.read_text("utf-8").splitlines():
        if line.startswith("# "):
            lines = found.setdefault(line[2:], [])
        else:
            lines.append(line)
    return found


if __name__ == "__main__":
    text = [line for kind in KINDS for line in (f"# {kind}", *launched(kind))]
    HELD.write_text("\n".join(text) + "\n", "utf-8")
