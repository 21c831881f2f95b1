"""What joints measure. Outputs, losses, gradients; and whether what they got is right."""

from __future__ import annotations

import math
import zlib
from contextlib import contextmanager
from typing import Any, Callable, Iterator

import torch
from torch import Tensor, nn

from tests.references.tolerance import TOLERANCES, relative_norm

Results = dict[str, Any]
# What was held against something within a row.
CHECKED: list[str] = []


class Wrong(Exception):
    """What came of a joint is not what the same module gives without it."""


class Unsupported(Exception):
    """torch has no rule for an operation with such tensors."""


@contextmanager
def by_any_error() -> Iterator[None]:
    """Any error inside is ``Unsupported``: which operation meets it first makes no difference."""
    try:
        yield
    except Exception as error:
        raise Unsupported(f"{type(error).__name__}: {error}") from error


def same(what: str, actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Raise ``Wrong`` unless the one is the other, by ten times the tolerance of its dtype."""
    CHECKED.append(what)
    limit = 10 * TOLERANCES[expected.dtype] if tolerance is None else tolerance
    error = relative_norm(actual, expected)
    if not error <= limit:
        raise Wrong(f"{what}: expected the module's own result, found one that is off by {error}")


def loss(out: Tensor) -> Tensor:
    """A number that depends on every element, each with a factor of its own."""
    # No random numbers, which torch.func.vmap refuses.
    places = torch.arange(out.numel(), dtype=torch.float64, device="cpu")
    factors = (0.7 * (places + 1).square()).sin().reshape(out.shape)
    wide = out if out.dtype == torch.float64 else out.float()
    value: Tensor = (wide * factors.to(wide)).sum()
    return value / math.sqrt(max(1, out.numel()))


def gradients(module: nn.Module) -> Results:
    """Every parameter's gradient by name, None where it has none."""
    return {
        f"gradient of {name}": None if parameter.grad is None else parameter.grad.detach().clone()
        for name, parameter in module.named_parameters()
    }


def trained(
    module: nn.Module, x: Tensor, call: Callable[[Tensor], Tensor] | None = None
) -> Results:
    """One forward and backward pass in training, by ``call`` or the module itself."""
    module.train()
    x = x.detach().clone().requires_grad_()
    out = module(x) if call is None else call(x)
    loss(out).backward()
    return {"out": out.detach(), "gradient of x": x.grad, **gradients(module)}


def out_of(module: nn.Module, x: Tensor) -> Tensor:
    """The output without gradients, evaluated."""
    module.eval()
    with torch.no_grad():
        out: Tensor = module(x)
    return out


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """Those that a function of torch.func is given, detached."""
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def function(module: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """The module as a function of its parameters and its input."""
    module.train()

    def run(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(module, weights, (x,))
        return out

    return run


def directions(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A direction for each parameter."""
    return {
        name: torch.randn(
            weight.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()) + 1)
        ).to(weight.dtype)
        for name, weight in weights.items()
    }


def named(prefix: str, tensors: dict[str, Tensor]) -> Results:
    """The tensors under longer names."""
    return {f"{prefix} {name}": tensor.detach() for name, tensor in tensors.items()}
