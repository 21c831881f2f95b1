"""The gate by the CUDA kernels of this project, in one pass over memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.tensors import MOST_PLANS, NUMBERS, VECTOR_BYTES, address, index_of

from .contract import Case, Implementation

MOST_THREADS = 256


def load(case: Case) -> Implementation:
    """The kernels for a case; raises :class:`Unavailable` where they do not apply."""
    if case.device.type != "cuda":
        raise Unavailable("the kernels run on CUDA devices only")
    if case.dtype not in NUMBERS:
        raise Unavailable(f"the kernels are for float32, float16 and bfloat16, not {case.dtype}")
    kernels = _Kernels(case)
    return Implementation(kernels.forward, kernels.backward)


class Plan(NamedTuple):
    """What all calls share whose tensors differ in nothing but their addresses."""

    launch: compiler.Launch
    constants: tuple[int, ...]


class _Kernels:
    """The kernels of one case, each loaded when it is first needed."""

    def __init__(self, case: Case) -> None:
        self._index = index_of(case.device)
        self._dtype = case.dtype
        self._plans: Memo[tuple[Any, ...], Plan] = Memo(MOST_PLANS)

    def forward(self, xy: Tensor, out: Tensor) -> None:
        """As :class:`~.contract.Implementation` says."""
        self._launch("swiglu_forward", (xy, out))

    def backward(self, xy: Tensor, dout: Tensor, dxy: Tensor, out: Tensor | None) -> None:
        """As :class:`~.contract.Implementation` says."""
        self._launch("swiglu_backward", (xy, dout, dxy, out))

    def _launch(self, name: str, tensors: tuple[Tensor | None, ...]) -> None:
        with torch.cuda.device(self._index):
            key = (name, *map(_traits, tensors))
            plan = self._plans.get(key)
            if plan is None:
                plan = self._plans.put(key, self._plan(name, tensors))
            stream = compiler.current_stream(self._index)
            plan.launch(stream, *map(address, tensors), *plan.constants)

    def _plan(self, name: str, tensors: tuple[Tensor | None, ...]) -> Plan:
        xy, last = tensors[0], tensors[-1]
        assert xy is not None
        rows, dim = xy.shape[0], xy.shape[1] // 2
        vector = vector_of(tensors, dim)
        runs = dim // vector
        threads = min(MOST_THREADS, 32 * -(-runs // 32))
        defines = defines_of(self._dtype, vector, last is not None)
        kernel = compiler.load("swiglu.cu", name, defines, self._index)
        grid = (rows, -(-runs // threads), 1)
        strides = (0 if each is None else each.stride(0) for each in tensors)
        launch = compiler.Launch(kernel, grid, (threads, 1, 1), overlapping=True)
        return Plan(launch, (dim, *strides))


def vector_of(tensors: tuple[Tensor | None, ...], dim: int) -> int:
    """The most neighbouring elements that one access may move in every row of all of them."""
    given = [each for each in tensors if each is not None]
    size = given[0].element_size()
    vector = VECTOR_BYTES // size
    while dim % vector or any(
        each.data_ptr() % (vector * size) or each.stride(0) % vector for each in given
    ):
        vector //= 2
    return vector


def defines_of(dtype: torch.dtype, vector: int, outputs: bool) -> tuple[tuple[str, str], ...]:
    """The definitions of the kernels."""
    return (
        ("NUMBER", NUMBERS[dtype]),
        ("VECTOR", str(vector)),
        ("OUTPUT", str(int(outputs))),
    )


def _traits(tensor: Tensor | None) -> tuple[Any, ...] | None:
    """What a plan depends on of a tensor."""
    if tensor is None:
        return None
    return tensor.shape, tensor.stride(0), tensor.data_ptr() % VECTOR_BYTES
