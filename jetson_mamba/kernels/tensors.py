"""What kernels are told of tensors."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# Numbers as the sources call them.
NUMBERS = {torch.float32: "float", torch.float16: "half_t", torch.bfloat16: "bfloat16_t"}
VECTOR_BYTES = 16
# Of a grid's second and third dimension.
MAXIMUM_GRID = 65535
# Plans of a pass that are remembered.
MOST_PLANS = 256


def address(tensor: Tensor | None) -> int:
    """Where a tensor lies, 0 where there is none."""
    return 0 if tensor is None else tensor.data_ptr()


def packed(tensor: Tensor | None) -> Tensor | None:
    """A tensor, if there is one, without gaps: a copy only where it has them."""
    return None if tensor is None else tensor.contiguous()


def strides_of(tensor: Tensor | None, count: int = 3) -> tuple[int, ...]:
    """The strides, zeros for those of a tensor that there is not."""
    return (0,) * count if tensor is None else tensor.stride()


def rows(tensor: Tensor) -> Tensor:
    """A tensor with its last dimension packed: a copy only where it is not."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def index_of(device: torch.device) -> int:
    """The number of a GPU, also of the current one, which need not be named."""
    return torch.cuda.current_device() if device.index is None else device.index


# Of a GPU, by its index, the multiprocessors that plans are made for where it is not all of them.
planned_for: dict[int, int] = {}


def processors(index: int) -> int:
    """The multiprocessors of a GPU that plans are made for."""
    return planned_for.get(index) or _all_processors(index)


@lru_cache(maxsize=None)
def _all_processors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)
