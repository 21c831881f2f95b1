"""Where upstream's Triton kernels are launched: only where nothing looks at what is computed."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, ContextManager, Iterator

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from jetson_mamba import ops
from jetson_mamba.dispatch import triton_dispatch
from jetson_mamba.ops.norms import op as norms
from jetson_mamba.ops.ssd import op as ssd


class Watched(Tensor):
    """A tensor of another class."""


class Dispatched(TorchDispatchMode):
    """Sees every operation, and changes none."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


class Overridden(TorchFunctionMode):
    """Sees every function, and changes none."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


def dispatched() -> Any:
    return Dispatched()  # type: ignore[no-untyped-call]


def fake_mode() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


Asked = Callable[[Tensor], bool]
STEPS, STATES, HEADS = torch.ones(1, 3, 4), torch.ones(1, 3, 1, 2), torch.ones(4)
WEIGHT = torch.ones(6, 4)


def through_scan(x: Any) -> bool:
    """Whether a scan of x (1, 3, 4, 2) goes to upstream's function."""
    return ops.through_scan_autograd(x=x, dt=STEPS, A=HEADS, B=STATES, C=STATES)


def through_mixer(x: Any) -> bool:
    """The same of a mixer with four heads of one channel, and one state."""
    return ops.through_mixer_autograd(
        zxbcdt=x, conv1d_weight=WEIGHT, dt_bias=HEADS, A=HEADS, D=HEADS, headdim=1
    )


def mapped(asked: Asked, x: Tensor) -> bool:
    found = []
    torch.vmap(lambda row: found.append(asked(row)) or row)(x)  # type: ignore[func-returns-value]
    return bool(found[0])


def differentiated(asked: Asked, x: Tensor) -> bool:
    found = []
    torch.func.grad(lambda y: found.append(asked(y)) or y.sum())(x)  # type: ignore[func-returns-value]
    return bool(found[0])


def dual(asked: Asked, x: Tensor) -> bool:
    with forward_ad.dual_level():
        return asked(forward_ad.make_dual(x, torch.ones_like(x)))


def traced(asked: Asked, x: Tensor) -> bool:
    found = []

    def function(y: Tensor) -> Tensor:
        found.append(asked(y))
        return y + 1

    torch.jit.trace(function, x, check_trace=False)
    return found[0]


def inside(context: Callable[[], ContextManager[Any]]) -> Callable[[Asked, Tensor], bool]:
    def ask(asked: Asked, x: Tensor) -> bool:
        with context():
            return asked(x)

    return ask


LOOKED_AT: dict[str, Callable[[Asked, Tensor], bool]] = {
    "vmap": mapped,
    "grad": differentiated,
    "a dual number": dual,
    "jit.trace": traced,
    "a dispatch mode": inside(dispatched),
    "a fake mode": inside(fake_mode),
    "a subclass": lambda asked, x: asked(x.as_subclass(Watched)),
    "a meta tensor": lambda asked, x: asked(x.to("meta")),
}


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton runs on every device."""
    for module in (norms, ssd, triton_dispatch):
        monkeypatch.setattr(module, "triton_runs_on", lambda device: True)


def through_norm(x: Any) -> bool:
    return ops.through_norm_autograd(x, weight=torch.ones(2), bias=None)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("way", LOOKED_AT)
def test_what_looks_at_a_tensor_is_shown_no_launch(way: str) -> None:
    launched = ops.where_triton_runs(lambda x: True, lambda x: False)
    for asked in (launched, through_scan, through_mixer, through_norm):
        assert asked(torch.ones(1, 3, 4, 2)) is True
        assert LOOKED_AT[way](asked, torch.ones(1, 3, 4, 2)) is False


def test_the_first_tensor_may_come_by_its_name() -> None:
    function = ops.where_triton_runs(lambda state, x=0: ("own", x), lambda state, x=0: ("op", x))
    tensor = torch.ones(2)
    assert function(tensor, 1) == function(state=tensor, x=1) == function(x=1, state=tensor)
    with pytest.raises(TypeError, match="state"):
        function(x=1)
    meta = tensor.to("meta")
    assert function(state=meta, x=2) == ("op", 2)


def test_what_is_no_tensor_goes_to_the_op_which_names_it() -> None:
    for found in (None, 3, "x"):
        wrong: Any = found
        assert not through_scan(wrong)
        assert not through_mixer(wrong)
        assert not through_norm(wrong)
        assert not ops.through_norm_autograd(torch.ones(3, 4), weight=wrong, bias=None)


@contextlib.contextmanager
def counted(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, result: Any
) -> Iterator[list[int]]:
    calls: list[int] = []

    def count(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(module, name, count)
        yield calls


@pytest.mark.parametrize(
    "more",
    [
        *({name: torch.ones(4)} for name in ("x1", "weight1", "bias1", "rowscale")),
        {"dropout_p": 0.5},
        {"linear_weight": torch.ones(2, 4)},
        {"bias": torch.ones(4, dtype=torch.bfloat16)},
        {"z": torch.ones(3, 4, dtype=torch.bfloat16)},
    ],
    ids=lambda more: next(iter(more)),
)
def test_a_norm_that_no_kernel_here_serves_is_upstreams(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    monkeypatch.setattr(norms, "kernels_for", lambda *arguments, **keywords: object())
    monkeypatch.setattr(Tensor, "is_cuda", True)
    given = {"weight": torch.ones(4), "bias": None, "dropout_p": 0.0}
    assert not ops.through_norm_autograd(torch.ones(3, 4), **given)
    assert not ops.through_norm_autograd(torch.ones(3, 4), **given, z=torch.ones(3, 4))
    assert ops.through_norm_autograd(torch.ones(3, 4), **{**given, **more})
    monkeypatch.setattr(norms, "kernels_for", lambda *arguments, **keywords: None)
    assert ops.through_norm_autograd(torch.ones(3, 4), **given)


@pytest.mark.parametrize(
    "wrong",
    [
        {"x": torch.ones(3, 4, dtype=torch.float64)},
        {"group_size": 3},
        {"group_size": -1},
        {"z": [1.0]},
        {"bias": 1.0},
    ],
    ids=str,
)
def test_a_norm_that_nobody_serves_goes_to_the_op(wrong: dict[str, Any]) -> None:
    given = {"x": torch.ones(3, 4), "weight": torch.ones(4), "bias": None, **wrong}
    assert not ops.through_norm_autograd(**given)


def test_graphs_of_a_mixer_serve_only_what_no_mode_listens_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.ops.test_ssd import mixer, mixer_case

    monkeypatch.undo()
    tensors, options = mixer_case("groups", 8)
    del tensors["initial_states"]
    results = mixer(**tensors, **options, chunk_size=64, return_final_states=True)
    with counted(monkeypatch, ssd, "_CAPTURED", results) as calls, torch.no_grad():
        mixer(**tensors, **options, chunk_size=64)
        assert len(calls) == 1
        with Overridden():
            mixer(**tensors, **options, chunk_size=64)
        with dispatched():
            mixer(**tensors, **options, chunk_size=64)
        mixer(**{**tensors, "A": tensors["A"].as_subclass(Watched)}, **options, chunk_size=64)
        assert len(calls) == 1
        # A default device is a mode too, and changes nothing.
        with torch.device("cpu"):
            mixer(**tensors, **options, chunk_size=64)
        assert len(calls) == 2
