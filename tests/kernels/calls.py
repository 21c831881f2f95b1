"""Calls of every kind that the kernels tell apart, to look at what is launched for them."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Iterator, NamedTuple

import torch
from torch import Tensor

from jetson_mamba.ops.causal_conv1d import contract as conv_contract
from jetson_mamba.ops.causal_conv1d import cuda as conv
from jetson_mamba.ops.decoding import contract as step_contract
from jetson_mamba.ops.decoding import cuda as step
from jetson_mamba.ops.decoding import layers, layers_cuda
from jetson_mamba.ops.norms import contract as norm_contract
from jetson_mamba.ops.norms import cuda as norm
from jetson_mamba.ops.norms.contract import Gate
from jetson_mamba.ops.selective_scan import contract as scan_contract
from jetson_mamba.ops.selective_scan import cuda as scan
from jetson_mamba.ops.ssd import cuda_backward, cuda_forward
from jetson_mamba.ops.ssd.contract import Scan
from jetson_mamba.ops.swiglu import contract as swiglu_contract
from jetson_mamba.ops.swiglu import cuda as swiglu
from tests.kernels.layers import Mamba, Mamba2

BRAIN, HALF, FLOAT = torch.bfloat16, torch.float16, torch.float32
SEVERAL = {BRAIN: "bfloat16", HALF: "float16", FLOAT: "float32"}
ON_A_GPU = torch.device("cuda", 0)


class Call(NamedTuple):
    """A call by its name, its tensors by theirs, and what makes it."""

    name: str
    given: dict[str, Any]
    make: Callable[[], object]


def made(load: Callable[[Any], Any], case: Any, name: str, *given: Any) -> Callable[[], object]:
    """A call of a backend's function, which is loaded first."""

    def make() -> object:
        return getattr(load(case), name)(*given)

    return make


def empty(*shape: int, dtype: torch.dtype = FLOAT, last: int = 0, shift: int = 0) -> Tensor:
    """A tensor whose rows have ``last`` more columns, or that begins ``shift`` numbers later."""
    whole = torch.empty(*shape[:-1], shape[-1] + last + shift, dtype=dtype)
    return whole[..., shift : shift + shape[-1]]


def in_layout(layout: str, dtype: torch.dtype, batch: int, dim: int, seqlen: int) -> Tensor:
    """A convolution's (batch, dim, seqlen)."""
    if layout.startswith("channels"):
        wide = empty(batch, seqlen, dim, dtype=dtype, last=dim if "slice" in layout else 0)
        return wide.transpose(1, 2)
    if layout == "general":
        return empty(batch, dim, 2 * seqlen, dtype=dtype)[..., ::2]
    return empty(batch, dim, seqlen, dtype=dtype, shift=1 if "odd" in layout else 0)


def convolutions() -> Iterator[Call]:
    """Of every layout, with and without sequences and states."""
    for layout, dtype, batch, dim, seqlen, has in (
        ("time", BRAIN, 1, 1536, 2048, ""),
        ("time", FLOAT, 8, 1536, 512, "bias"),
        ("time", HALF, 2, 64, 8192, "bias sequences"),
        ("time", HALF, 1, 16, 77, "bias states"),
        ("time odd", FLOAT, 2, 24, 64, "silu"),
        ("channels", BRAIN, 1, 1792, 2048, "bias silu"),
        ("channels", FLOAT, 8, 1792, 512, "bias silu"),
        ("channels", HALF, 2, 256, 8192, "sequences"),
        ("channels", FLOAT, 2, 99, 77, "bias states"),
        ("channels slice", BRAIN, 2, 128, 4096, "bias silu states sequences"),
        ("general", FLOAT, 2, 64, 100, "bias"),
    ):
        for width in (4,) if "bias" in has else (2, 3):
            case = conv_contract.Case(ON_A_GPU, dtype, FLOAT, width)
            x = in_layout(layout, dtype, batch, dim, seqlen)
            states = empty(batch, dim, width - 1, dtype=dtype) if "states" in has else None
            given = {
                "x": x,
                "weight": empty(dim, width),
                "bias": empty(dim) if "bias" in has else None,
                "seq_idx": empty(batch, seqlen, dtype=torch.int32) if "seq" in has else None,
                "initial": states,
                "final": None if states is None else torch.empty_like(states),
            }
            silu = "silu" in has
            last = (given["bias"], in_layout(layout, dtype, batch, dim, seqlen), given["seq_idx"])
            name = f"{layout} {SEVERAL[dtype]} {batch}, {dim}, {seqlen}; {width}, {has or 'x'}"
            yield Call(
                f"convolution {name}",
                given,
                made(conv.load, case, "forward", *given.values(), silu),
            )
            yield Call(
                f"its gradients {name}",
                {**given, "dout": last[1]},
                made(
                    *(conv.load, case, "backward", x, given["weight"], *last),
                    *(states, states, None, states is not None, silu),
                ),
            )
    for batch, dim, seqlen in ((1, 1536, 1), (70000, 8, 2)):
        case = conv_contract.Case(ON_A_GPU, BRAIN, BRAIN, 4)
        given = {
            "x": empty(batch, dim, seqlen, dtype=BRAIN),
            "state": empty(batch, dim, 5, dtype=BRAIN),
            "weight": empty(dim, 4, dtype=BRAIN),
        }
        yield Call(
            f"a convolution's step {batch}, {dim}, {seqlen}",
            given,
            made(conv.load, case, "update", *given.values(), None, None, None, True),
        )


