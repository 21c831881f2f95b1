"""Finds modules that have to be called, though a fused call is given their weights.

``mamba_inner_fn`` and ``mamba_split_conv1d_scan_combined`` are given the weights of projections and
of a norm, not the modules. For a plain ``torch.nn.Linear`` that makes no difference. But an adapter
in its place, a hook, a parametrization, a quantised, sharded or offloaded weight takes effect only
when the *module is called*. The weights do not tell which module they are of; the block that calls
does, and it is ``self`` of a function that is running. So a fused call looks who called it:

* Where everything is plain, it goes on, some 1 us later.
* Else it computes up to the projection and calls the module.
* transformers 5 brings a path of its own that calls its modules, and takes it where the fused call
  gives None. So it is left to that, also in cases in which its own path computes something else
  than a fused call, or what one refuses: it casts before an output projection of another dtype than
  the input's. It masks what follows padding, and hands no mask on; without one, padding runs into
  the states. It takes any activation, a fused call silu alone. And it normalises step sizes before
  their projection, mamba_ssm after it (FalconMamba). In the last two a call of Mamba serves where
  it would without this package, with mamba_ssm's extension.

While ``torch.compile`` traces, the functions that run are those of the tracer, which holds what
they would be; a call that would have to call modules, and cannot be told to, ends the graph, and
runs as it is.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from types import FrameType
from typing import Any, Dict, Iterable, Iterator, Mapping, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from jetson_mamba.errors import Unavailable

from .compiled import compiled_module
from .operators import is_compiling

# How far up a caller is looked for: past the modified copy and what others wrap around it.
MOST_FRAMES = 12
# Where transformers wraps a function for which it has another way to compute.
_HAS_ANOTHER_WAY = "transformers.integrations.hub_kernels"
_TENSORS = (Tensor, nn.Parameter)
# The activations that a fused call computes, or a block without one.
_FUSED = (None, "silu", "swish")
# The gated norms, and the projections that tensors are parallel over.
_KNOWN = ("mamba_ssm.", "transformers.models.")
_LINEAR = nn.Linear
_FORWARD = _LINEAR.forward
# Those of every module.
_HOOKS: dict[int, Any] = torch_module._global_forward_hooks
_PRE_HOOKS: dict[int, Any] = torch_module._global_forward_pre_hooks
_BACKWARD_HOOKS: dict[int, Any] = torch_module._global_backward_hooks
_BACKWARD_PRE_HOOKS: dict[int, Any] = torch_module._global_backward_pre_hooks

Modules = Dict[str, nn.Module]


class Passed(NamedTuple):
    """What a fused call is not to go past: the modules, by the names of their weights.

    ``declined`` says that the caller computes by its modules itself where it is given None.
    """

    modules: Modules
    declined: bool


def is_plain(module: nn.Module | None) -> bool:
    """Whether calling ``module`` is nothing but what is computed of its weights.

    That is a ``torch.nn.Linear``, or one of the classes that the blocks themselves bring, with its
    own parameters and no hooks.
    """
    if module is None:
        return True
    kind = type(module)
    attributes = module.__dict__
    parameters = attributes["_parameters"]
    known = kind.forward is _FORWARD if kind is _LINEAR else kind.__module__.startswith(_KNOWN)
    return (
        known
        and not attributes["_forward_hooks"]
        and not attributes["_forward_pre_hooks"]
        and not attributes["_backward_hooks"]
        and not attributes["_backward_pre_hooks"]
        and "forward" not in attributes
        and "weight" in parameters
        and type(parameters["weight"]) in _TENSORS
        and not (_HOOKS or _PRE_HOOKS or _BACKWARD_HOOKS or _BACKWARD_PRE_HOOKS)
    )


def are_plain(modules: Iterable[nn.Module | None]) -> bool:
    """Whether each is a ``torch.nn.Linear`` as :func:`is_plain` asks for, whatever its weight is.

    It takes a third of the time.
    """
    if _LINEAR.forward is not _FORWARD or _HOOKS or _PRE_HOOKS:
        return False
    if _BACKWARD_HOOKS or _BACKWARD_PRE_HOOKS:
        return False
    for module in modules:
        if type(module) is not _LINEAR:
            return False
        attributes = module.__dict__
        if (
            attributes["_forward_hooks"]
            or attributes["_forward_pre_hooks"]
            or attributes["_backward_hooks"]
            or attributes["_backward_pre_hooks"]
            or "forward" in attributes
        ):
            return False
    return True


def _is_ordinary(module: nn.Module) -> bool:
    """Whether a module of any kind is one that is known, with nothing on it."""
    kind = type(module).__module__
    return (
        kind.startswith(("torch.nn.modules.", *_KNOWN))
        and not any(hooks for name, hooks in vars(module).items() if name.endswith("_hooks"))
        and "forward" not in vars(module)
        and all(type(each) in (*_TENSORS, type(None)) for each in module._parameters.values())
    )


def may_be_fused(**weights: Any) -> bool:
    """Whether a fused call with these weights, as for :func:`passed`, does all that is asked."""
    return passed(**weights) is None


def passed(*, refused: bool = False, **weights: Any) -> Passed | None:
    """What a fused call with these ``weights`` would wrongly go past; None where it may go on.

    ``refused``: it would raise an error, so that a caller with another way is left to that. The
    weights are named as their modules usually are: ``out_proj=out_proj_weight``. A caller that
    names them otherwise is understood where a module of its holds the very weight.
    """
    if is_compiling():
        verdict = _verdict(refused, *[name for name in weights if weights[name] is not None])
        if verdict == _GOES_ON:
            return None
        if verdict == _DECLINED:
            return Passed({}, True)
        call_modules_outside_of_the_graph = torch.compiler.disable(_passed_now)
        return cast("Passed | None", call_modules_outside_of_the_graph(weights, refused))
    return _passed_now(weights, refused)


def _passed_now(weights: dict[str, Any], refused: bool) -> Passed | None:
    """:func:`passed`, by the functions that run."""
    frame: FrameType | None = sys._getframe(3)
    for _ in range(MOST_FRAMES):
        if frame is None:
            return None
        local = _of_method(frame)
        if local is not None:
            modules = _found(local["self"], weights)
            if modules is not None:
                masks = local.get("attention_mask") is not None
                differs = refused or masks or _differs(local["self"], weights)
                declined = (differs or bool(modules)) and _is_declined(frame)
                return Passed(modules, declined) if modules or declined else None
        frame = frame.f_back
    return None


def _differs(owner: nn.Module, weights: Mapping[str, Any]) -> bool:
    """Whether its own path computes something else, and nobody's extension does what a call would.

    That is where step sizes are normalised, or where its activation is not the one of a call.
    """
    activation = owner.__dict__.get("activation")
    is_other = activation not in _FUSED and isinstance(activation, str)
    if is_other and "x_proj" not in weights:
        return True  # Mamba-2's call is given it, and refuses it.
    return (is_other or weights.get("dt_rms") is not None) and not _has_extension()


@lru_cache(maxsize=None)
def _has_extension() -> bool:
    try:
        compiled_module("selective_scan_cuda")
    except (Unavailable, ImportError, OSError):
        return False
    return True


def _of_method(frame: FrameType) -> Mapping[str, Any] | None:
    """What a frame calls what, if it runs a method of a module."""
    # Asking for the values of a frame copies them all.
    if "self" not in frame.f_code.co_varnames:
        return None
    local = frame.f_locals
    return local if isinstance(local.get("self"), nn.Module) else None


def _is_declined(caller: FrameType) -> bool:
    """Whether a call that ``caller`` has made, and that runs, may give None."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame is not caller:
        if frame.f_globals.get("__name__") == _HAS_ANOTHER_WAY:
            return True
        frame = frame.f_back
    return False


