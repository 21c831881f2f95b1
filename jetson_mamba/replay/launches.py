"""Launches Triton kernels again, without what comes before a launch.

Before a Triton kernel starts, its caller has made buffers and collected strides, the autotuner has
looked up a configuration, and some forty arguments have been bound: 50 to 100 us of Python for a
kernel that may run for 3. Between two calls whose tensors have the same shapes, strides, dtypes and
alignment nothing of that differs but the addresses. So :class:`Repeatable` *records* a function of
tensors, the second time that it meets such a call: which compiled kernels it launches, on which
grid, with which arguments. From then on it launches them with the addresses at hand.

A function can be recorded if it does nothing with tensors but make empty ones, view them, and
launch kernels. Whatever else it is seen to do, and whatever else goes wrong, leaves that kind of
call to the function itself. So does a recording whose results differ in a single bit.
"""

from __future__ import annotations

from types import CodeType, FunctionType
from typing import Any, Callable, Hashable, Iterator, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jetson_mamba.dispatch.environment import environment_key
from jetson_mamba.dispatch.launchers import own_of
from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.dispatch.passing import passing
from jetson_mamba.dispatch.paths import may_replay

Tensors = Tuple[Optional[Tensor], ...]
# function(launchers, tensors, *options): the results, contiguous and of its own making
Function = Callable[..., Tuple[Tensor, ...]]

# Kinds of calls that are remembered. Each takes a few kilobytes.
MOST_KINDS = 1024
# What torch's allocators align to, and more than any kernel is specialised on.
ALIGNMENT = 512

_MAKES_EMPTY = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
)


class Unrepeatable(Exception):
    """Why a call cannot be recorded."""


