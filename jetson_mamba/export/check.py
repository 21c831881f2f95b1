"""Compares a file, run in ONNX Runtime at several sizes, with its model."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from jetson_mamba.errors import CannotRun

# What results may differ by, over the largest of them.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-2}
# Lengths about the chunks that forms work by.
LENGTHS = (1, 63, 65)


class Open(NamedTuple):
    """A size that a file leaves open: where it stands, what it was, and its bounds."""

    places: list[tuple[int, int]]
    traced: int
    least: int
    most: int


class Compared(NamedTuple):
    """One run: the sizes that are open, and the largest error over the largest result."""

    sizes: Mapping[str, int]
    error: float


class Times(NamedTuple):
    """Seconds of a call at the sizes of the export, the least of several."""

    runtime: float
    eager: float


def tensors_of(results: Any) -> list[Tensor]:
    """The tensors of what a module returned, in order."""
    return [each for each in pytree.tree_leaves(results) if isinstance(each, Tensor)]


def in_one_line(error: BaseException) -> str:
    """What an error says, with its kind."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def session(path: Path) -> Any:
    """A session on the CPU, with as many threads as torch has.

    Raises CannotRun where the runtime does not take the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:
        raise CannotRun(
            f"ONNX Runtime {onnxruntime.__version__} does not take the file: {error}"
        ) from error


class Check:
    """A module and its arguments, for any file that was made of them."""

    def __init__(
        self,
        module: torch.nn.Module,
        args: Sequence[Tensor],
        sizes: Mapping[str, Open],
        tolerance: float | None,
    ) -> None:
        self.module, self.args, self.sizes = module, args, sizes
        try:
            with torch.no_grad():
                self._expected = tensors_of(module(*args))
        except Exception as error:
            given = ", ".join(f"{each.dtype} {tuple(each.shape)}" for each in args)
            raise CannotRun(
                f"model: expected it to take arguments of {given.replace('torch.', '')}, found "
                f"{in_one_line(error)}; give others"
            ) from error
        if not self._expected:
            raise CannotRun("model: expected tensors as its results, found none")
        if any(not torch.isfinite(each).all() for each in self._expected):
            raise CannotRun("model: expected finite results, found others; nothing can be compared")
        dtypes = [each.dtype for each in self._expected if each.is_floating_point()]
        unknown = [dtype for dtype in dtypes if dtype not in TOLERANCE]
        if unknown:
            raise CannotRun(
                f"model: expected results of float64, float32 or float16, found {unknown[0]}, "
                "which ONNX Runtime does not give back; export model.float()"
            )
        self.tolerance = tolerance or max([TOLERANCE[dtype] for dtype in dtypes], default=0.0)

    def at_traced_sizes(self, session: Any) -> tuple[float, Times]:
        """The error at the sizes of the export, and the times there."""
        feed = _feed(session, self.args)
        error = _error(session.run(None, feed), self._expected)
        with torch.no_grad():
            eager = _seconds(lambda: self.module(*self.args))
        return error, Times(_seconds(lambda: session.run(None, feed)), eager)

    def at_other_sizes(self, session: Any) -> Iterator[Compared]:
        """Errors at sizes that the file was not made at, those that the model itself takes."""
        for sizes in self._others():
            args = self._resized(sizes)
            try:
                with torch.no_grad():
                    expected = tensors_of(self.module(*args))
            except Exception:  # the model's own limits
                continue
            try:
                found = session.run(None, _feed(session, args))
            except Exception as error:
                where = ", ".join(f"{name}={size}" for name, size in sizes.items())
                raise CannotRun(f"ONNX Runtime fails at {where}: {error}") from error
            yield Compared(sizes, _error(found, expected))

    def resized_to_two(self) -> list[Tensor]:
        """The arguments with each open size of 2 at least."""
        if all(each.traced > 1 for each in self.sizes.values()):
            return list(self.args)
        return self._resized({name: max(each.traced, 2) for name, each in self.sizes.items()})

    def _others(self) -> Iterator[dict[str, int]]:
        traced = {name: each.traced for name, each in self.sizes.items()}
        if not traced:
            yield {}
            return
        wider = {name: 2 * each.traced + 1 for name, each in self.sizes.items()}
        for name, each in self.sizes.items():
            is_batch = all(axis == 0 for _, axis in each.places)
            for size in (1, 3) if is_batch else (*LENGTHS, wider[name]):
                if size != each.traced:
                    yield from self._within({**traced, name: size})
        if len(wider) > 1:
            yield from self._within(wider)

    def _within(self, sizes: dict[str, int]) -> Iterator[dict[str, int]]:
        if all(each.least <= sizes[name] <= each.most for name, each in self.sizes.items()):
            yield sizes

    def _resized(self, sizes: Mapping[str, int]) -> list[Tensor]:
        shapes = [list(each.shape) for each in self.args]
        for name, each in self.sizes.items():
            for argument, axis in each.places:
                shapes[argument][axis] = sizes.get(name, each.traced)
        return [_drawn(like, shape) for like, shape in zip(self.args, shapes)]


def _drawn(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Other values of the same kind: of floats their spread, of others those that there are."""
    if like.is_floating_point():
        spread = like.float().std() if like.numel() > 1 else torch.ones(())
        return (torch.randn(shape) * spread + like.float().mean()).to(like.dtype)
    return like.flatten()[torch.randint(0, like.numel(), tuple(shape))]


def _feed(session: Any, args: Sequence[Tensor]) -> dict[str, Any]:
    names = [each.name for each in session.get_inputs()]
    return {name: each.detach().numpy() for name, each in zip(names, args)}


def _error(found: Sequence[Any], expected: Sequence[Tensor]) -> float:
    """The largest error of any result, over the largest that this result holds."""
    worst = 0.0
    for actual, right in zip(found, expected):
        if not right.numel():
            continue
        if tuple(actual.shape) != tuple(right.shape):
            return float("inf")
        difference = (torch.from_numpy(actual).double() - right.double()).abs().max().item()
        scale = right.double().abs().max().item() if right.is_floating_point() else 1.0
        worst = max(worst, difference / scale if scale else difference)
        if math.isnan(difference):
            return float("inf")
    return worst


def _seconds(call: Callable[[], Any], runs: int = 5, limit: float = 10.0) -> float:
    """The least of several runs after one that warms up, as many as the time allows."""
    call()
    found: list[float] = []
    while len(found) < runs and (not found or sum(found) < limit):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)