def norms() -> Iterator[Call]:
    """Of rows of every length, with gates, residuals and groups."""
    for rows, dim, group, dtype, gate, has in (
        (4096, 768, 768, BRAIN, Gate.NONE, "residual"),
        (1, 2560, 2560, BRAIN, Gate.NONE, "residual"),
        (300, 1536, 384, HALF, Gate.INPUT, ""),
        (7, 5120, 5120, FLOAT, Gate.OUTPUT, "bias"),
        (64, 100, 50, FLOAT, Gate.INPUT, "bias residual"),
        (2048, 33, 33, BRAIN, Gate.NONE, ""),
        (40, 8192, 8192, BRAIN, Gate.NONE, ""),
        (3000, 4096, 4096, FLOAT, Gate.INPUT, ""),
    ):
        case = norm_contract.Case(ON_A_GPU, dtype, FLOAT)
        options = norm_contract.Options(1e-5, group, "bias" not in has, gate)
        x = empty(rows, dim, dtype=dtype)
        given = {
            "x": x,
            "residual": empty(rows, dim) if "residual" in has else None,
            "z": empty(rows, dim, dtype=dtype, last=dim) if gate else None,
            "weight": empty(dim),
            "bias": empty(dim) if "bias" in has else None,
        }
        total = FLOAT if "residual" in has else None
        name = f"{rows}, {dim} in {group} {SEVERAL[dtype]} {gate.name.lower()} {has}".rstrip()
        yield Call(
            f"norm {name}",
            given,
            made(norm.load, case, "forward", *given.values(), total, dtype, options, True),
        )
        back = {
            "source": empty(rows, dim) if total else x,
            "z": given["z"],
            "weight": given["weight"],
            "bias": given["bias"],
            "dout": empty(rows, dim, dtype=dtype),
            "dtotal": empty(rows, dim) if total else None,
        }
        yield Call(
            f"its gradients {name}",
            back,
            made(norm.load, case, "backward", *back.values(), total, options, None),
        )