class Repeatable:
    """``function``, the launches of which are repeated where a call is of a kind met before.

    ``launchers`` are the functions that launch kernels, to which ``function`` has no other way
    than its first argument. They may call further functions of their own package. ``options`` are
    whatever decides beside the tensors and ``environment_key``; no graph is recorded.
    """

    def __init__(self, function: Function, launchers: tuple[Any, ...]) -> None:
        self._function = function
        self._launchers = launchers
        # Where a kind cannot be recorded, why.
        self._recordings: Memo[Hashable, _Recording | str] = Memo(MOST_KINDS)
        self._met: Memo[Hashable, bool] = Memo(MOST_KINDS)

    def __call__(self, tensors: Tensors, *options: Hashable) -> tuple[Tensor, ...]:
        """What ``function(launchers, tensors, *options)`` returns."""
        if not may_replay():
            return self._function(self._launchers, tensors, *options)
        kind = (
            options,
            environment_key(_device_of(tensors)),
            tuple([tensor if tensor is None else _kind(tensor) for tensor in tensors]),
        )
        recording = self._recordings.get(kind)
        if recording is None:
            return self._first_calls(kind, tensors, options)
        if isinstance(recording, str):
            return self._function(self._launchers, tensors, *options)
        return recording.repeat(tensors)

    def refused(self) -> list[str]:
        """Why some kinds of calls that came at least twice are not repeated."""
        return [each for _, each in self._recordings.items() if isinstance(each, str)]

    def _first_calls(
        self, kind: Hashable, tensors: Tensors, options: tuple[Hashable, ...]
    ) -> tuple[Tensor, ...]:
        # A kind that is met once, as each length of a prompt may be, is not worth recording. The
        # first call also tunes and compiles, which must be over before anything is recorded.
        if self._met.get(kind) is None or _capturing():
            self._met.put(kind, True)
            return self._function(self._launchers, tensors, *options)
        self._met.discard(kind)
        try:
            recording, results = _record(self._function, self._launchers, tensors, options)
        except Exception as error:
            # Whatever it is, the function itself says it better, or works.
            if passing(error) is None:
                self._recordings.put(kind, f"{type(error).__name__}: {error}")
            return self._function(self._launchers, tensors, *options)
        self._recordings.put(kind, recording)
        return results


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    """What decides how a kernel is compiled and launched, but for the address."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr() & 15


def _device_of(tensors: Tensors) -> torch.device:
    return next(tensor.device for tensor in tensors if tensor is not None)


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class _Place(NamedTuple):
    """An argument that is an address: ``offset`` bytes into the buffer ``source``."""

    position: int
    source: int
    offset: int


class _Launch(NamedTuple):
    """A compiled kernel on its grid, its arguments, and which of them are addresses."""

    run: Callable[..., Any]
    arguments: list[Any]
    places: tuple[_Place, ...]


class _Result(NamedTuple):
    shape: torch.Size
    dtype: torch.dtype


class _Recording(NamedTuple):
    """What a call launches. Its buffers are the tensors given, the results, and a workspace."""

    device: torch.device
    results: tuple[_Result, ...]
    workspace: int
    launches: tuple[_Launch, ...]

    def repeat(self, tensors: Tensors) -> tuple[Tensor, ...]:
        device = self.device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self._repeat(tensors)
        return self._repeat(tensors)

    def _repeat(self, tensors: Tensors) -> tuple[Tensor, ...]:
        results = [
            torch.empty(shape, dtype=dtype, device=self.device) for shape, dtype in self.results
        ]
        workspace = torch.empty(self.workspace, dtype=torch.uint8, device=self.device)
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        addresses += [result.data_ptr() for result in results]
        addresses.append(workspace.data_ptr())
        for run, arguments, places in self.launches:
            filled = arguments.copy()
            for position, source, offset in places:
                filled[position] = addresses[source] + offset
            run(*filled)
        return tuple(results)


class _Observed(NamedTuple):
    """A launch as it was made: all arguments in order, and which of them are constants."""

    compiled: Any
    grid: tuple[int, ...]
    arguments: list[Any]
    constants: frozenset[int]


@torch.no_grad()
def _record(
    function: Function,
    launchers: tuple[Any, ...],
    tensors: Tensors,
    options: tuple[Hashable, ...],
) -> tuple[_Recording, tuple[Tensor, ...]]:
    """The recording of a call, and the results of repeating it on the tensors given."""
    # Copies of the tensors tell by their memory which of them an argument belongs to, also where
    # two of the tensors given share theirs.
    twins = tuple(tensor if tensor is None else _twin(tensor) for tensor in tensors)
    observed: list[_Observed] = []
    observing = _Observing(observed)
    rebound = tuple(observing.rebound(launcher) for launcher in launchers)
    with _Watching() as watching:
        expected = function(rebound, twins, *options)
    if watching.others:
        raise Unrepeatable(f"it calls {', '.join(sorted(watching.others))}")
    device = _device_of(tensors)
    for all_arguments in (True, False):
        # Triton 3.3 and later launch a compiled kernel with its constants, earlier ones without.
        recording = _recording(device, twins, expected, observed, all_arguments)
        try:
            results = recording.repeat(tensors)
        except TypeError:
            continue
        if all(_same_bits(*pair) for pair in zip(results, expected)):
            return recording, results
        break
    raise Unrepeatable("its results differ when it is repeated")


def _recording(
    device: torch.device,
    twins: Tensors,
    results: tuple[Tensor, ...],
    observed: list[_Observed],
    all_arguments: bool,
) -> _Recording:
    buffers = (*twins, *results)
    sources = {
        tensor.untyped_storage().data_ptr(): (source, tensor.data_ptr())
        for source, tensor in enumerate(buffers)
        if tensor is not None
    }
    if len(sources) != sum(tensor is not None for tensor in buffers):
        raise Unrepeatable("a result shares memory with another tensor")
    if not all(result.is_contiguous() and result.storage_offset() == 0 for result in results):
        raise Unrepeatable("a result is not contiguous")
    workspace = 0
    inside: dict[int, int] = {}
    launches = []
    for compiled, grid, arguments, constants in observed:
        kept: list[Any] = []
        places = []
        for index, argument in enumerate(arguments):
            if index in constants and not all_arguments:
                continue
            if isinstance(argument, Tensor):
                storage = argument.untyped_storage()
                start = storage.data_ptr()
                if start in sources:
                    source, base = sources[start]
                    offset = argument.data_ptr() - base
                else:
                    if start not in inside:
                        inside[start] = workspace
                        workspace += -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
                    source = len(buffers)
                    offset = inside[start] + argument.data_ptr() - start
                places.append(_Place(len(kept), source, offset))
            kept.append(None if isinstance(argument, Tensor) else argument)
        launches.append(_Launch(compiled[grid], kept, tuple(places)))
    kinds = tuple(_Result(result.shape, result.dtype) for result in results)
    return _Recording(device, kinds, workspace, tuple(launches))


def _twin(tensor: Tensor) -> Tensor:
    """A copy in memory of its own, with the same strides and alignment."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    shift, rest = divmod(tensor.data_ptr() & 15, tensor.element_size())
    if tensor.numel() == 0 or rest:
        raise Unrepeatable("a tensor is empty or lies between elements")
    memory = torch.empty(shift + extent, dtype=tensor.dtype, device=tensor.device)[shift:]
    memory.copy_(tensor.detach().as_strided((extent,), (1,)))
    return memory.as_strided(tensor.shape, tensor.stride())


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


