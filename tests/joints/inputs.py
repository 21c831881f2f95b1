"""Joints of inputs out of the ordinary.

Other sizes, strides and kinds, and those that are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.joints.declared import BLOCKS, TRANSFORMERS, joint
from tests.joints.measures import (
    Results,
    Wrong,
    by_any_error,
    gradients,
    loss,
    out_of,
    same,
    trained,
)
from tests.joints.subjects import SEQLEN, WIDTH, Subject, hooked, mixers


class Plain(torch.Tensor):
    """A subclass that has nothing of its own."""


class Counting(torch.Tensor):
    """A subclass that counts the functions it is given to."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the call, and make it."""
        Counting.calls += 1
        return super().__torch_function__(  # type: ignore[no-untyped-call]
            func, types, args, kwargs or {}
        )


def _both(s: Subject, x: Tensor) -> Results:
    module = s.module()
    return {"evaluated": out_of(module, x), **trained(module, x)}


def _as_it_is(s: Subject, x: Tensor) -> Results:
    """Of an input whose strides and kind stay as they are."""
    module = s.module().train()
    out = module(x)
    loss(out).backward()
    evaluated = out_of(module, x)
    return {"evaluated": evaluated, "out": out.detach(), **gradients(module)}


@joint("transposed")
def transposed(s: Subject) -> Results:
    return _as_it_is(s, s.x.transpose(0, 1).contiguous().transpose(0, 1))


@joint("channels before steps")
def channels_first(s: Subject) -> Results:
    return _as_it_is(s, s.x.mT.contiguous().mT)


@joint("one sample expanded to a batch")
def expanded(s: Subject) -> Results:
    x = s.x[:1].clone().requires_grad_()
    module = s.module().train()
    loss(module(x.expand(3, -1, -1))).backward()
    return {"gradient of x": x.grad, **gradients(module)}


@joint("every other step")
def strided(s: Subject) -> Results:
    return _as_it_is(s, s.x.repeat_interleave(2, 1)[:, ::2])


@joint("every other channel")
def strided_channels(s: Subject) -> Results:
    return _as_it_is(s, s.x.repeat_interleave(2, 2)[..., ::2])


@joint("a view with an offset that no vector is aligned to")
def offset(s: Subject) -> Results:
    held = torch.empty(s.x.numel() + 1)
    view = held[1:].view(s.x.shape)
    view.copy_(s.x)
    return _as_it_is(s, view)


@joint("steps backward")
def flipped(s: Subject) -> Results:
    return _both(s, s.x.flip(1))


@joint("one step")
def one_step(s: Subject) -> Results:
    return _both(s, s.x[:, :1])


@joint("fewer steps than the convolution is wide")
def short(s: Subject) -> Results:
    return _both(s, s.x[:, :2])


@joint("a sequence longer than chunks, of odd length")
def long(s: Subject) -> Results:
    return _both(s, s.x.repeat(1, 9, 1)[:, :97])


@joint("as many steps as a chunk has")
def one_chunk(s: Subject) -> Results:
    return _both(s, s.x[:, :4])


@joint("a batch of none")
def no_batch(s: Subject) -> Results:
    return _both(s, s.x[:0])


@joint("a sequence of none")
def no_steps(s: Subject) -> Results:
    return _both(s, s.x[:, :0])


@joint("a large batch")
def large_batch(s: Subject) -> Results:
    return _both(s, s.x.repeat(9, 1, 1))


@joint("a leaf that needs a gradient, and weights that do not")
def leaf(s: Subject) -> Results:
    module = s.module().requires_grad_(False).eval()
    x = s.x.clone().requires_grad_()
    loss(module(x)).backward()
    return {"gradient of x": x.grad}


@joint("a subclass of Tensor with nothing of its own")
def plain_subclass(s: Subject) -> Results:
    out = s.module().eval()(s.x.as_subclass(Plain))
    return {"type": type(out).__name__, "out": out.detach().as_subclass(Tensor)}


@joint("a subclass of Tensor that counts calls")
def counting_subclass(s: Subject) -> Results:
    module = s.module().train()
    Counting.calls = 0
    out = module(s.x.as_subclass(Counting))
    counted = Counting.calls > 20
    loss(out.as_subclass(Tensor)).backward()
    return {"type": type(out).__name__, "counted": counted, **gradients(module)}


@joint("weights that are a subclass of Tensor")
def subclass_weights(s: Subject) -> Results:
    module = s.module().eval()
    for each in module.modules():
        for name, parameter in list(each.named_parameters(recurse=False)):
            if parameter.dim() == 2:
                wrapped = torch.nn.Parameter(parameter.detach().as_subclass(Plain))
                setattr(each, name, wrapped)
    out = out_of(module, s.x)
    return {"out": out.as_subclass(Tensor)}


@joint("a Buffer and a Parameter as input")
def parameter_input(s: Subject) -> Results:
    module = s.module().train()
    x = torch.nn.Parameter(s.x)
    loss(module(x)).backward()
    with torch.no_grad():
        out = module(torch.nn.Buffer(s.x))
    return {"gradient of x": x.grad, "out": out}


