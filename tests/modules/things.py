"""What people put on a projection.

Each is a function of the module that has it and of its name there.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

Thing = Callable[[nn.Module, str], None]


class Adapter(nn.Module):
    """A frozen projection and one of low rank beside it; its weight is the frozen one's."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        """That of the frozen projection."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """That of the frozen projection."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """Both, added."""
        result: Tensor = self.base(x) + self.up(self.down(x))
        return result


class Scaled(nn.Module):
    """A parametrization that is trained."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, rows)[:, None])

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, row by row."""
        return weight * self.scale


class Squashed(nn.Linear):
    """A projection of another class, which computes something else of the same weight."""

    def forward(self, x: Tensor) -> Tensor:
        """The projection, and no more than 1."""
        return super().forward(x).tanh()


class Offloaded:
    """As accelerate keeps weights elsewhere until a module is called, or its hook is."""

    def __init__(self, module: nn.Module) -> None:
        self.weights = {name: each.detach() for name, each in module.named_parameters()}
        module._hf_hook = self  # type: ignore[assignment]
        self.post_forward(module, None)

    def pre_forward(self, module: nn.Module) -> None:
        """Bring the weights."""
        for name, weight in self.weights.items():
            module._parameters[name] = nn.Parameter(weight, requires_grad=False)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Leave no more than their shapes."""
        for name, weight in self.weights.items():
            empty = torch.empty_like(weight, device="meta")
            module._parameters[name] = nn.Parameter(empty, requires_grad=False)
        return output


def adapter(owner: nn.Module, name: str) -> None:
    torch.manual_seed(7)
    setattr(owner, name, Adapter(getattr(owner, name)))


def forward_hook(owner: nn.Module, name: str) -> None:
    getattr(owner, name).register_forward_hook(lambda module, given, out: out * 1.5)


def forward_pre_hook(owner: nn.Module, name: str) -> None:
    getattr(owner, name).register_forward_pre_hook(
        lambda module, given: (given[0] * 1.5, *given[1:])
    )


def backward_hook(owner: nn.Module, name: str) -> None:
    getattr(owner, name).register_full_backward_hook(
        lambda module, dx, dout: tuple(None if each is None else 2 * each for each in dx)
    )


def backward_pre_hook(owner: nn.Module, name: str) -> None:
    getattr(owner, name).register_full_backward_pre_hook(
        lambda module, dout: tuple(2 * each for each in dout)
    )


def parametrization(owner: nn.Module, name: str) -> None:
    module = getattr(owner, name)
    parametrize.register_parametrization(module, "weight", Scaled(module.weight.shape[0]))


def weight_norm(owner: nn.Module, name: str) -> None:
    parametrizations.weight_norm(getattr(owner, name))
    with torch.no_grad():
        getattr(owner, name).parametrizations.weight.original0.mul_(1.5)


def pruned(owner: nn.Module, name: str) -> None:
    prune.l1_unstructured(getattr(owner, name), "weight", 0.3)


def other_class(owner: nn.Module, name: str) -> None:
    getattr(owner, name).__class__ = Squashed


def forward_of_its_own(owner: nn.Module, name: str) -> None:
    module = getattr(owner, name)
    forward = module.forward
    module.forward = lambda *given: 1.5 * forward(*given)


def offload(block: nn.Module, name: str) -> None:
    """All modules with parameters inside a block, whichever is named."""
    del name
    for module in block.modules():
        if module is block or not module._parameters:
            continue
        hook = Offloaded(module)
        forward = module.forward

        def loaded(
            *given: Any,
            hook: Offloaded = hook,
            module: nn.Module = module,
            forward: Callable[..., Any] = forward,
        ) -> Any:
            hook.pre_forward(module)
            return hook.post_forward(module, forward(*given))

        module.forward = loaded


HOOKS: dict[str, Thing] = {
    "forward hook": forward_hook,
    "forward pre-hook": forward_pre_hook,
    "backward hook": backward_hook,
    "backward pre-hook": backward_pre_hook,
    "forward of its own": forward_of_its_own,
}
THINGS: dict[str, Thing] = {
    **HOOKS,
    "adapter": adapter,
    "parametrization": parametrization,
    "weight norm": weight_norm,
    "pruned": pruned,
    "other class": other_class,
}
