"""A block of mamba_ssm that calls its projections, where they are not plain.

``forward`` of a block hands the weights of its projections to a fused function, and ``Mamba``
multiplies by those of ``in_proj`` and ``dt_proj`` itself. It has another path that calls modules,
and takes it where an attribute says so. So a block with an adapter or the like is computed by its
own ``forward`` of a *view* of it: that attribute is off in the view, and in the place of a weight
that is multiplied stands the module.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, Callable, cast

import torch
from torch import Tensor, nn

from .operators import is_compiling
from .projections import is_plain, traced_callers

_PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "norm", "out_proj")
_FAST_PATHS = ("use_fast_path", "use_mem_eff_path")


def calling_modules(
    method: Callable[..., Any], otherwise: Callable[..., Any], *multiplied: str
) -> Callable[..., Any]:
    """A block's ``forward`` or ``step``, by its modules where one is not plain, else ``otherwise``.

    ``method`` is the block's own, which ``otherwise`` stands for. ``multiplied`` names what it
    multiplies by itself. The rest goes through fused functions, which see to it themselves, but for
    a graph that is traced.
    """

    # A step hands on the bias of dt_proj, forward asks for its float32.
    no_bias = None if method.__name__ == "step" else _NO_BIAS

    @wraps(otherwise)
    def call(self: nn.Module, *given: Any, **named: Any) -> Any:
        hidden_states = given[0] if given else named.get("hidden_states")
        if getattr(hidden_states, "is_meta", False) and "in_proj" in multiplied:
            _check_all_are_meta(self)
        hook = hook_of_convolution(self)
        if hook is None and _are_plain(self, multiplied):
            return otherwise(self, *given, **named)
        if hook is not None:
            hook.pre_forward(self.conv1d)
        # Before mamba_ssm 2.2.2, and in Mamba2Simple, the path by modules convolves over the
        # sequences of a pack. The fused function does not, and finds the modules itself.
        if named.get("seq_idx") is not None or any(_is_index(each) for each in given[1:]):
            result = otherwise(self, *given, **named)
        else:
            result = method(_View(self, hidden_states, no_bias), *given, **named)
        if hook is not None:
            hook.post_forward(self.conv1d, ())
        return result

    return call


def _check_all_are_meta(block: nn.Module) -> None:
    """Raise where torch would multiply a weight by a meta tensor, to numbers out of nowhere."""
    weight = getattr(block._modules.get("in_proj"), "weight", None)
    if isinstance(weight, Tensor) and not weight.is_meta:
        raise ValueError(
            f"hidden_states: expected the device of in_proj.weight, {weight.device}, found meta"
        )


def hook_of_convolution(block: nn.Module) -> Any:
    """What brings the weights of the convolution, where accelerate keeps them elsewhere.

    They are taken without a call of the module in every path, so nothing else calls this.
    """
    module = block._modules.get("conv1d")
    return None if module is None else module.__dict__.get("_hf_hook")


def _is_index(given: Any) -> bool:
    return isinstance(given, Tensor) and not given.is_floating_point()


def _are_plain(block: nn.Module, multiplied: tuple[str, ...]) -> bool:
    if is_compiling():
        found = _traced_are_plain()
        if found is None:
            found = torch.compiler.disable(_are_plain_now)(block, _PROJECTIONS)
        return cast(bool, found)
    return _are_plain_now(block, multiplied)


def _are_plain_now(block: nn.Module, names: tuple[str, ...]) -> bool:
    for name, module in block._modules.items():
        if module is None or name not in _PROJECTIONS:
            continue
        if name in names and not is_plain(module):
            return False
        # A fused function finds the others by their weights, which a container of modules has not.
        if "weight" not in module._parameters and not hasattr(module, "weight"):
            return False
    return True


def _traced_are_plain() -> bool | None:
    """The same of the block whose method is traced, for all projections; None where there is none.

    An argument that is a module would bind the graph to that one module.
    """
    for caller in traced_callers():
        if caller.owner is not None:
            return all(is_plain(caller.owner._modules.get(name)) for name in _PROJECTIONS)
    return None


_traced_are_plain._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _View:
    """A block as its own method is to see it."""

    def __init__(self, block: nn.Module, hidden_states: Tensor | None, no_bias: Any) -> None:
        self._block = block
        self._hidden_states = hidden_states
        self._no_bias = no_bias

    def __getattr__(self, name: str) -> Any:
        if name in _FAST_PATHS:
            return False
        value = getattr(self._block, name)
        if name == "in_proj":
            return _Called(value, self._hidden_states, None)
        if name == "dt_proj":
            return _Called(value, None, self._no_bias)
        return value


class _Called:
    """A projection whose weight, multiplied, is a call of it; that adds its bias too."""

    def __init__(self, module: nn.Module, given: Tensor | None, bias: Any) -> None:
        self._module = module
        self._given = given
        self.bias = bias

    @property
    def weight(self) -> _Called:
        return self

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = self._module(x)
        return result

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.times(x)

    def times(self, x: Tensor) -> Tensor:
        """Of (columns, positions); a module is given positions as the block was given them."""
        if self._given is None:
            return self(x.t()).t()
        return self(self._given).flatten(0, -2).t()

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if len(args) != 2 or kwargs:
            return NotImplemented
        weight, x = args if isinstance(args[0], cls) else args[::-1]
        if function is nn.functional.linear:
            return weight(x)
        # torch.compile asks here for @ as well, and gives the tensor first.
        if function in (Tensor.matmul, Tensor.__matmul__, torch.matmul):
            return weight.times(x)
        return NotImplemented


class _NoBias:
    """The bias of a projection that has added it."""

    def float(self) -> None:
        return None


_NO_BIAS = _NoBias()