def _found(owner: nn.Module, weights: dict[str, Any]) -> Modules | None:
    """Those of the weights' modules that are to be called; None where none is the owner's."""
    modules = owner._modules
    to_call: Modules = {}
    known = False
    for name, weight in weights.items():
        if weight is None:
            continue
        module = modules.get(name)
        parameters = {} if module is None else module._parameters
        if "weight" not in parameters or parameters["weight"] is not weight:
            module = _holder(modules, name, weight)
        if module is None:
            continue
        known = True
        if not is_plain(module):
            to_call[name] = module
    return to_call if known else None


def _holder(modules: dict[str, nn.Module | None], name: str, weight: Any) -> nn.Module | None:
    """The module that a weight was taken from, which need not hold it as a parameter."""
    for module in modules.values():
        # The weight of a parametrization is another one each time, and asking has effects.
        if module is None or hasattr(module, "parametrizations"):
            continue
        # A quantised module gives its weight by a method.
        if getattr(module, "weight", None) is weight or getattr(weight, "__self__", None) is module:
            return module
    return modules.get(name)


# While torch.compile traces: what is asked for is found once, and is a constant of the graph. The
# tracer is asked for nothing but who calls, and for that in one place.

_GOES_ON, _DECLINED, _ENDS_GRAPH = range(3)


