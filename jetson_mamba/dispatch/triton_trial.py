"""A small Triton kernel, which shows whether any can be launched at all.

Triton reads its source from this file, and keeps what it compiled of it as that of any kernel.
"""

# Without "annotations" of __future__: Triton 2 takes them as they are.

import torch
import triton
import triton.language as tl

COUNT = 16


@triton.jit  # type: ignore[untyped-decorator]
def _double_kernel(x_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    offsets = tl.arange(0, BLOCK)
    tl.store(x_ptr + offsets, tl.load(x_ptr + offsets) * 2.0)


def launch(device: torch.device) -> None:
    """Double some numbers on a GPU.

    Raises whatever Triton does, and RuntimeError if they are not doubled.
    """
    with torch.cuda.device(device):
        numbers = torch.arange(COUNT, dtype=torch.float32, device=device)
        _double_kernel[(1,)](numbers, BLOCK=COUNT)
        found = numbers.tolist()
    if found != [2.0 * each for each in range(COUNT)]:
        raise RuntimeError(f"a kernel that doubles the numbers to {COUNT - 1} gave {found}")