class _Watching(TorchDispatchMode):
    """Notes every operation that neither makes an empty tensor nor views one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.others: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        schema = func._schema
        views = all(
            each.alias_info is not None and not each.alias_info.is_write for each in schema.returns
        )
        if schema.name not in _MAKES_EMPTY and not views:
            self.others.add(schema.name)
        return func(*args, **(kwargs or {}))


class _Observing:
    """Makes copies of functions in which each kernel notes its launches in ``observed``."""

    def __init__(self, observed: list[_Observed]) -> None:
        self._observed = observed
        self._rebound: dict[FunctionType, FunctionType] = {}

    def rebound(self, function: Any) -> Any:
        """The copy of a function, and of the functions of its package that it calls."""
        from triton.runtime.jit import KernelInterface

        function = own_of(function)
        if not isinstance(function, FunctionType):
            raise Unrepeatable(f"{function!r} is no function")
        if function in self._rebound:
            return self._rebound[function]
        namespace = dict(function.__globals__)
        copy = FunctionType(
            function.__code__,
            namespace,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        copy.__kwdefaults__ = function.__kwdefaults__
        self._rebound[function] = copy
        package = function.__module__.partition(".")[0]
        for name in set(_names(function.__code__)) & set(namespace):
            value = namespace[name]
            if isinstance(value, KernelInterface):
                namespace[name] = _Kernel(value, self._observed)
            elif isinstance(value, FunctionType) and value.__module__.partition(".")[0] == package:
                namespace[name] = self.rebound(value)
        return copy


def _names(code: CodeType) -> Iterator[str]:
    """The names that a function refers to, also in the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


class _Kernel:
    """A Triton kernel that notes how it is launched."""

    def __init__(self, kernel: Any, observed: list[_Observed]) -> None:
        self._kernel = kernel
        self._observed = observed

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        def launch(*arguments: Any, **keywords: Any) -> Any:
            compiled = self._kernel[grid](*arguments, **keywords)
            self._observed.append(_observe(self._kernel, compiled, grid, arguments, keywords))
            return compiled

        return launch


def _observe(
    kernel: Any, compiled: Any, grid: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> _Observed:
    from triton.runtime.autotuner import Autotuner, Heuristics
    from triton.runtime.jit import JITFunction

    values = {**dict(zip(kernel.arg_names, arguments)), **keywords}
    while not isinstance(kernel, JITFunction):
        if isinstance(kernel, Autotuner):
            if kernel.best_config.pre_hook is not None:
                raise Unrepeatable("a kernel's configuration has a hook of its own")
            values.update(kernel.best_config.all_kwargs())
        elif isinstance(kernel, Heuristics):
            for name, heuristic in kernel.values.items():
                values[name] = heuristic(values)
        else:
            raise Unrepeatable(f"a kernel is a {type(kernel).__name__}")
        kernel = kernel.fn
    if compiled is None:
        raise Unrepeatable("a kernel is not compiled")
    for parameter in kernel.params:
        if parameter.name not in values:
            values[parameter.name] = parameter.default
    sizes = grid(values) if callable(grid) else grid
    return _Observed(
        compiled,
        (*sizes, 1, 1)[:3],
        [values[name] for name in kernel.arg_names],
        frozenset(parameter.num for parameter in kernel.params if parameter.is_constexpr),
    )