def _verdict(refused: bool, *names: str) -> int:
    """What becomes of a call that is traced, with the modules of these names."""
    has_another_way = False
    nearest = True
    for caller in (*traced_callers(), *_running_callers()):
        has_another_way = has_another_way or caller.module == _HAS_ANOTHER_WAY
        if caller.owner is None:
            continue
        modules = [each for name, each in caller.owner._modules.items() if name in names]
        # It may have other names for them.
        unknown = nearest and not all(map(_is_ordinary, caller.owner.children()))
        nearest = False
        if not modules and not unknown:
            continue
        # Whoever runs, and calls what is traced, is no part of the graph, which others call too.
        if caller.runs or not modules:
            return _ENDS_GRAPH
        if not all(map(is_plain, modules)):
            return _DECLINED if has_another_way else _ENDS_GRAPH
        differs = refused or caller.masks or _differs(caller.owner, dict.fromkeys(names, True))
        return _DECLINED if has_another_way and differs else _GOES_ON
    return _GOES_ON


# torch._dynamo.assume_constant_result, without an import of the compiler with this module.
_verdict._dynamo_marked_constant = True  # type: ignore[attr-defined]


class Caller(NamedTuple):
    """A function: its ``self``, the name of its module, whether it has a mask, and runs."""

    owner: nn.Module | None
    module: str
    masks: bool
    runs: bool


def traced_callers() -> Iterator[Caller]:
    """The functions that torch.compile is tracing, the innermost first.

    There are none where its tracer keeps them otherwise.
    """
    frame: FrameType | None = sys._getframe(1)
    tracer: Any = None
    while frame is not None and not hasattr(tracer, "symbolic_locals"):
        tracer = frame.f_locals.get("tx")
        frame = frame.f_back
    while hasattr(tracer, "symbolic_locals"):
        owner = _traced_value(tracer, "self")
        yield Caller(
            owner if isinstance(owner, nn.Module) else None,
            str(tracer.f_globals.get("__name__")),
            _traced_value(tracer, "attention_mask") is not None,
            runs=False,
        )
        tracer = getattr(tracer, "parent", None)


def _running_callers() -> Iterator[Caller]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        local = _of_method(frame)
        if local is not None:
            yield Caller(local["self"], str(frame.f_globals.get("__name__")), False, runs=True)
        frame = frame.f_back


def _traced_value(tracer: Any, name: str) -> Any:
    """What a name stands for in a function that is traced, or what the tracer has for it."""
    value = tracer.symbolic_locals.get(name)
    if hasattr(value, "realize"):
        value = value.realize()
    return getattr(value, "value", value)