@joint("memory of numpy that is read only")
def read_only(s: Subject) -> Results:
    import warnings

    array = s.x.numpy().copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.from_numpy(array)
    return {"out": out_of(s.module(), x)}


@joint("an input that is shared memory")
def shared_memory(s: Subject) -> Results:
    return {"out": out_of(s.module(), s.x.clone().share_memory_())}


@joint("the input is left as it was")
def left_alone(s: Subject) -> Results:
    module, x = s.module(), s.x.clone()
    version = x._version
    out = out_of(module, x)
    found = trained(module, x)
    return {"out": out, "version": x._version - version, "x": x, "trained": found["out"]}


def _not_finite(s: Subject, step: int, x: Tensor) -> Results:
    """Of an input that is not finite in the first sample at a step."""
    module = s.module()
    out = out_of(module, x)
    if s.kind == TRANSFORMERS:  # whose attention spreads it
        return {"out": out}
    clean = out_of(module, s.x)
    if hooked():  # the sums of a twin take in later steps, with a factor of 0
        # Products of matrices take in the whole of a chunk of Mamba-2, of whatever length.
        if s.name.endswith("Mamba"):
            same("earlier steps", out[0, :step], clean[0, :step])
        if out[0, step].isfinite().all():
            raise Wrong(f"step {step}: expected what is not finite, found finite numbers")
    same("other samples", out[1:], clean[1:])
    return {"other samples": out[1:]}


@joint("NaN in one sample stays in it")
def nan(s: Subject) -> Results:
    x = s.x.clone()
    x[0, 6] = float("nan")
    return _not_finite(s, 6, x)


@joint("infinity at one step")
def infinity(s: Subject) -> Results:
    x = s.x.clone()
    x[0, 6, 2] = float("inf")
    found = _not_finite(s, 6, x)
    return {f"{name}, finite": each.isfinite() for name, each in found.items()}


@joint("large numbers")
def large(s: Subject) -> Results:
    return {"out": out_of(s.module(), 1e3 * s.x)}


@joint("a wrong width")
def wrong_width(s: Subject) -> Results:
    return {"out": out_of(s.module(), torch.ones(2, SEQLEN, WIDTH + 1))}


@joint("two dimensions", on=(BLOCKS,))
def two_dimensions(s: Subject) -> Results:
    return {"out": out_of(s.module(), s.x[0])}


@joint("integers", on=(BLOCKS,))
def integers(s: Subject) -> Results:
    return {"out": out_of(s.module(), torch.ones(2, SEQLEN, WIDTH, dtype=torch.int64))}


@joint("an input on another device than the weights")
def another_device(s: Subject) -> Results:
    return {"out": out_of(s.module(), s.x.to("meta"))}


@joint("a nested tensor")
def nested(s: Subject) -> Results:
    x = torch.nested.nested_tensor([s.x[0], s.x[1, :5]], layout=torch.jagged)
    module = s.module()
    with by_any_error():
        return {"out": out_of(module, x).values()}


@joint("a sparse tensor", on=(BLOCKS,))
def sparse(s: Subject) -> Results:
    return {"out": out_of(s.module(), s.x.to_sparse())}


@joint("complex numbers", on=(BLOCKS,))
def complex_numbers(s: Subject) -> Results:
    return {"out": out_of(s.module(), torch.complex(s.x, s.x))}


@joint("gradients with strides of zero")
def expanded_gradient(s: Subject) -> Results:
    module, x = s.module().train(), s.x.clone().requires_grad_()
    module(x).sum().backward()
    return {"gradient of x": x.grad, **gradients(module)}


@joint("a gradient that is not contiguous")
def transposed_gradient(s: Subject) -> Results:
    module, x = s.module().train(), s.x.clone().requires_grad_()
    out = module(x)
    gradient = torch.ones(out.shape[2], out.shape[1], out.shape[0]).cumsum(0).permute(2, 1, 0)
    out.backward(gradient)
    return {"gradient of x": x.grad, **gradients(module)}


@joint("the imaginary part of a conjugate: negative by a bit")
def negative_view(s: Subject) -> Results:
    x = torch.complex(s.x, -s.x).conj().imag
    assert x.is_neg()
    return _as_it_is(s, x)


class Wrapped(torch.Tensor):
    """A tensor that holds another, and computes by ``__torch_dispatch__``, as quantised ones do."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Wrapped:
        """Of the same shape, dtype and device."""
        made: Wrapped = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, device=held.device
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """By what is held; views and copies that a Parameter is made by stay wrapped."""

        def bare(each: Any) -> Any:
            return each.held if isinstance(each, Wrapped) else each

        found = func(
            *torch.utils._pytree.tree_map(bare, args),
            **torch.utils._pytree.tree_map(bare, kwargs or {}),
        )
        return Wrapped(found) if func.name() in ("aten::detach", "aten::alias") else found


@joint("weights of projections that hold others (__torch_dispatch__)")
def wrapped_weights(s: Subject) -> Results:
    module = s.module().eval()
    for mixer in mixers(module):
        for each in (mixer.in_proj, mixer.out_proj):
            each.weight = torch.nn.Parameter(Wrapped(0.5 * each.weight.detach()), False)
    return {"out": out_of(module, s.x)}