def scans() -> Iterator[Call]:
    """Of few and many states and channels."""
    for batch, dim, seqlen, dstate, groups, dtype, has in (
        (1, 1536, 2048, 16, 1, BRAIN, "D z bias"),
        (8, 1536, 512, 16, 1, FLOAT, "D"),
        (1, 48, 8192, 16, 2, HALF, "D z bias"),
        (2, 40, 1000, 1, 1, FLOAT, "bias"),
        (1, 64, 4096, 64, 1, BRAIN, "z"),
        (2, 24, 600, 200, 1, FLOAT, ""),
        (1, 20, 700, 4, 1, FLOAT, "complex"),
        (1, 20, 700, 24, 1, FLOAT, "constant D"),
        (1, 640, 333, 130, 1, HALF, "complex z"),
    ):
        number = torch.complex64 if "complex" in has else FLOAT
        case = scan_contract.Case(ON_A_GPU, dtype, number is torch.complex64, dstate)
        steps = 2 * seqlen if "complex" in has else seqlen
        B = empty(batch, groups, dstate, steps, dtype=dtype)
        u = empty(batch, dim, seqlen, dtype=dtype)
        given = scan_contract.Scan(
            *(u, empty(batch, dim, seqlen, dtype=dtype), empty(dim, dstate, dtype=number)),
            empty(dim, dstate, dtype=number) if "constant" in has else B,
            torch.empty_like(B),
            empty(dim) if "D" in has else None,
            empty(batch, 2 * dim, seqlen, dtype=dtype)[:, dim:] if "z" in has else None,
            empty(dim) if "bias" in has else None,
            "bias" in has,
        )
        out = None if given.z is None else empty(batch, dim, seqlen, dtype=dtype)
        returning = scan_contract.Returning(torch.empty_like(u), None, out, None, "bias" in has)
        names = given._asdict()
        name = f"{batch}, {dim}, {seqlen}; {dstate} in {groups} {SEVERAL[dtype]} {has}".rstrip()
        yield Call(f"scan {name}", names, made(scan.load, case, "forward", given))
        yield Call(f"its output {name}", names, partial(scan.output, given))
        yield Call(
            f"its gradients {name}",
            {**names, "dout": returning.dout, "out": out},
            partial(scan.backward, given, returning),
        )


def heads() -> Iterator[Call]:
    """Mamba-2's scan, of few and many heads, short and long."""
    for batch, seqlen, nheads, groups, headdim, dstate, dtype, has in (
        (1, 2048, 24, 1, 64, 128, BRAIN, "D bias"),
        (8, 512, 24, 1, 64, 128, HALF, "D bias"),
        (1, 8192, 2, 1, 64, 64, BRAIN, ""),
        (1, 4096, 80, 8, 64, 128, BRAIN, "D bias states sequences"),
        (1, 300, 80, 1, 64, 128, BRAIN, "bias"),
        (2, 700, 3, 1, 80, 24, FLOAT, "channels states"),
        (1, 64, 4, 2, 20, 10, FLOAT, "D"),
        (1, 130, 4, 1, 64, 256, HALF, "bias"),
        (3, 1000, 128, 1, 128, 128, BRAIN, "channels bias"),
        (1, 200, 4, 1, 64, 128, BRAIN, "slice"),
    ):
        odd = 3 if "slice" in has else 0
        B = empty(batch, seqlen, groups, dstate, dtype=dtype)
        given = Scan(
            empty(batch, seqlen, nheads, headdim, dtype=dtype, last=odd),
            empty(batch, seqlen, nheads, dtype=dtype),
            empty(nheads),
            B,
            torch.empty_like(B),
            empty(nheads, headdim) if "channels" in has else empty(nheads) if "D" in has else None,
            None,
            empty(nheads) if "bias" in has else None,
            empty(batch, nheads, headdim, dstate) if "states" in has else None,
            empty(batch, seqlen, dtype=torch.int32) if "sequences" in has else None,
            None,
            256,
            "bias" in has,
            (0.0, float("inf")) if "D" in has else (0.001, 0.1),
        )
        dout = torch.empty(given.x.shape, dtype=dtype)
        dstate_given = empty(batch, nheads, headdim, dstate) if "states" in has else None
        name = f"{batch}, {seqlen}, {nheads} in {groups}, {headdim}; {dstate} {SEVERAL[dtype]}"
        name = f"{name} {has}".rstrip()
        names = given._asdict()
        yield Call(f"heads {name}", names, partial(cuda_forward.forward, given))
        yield Call(
            f"their gradients {name}",
            {**names, "dout": dout, "dstate": dstate_given},
            partial(cuda_backward.backward, given, dout, dstate_given),
        )


