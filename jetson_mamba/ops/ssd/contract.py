"""The interface of a backend of Mamba-2's scan: what it is given, what it gives back.

This stands in a module of its own so that the op and its backends can both
import it. The op checks the arguments; a backend meets only those that fit together.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor

from jetson_mamba.dispatch.autocast import compute_dtype
from jetson_mamba.dispatch.fields import Fields


class Case(NamedTuple):
    """What decides whether a backend applies.

    ``dtype`` is what is computed in; ``rounds_states`` whether a dtype for the states between
    chunks is named. ``number`` is the dtype of x, float32 where B, C or z has another.
    """

    device: torch.device
    dtype: torch.dtype
    rounds_states: bool = False
    number: torch.dtype = torch.float32
    headdim: int = 64
    dstate: int = 128


def case_of_mixer(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    initial_states: Tensor | None,
    headdim: int,
    ngroups: int,
    state_dtype: torch.dtype | None,
) -> Case:
    """What decides which backend applies to a mixer."""
    return Case(
        zxbcdt.device,
        compute_dtype(zxbcdt, A, D, dt_bias, initial_states),
        state_dtype is not None,
        zxbcdt.dtype,
        headdim,
        (conv1d_weight.shape[0] - A.shape[0] * headdim) // 2 // ngroups,
    )


class Scan(NamedTuple):
    """The arguments of one scan; shapes as in ``mamba_chunk_scan_combined``.

    ``cu_seqlens`` is given where the states at the end of each sequence are wanted. With
    ``state_dtype`` the states that are read at the start of each chunk of ``chunk_size`` are
    rounded to that; what passes from chunk to chunk is not. Without ``last_state`` nobody looks at
    the last state, which may be any tensor then.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    initial_states: Tensor | None
    seq_idx: Tensor | None
    cu_seqlens: Tensor | None
    chunk_size: int
    dt_softplus: bool
    dt_limit: tuple[float, float]
    state_dtype: torch.dtype | None = None
    last_state: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: at least float32, float64 if any argument is."""
        return compute_dtype(
            *(self.x, self.dt, self.A, self.B, self.C),
            *(self.D, self.z, self.dt_bias, self.initial_states),
        )

    @property
    def case(self) -> Case:
        """What decides which backend applies."""
        number = self.x.dtype
        for tensor in (self.B, self.C, self.z):
            if tensor is not None and tensor.dtype != number:
                number = torch.float32
        return Case(
            self.x.device,
            self.dtype,
            self.state_dtype is not None,
            number,
            self.x.shape[3],
            self.B.shape[3],
        )


class Mixer(NamedTuple):
    """The arguments of a whole Mamba-2 mixer; shapes as in ``mamba_split_conv1d_scan_combined``."""

    zxbcdt: Tensor
    conv1d_weight: Tensor
    conv1d_bias: Tensor | None
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    initial_states: Tensor | None
    rmsnorm_weight: Tensor | None
    outproj_weight: Tensor | None
    outproj_bias: Tensor | None
    seq_idx: Tensor | None
    chunk_size: int
    dt_limit: tuple[float, float]
    activation: str | None
    rmsnorm_eps: float
    headdim: int
    ngroups: int
    norm_before_gate: bool
    state_dtype: torch.dtype | None = None
    last_state: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """What its scan computes in: at least float32, float64 if any argument of that is."""
        return compute_dtype(self.zxbcdt, self.A, self.D, self.dt_bias, self.initial_states)

    @property
    def case(self) -> Case:
        """What decides which backend applies."""
        return case_of_mixer(
            *(self.zxbcdt, self.conv1d_weight, self.A, self.D, self.dt_bias, self.initial_states),
            *(self.headdim, self.ngroups, self.state_dtype),
        )


SCAN, MIXER = Fields(Scan), Fields(Mixer)


class ScanGradients(NamedTuple):
    """The gradients of a scan's tensors, each in the dtype of what it belongs to."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    dt_bias: Tensor | None
    initial_states: Tensor | None


class Core(NamedTuple):
    """A mixer with a norm between its two projections, and what its backward pass is given again.

    ``out`` (batch, seqlen, dim) is that of the norm, ``final_states`` the last state; ``xBC``
    (batch, seqlen, channels) that of the convolution, ``scanned`` (batch, seqlen, nheads, headdim)
    that of the scan. ``rstd`` (ngroups * batch * seqlen,) is one over the root mean square of each
    group of a step, the steps of a group one after another. All contiguous.
    """

    out: Tensor
    final_states: Tensor
    xBC: Tensor
    scanned: Tensor
    rstd: Tensor


class CoreGradients(NamedTuple):
    """The gradients of a core's arguments, each in the dtype of what it belongs to."""

    zxbcdt: Tensor
    conv1d_weight: Tensor
    conv1d_bias: Tensor | None
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    rmsnorm_weight: Tensor


class Implementation(NamedTuple):
    """The functions of a backend: the first two record a graph, the others none.

    A scan returns out in the dtype of x, the last state in that of the sums, and, given
    ``cu_seqlens``, the states at the ends of the sequences, with which it has no backward. A
    mixer returns out after norm, gate and projection, and the last state. A core is given a mixer
    with a norm, and without an MLP and initial states; it looks at no projection.
    """

    scan: Callable[[Scan], tuple[Tensor, Tensor, Tensor | None]]
    mixer: Callable[[Mixer], tuple[Tensor, Tensor]]
    scan_forward: Callable[[Scan], tuple[Tensor, Tensor, Tensor | None]]
    # The scan has no z; the gradients given are of out and of the last state, which may be None.
    scan_backward: Callable[[Scan, Tensor, Tensor | None], ScanGradients]
    mixer_forward: Callable[[Mixer], tuple[Tensor, Tensor]]
    core_forward: Callable[[Mixer], Core]
    # The gradients given are of out and of the last state, which may be None.
    core_backward: Callable[[Mixer, Core, Tensor, Tensor | None], CoreGradients]
    # Whether a call that records a graph is theirs where upstream's autograd functions could run.
    comes_before_triton: bool = False


def refuse_varlen_states(given: Scan) -> None:
    """Raise RuntimeError for a scan of which kernels have no backward pass."""
    if given.cu_seqlens is not None:
        raise RuntimeError("return_varlen_states: a scan that returns them has no backward")