def steps() -> Iterator[Call]:
    """A step of the states, of Mamba and of Mamba-2."""
    for batch, nheads, dim, dstate, dtype, tied in (
        (1, 1, 1536, 16, BRAIN, False),
        (64, 1, 1536, 16, FLOAT, False),
        (1, 24, 64, 128, BRAIN, True),
        (32, 80, 64, 128, BRAIN, True),
        (2, 4, 20, 10, FLOAT, True),
        (1, 2, 64, 1, HALF, False),
        (1, 2, 64, 1024, FLOAT, True),
    ):
        wide = (nheads, dim, dstate)
        A = empty(nheads, 1, 1).expand(wide) if tied else empty(*wide)
        dt = empty(batch, nheads, 1, dtype=dtype).expand(batch, nheads, dim)
        D = empty(nheads, 1).expand(nheads, dim) if tied else empty(nheads, dim)
        B = empty(batch, 1, dstate, dtype=dtype)
        given = step_contract.Step(
            empty(batch, *wide),
            empty(batch, nheads, dim, dtype=dtype),
            dt if tied else empty(batch, nheads, dim, dtype=dtype),
            A,
            *(B, torch.empty_like(B)),
            D,
            None if tied else empty(batch, nheads, dim, dtype=dtype),
            D,
            None,
            True,
        )
        case = step_contract.Case(ON_A_GPU, FLOAT, dtype, dtype, FLOAT)
        yield Call(
            f"step {batch}, {nheads}, {dim}; {dstate} {SEVERAL[dtype]}",
            given._asdict(),
            made(step.load, case, "__call__", given),
        )


def gates() -> Iterator[Call]:
    """The gate of an MLP."""
    for rows, dim, dtype in ((1, 8192, BRAIN), (512, 1000, HALF), (3, 33, FLOAT)):
        given = {"xy": empty(rows, 2 * dim, dtype=dtype), "out": empty(rows, dim, dtype=dtype)}
        back = {**given, "dxy": empty(rows, 2 * dim, dtype=dtype)}
        case = swiglu_contract.Case(ON_A_GPU, dtype)
        name = f"{rows}, {dim} {SEVERAL[dtype]}"
        yield Call(
            f"gate {name}",
            given,
            made(swiglu.load, case, "forward", *given.values()),
        )
        yield Call(
            f"its gradients {name}",
            back,
            made(swiglu.load, case, "backward", *back.values(), None),
        )


def layers_of(kind: Any, dtype: torch.dtype, **sizes: Any) -> Any:
    """A layer whose weights are any numbers."""
    with torch.device("meta"):
        found = kind(**sizes)
    return found.to(dtype).to_empty(device="cpu")


def take(block: Any, *given: Tensor) -> None:
    """A step of a block, where it is one of few kernels."""
    found = layers._read(block, layers._options)
    assert found is not None
    of, weights = found
    layer = getattr(layers_cuda, type(block).__name__)(of, *given, weights)
    chain = layer.chain_of(weights)
    if chain is not None:
        layer(chain, block, *given, weights)


def whole_steps() -> Iterator[Call]:
    """A token of a layer."""
    for kind, batch, dtype, sizes in (
        (Mamba, 1, BRAIN, {"width": 768, "dt_rank": 48}),
        (Mamba, 3, FLOAT, {"width": 768, "dt_rank": 48, "bias": True}),
        (Mamba, 5, BRAIN, {"width": 64}),
        (Mamba2, 1, BRAIN, {"width": 768}),
        (Mamba2, 1, BRAIN, {"width": 2560}),
        (Mamba2, 4, FLOAT, {"width": 768, "ngroups": 2, "group_size": 768, "bias": True}),
        (Mamba2, 1, HALF, {"width": 64, "norm_before_gate": True}),
        (Mamba2, 2, HALF, {"width": 64, "rmsnorm": False}),
    ):
        block = layers_of(kind, dtype, **sizes)
        hidden = empty(batch, 1, sizes["width"], dtype=dtype)
        conv_state, state = block.states(batch, FLOAT)
        names = {"hidden": hidden, "conv_state": conv_state, "state": state}
        given = {**names, **dict(block.named_parameters())}
        told = ", ".join(f"{name}={value}" for name, value in sizes.items())

        yield Call(
            f"{kind.__name__} {batch} {SEVERAL[dtype]} {told}",
            given,
            partial(take, block, *names.values()),
        )


KINDS: dict[str, Callable[[], Iterator[Call]]] = {
    each.__name__: each for each in (convolutions, norms, scans, heads, steps, gates, whole_steps)
}
