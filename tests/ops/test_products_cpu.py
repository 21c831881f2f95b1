"""A matrix times a few vectors on a CPU, such as a token times a vocabulary."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any, Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from jetson_mamba.dispatch import workers
from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.dispatch.paths import inference_path
from jetson_mamba.ops import vocabulary
from jetson_mamba.ops.decoding import products_cpu
from tests.references.tolerance import relative_norm


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 16, 17])
@pytest.mark.parametrize("columns", [96, 1536])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("fewest", [0, 1 << 30], ids=["large", "small"])
def test_a_product_is_that_of_the_numbers(
    batch: int,
    columns: int,
    bias: bool,
    fewest: int,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products_cpu, "FEWEST_WEIGHTS", fewest)
    torch.manual_seed(0)
    x, weight = torch.randn(batch, columns), torch.randn(70, columns)
    more = torch.randn(70) if bias else None
    right = nn.functional.linear(
        x.double(), weight.double(), more if more is None else more.double()
    )
    with torch.no_grad():
        out = products_cpu.product(x, weight, more)
    assert out.is_contiguous()
    assert relative_norm(out, right) < 1e-6
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("lacking", ["oneDNN", "a way to one thread", "a known processor"])
def test_without_it_a_product_is_the_same(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products_cpu, "FEWEST_WEIGHTS", 0)
    names = {
        "oneDNN": (products_cpu, "_onednn", lambda: None),
        "a way to one thread": (workers, "_limit", lambda: None),
        "a known processor": (products_cpu, "_X86_64", False),
    }
    monkeypatch.setattr(*names[lacking])
    x, weight = torch.randn(1, 64), torch.randn(50, 64)
    with torch.no_grad():
        out = products_cpu.product(x, weight, None)
    assert relative_norm(out, x.double() @ weight.double().t()) < 1e-6


def test_one_that_is_switched_off_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> None:
        raise AssertionError

    monkeypatch.setattr(products_cpu, "FEWEST_WEIGHTS", 0)
    monkeypatch.setattr(products_cpu, "_onednn", asked)
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        out = products_cpu.product(torch.ones(1, 64), torch.ones(50, 64), None)
    finally:
        torch._C._set_mkldnn_enabled(before)
    assert torch.equal(out, torch.full((1, 50), 64.0))


class Clock:
    """Time that passes in products: ``alone`` seconds in one of one thread, ``by_all`` else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.alone, self.by_all = 0.0, 1.0, 0.5
        self.threads: list[int] = []
        self.error = 0.0
        monkeypatch.setattr(products_cpu, "perf_counter", lambda: self.now)
        monkeypatch.setattr(products_cpu, "_by_fastest", self.product)
        monkeypatch.setattr(products_cpu, "_X86_64", True)
        monkeypatch.setattr(products_cpu, "_TRIED", Memo(4))
        monkeypatch.setattr(products_cpu, "FEWEST_WEIGHTS", 0)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product, after its time."""
        count = torch.get_num_threads()
        self.threads.append(count)
        self.now += self.alone if count == 1 else self.by_all
        return nn.functional.linear(x, weight, bias) + (self.error if count > 1 else 0.0)

    def of(self, calls: int) -> list[int]:
        """The threads that so many products had."""
        self.threads = []
        x, weight = torch.ones(1, 256), torch.ones(256, 256)
        for _ in range(calls):
            assert torch.equal(products_cpu.product(x, weight, None), x @ weight)
        return self.threads


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    if workers.undivided(torch.get_num_threads) != 1:
        pytest.skip("this torch does not run on OpenMP")
    yield Clock(monkeypatch)
    torch.set_num_threads(before)


def test_one_vector_is_multiplied_by_all_threads_while_that_is_quicker(clock: Clock) -> None:
    assert clock.of(2) == [1, 2, 1]  # once by both, to compare the bits
    assert clock.of(100) == [2] * 100
    clock.by_all = 20.0  # other programs have come
    assert clock.of(1 + workers.CALLS_ALONE) == [2] + [1] * workers.CALLS_ALONE
    assert clock.of(1 + 2 * workers.CALLS_ALONE) == [2] + [1] * 2 * workers.CALLS_ALONE
    clock.of(5 * products_cpu.MOST_ALONE)
    assert clock.of(2 * products_cpu.MOST_ALONE).count(2) in (1, 2, 3)
    clock.by_all = 0.5  # they have gone
    clock.of(products_cpu.MOST_ALONE)
    assert set(clock.of(5 * products_cpu.MOST_ALONE)) == {2}
    clock.by_all = 20.0
    assert clock.of(1 + workers.CALLS_ALONE) == [2] + [1] * workers.CALLS_ALONE


def test_one_call_that_is_a_little_slow_says_nothing(clock: Clock) -> None:
    clock.of(50)
    clock.by_all = 1.5
    clock.of(1)
    clock.by_all = 0.5
    assert clock.of(50) == [2] * 50


def test_where_all_threads_give_other_bits_it_is_always_one(clock: Clock) -> None:
    clock.error = 1e-3
    assert clock.of(50) == [1, 2] + [1] * 49


def test_of_threads_that_are_limited_no_other_thread_sees_anything() -> None:
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:

        def within() -> int:
            other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            other.start()
            other.join()
            return torch.get_num_threads()

        assert workers.undivided(within) in (1, None)
        assert set(seen) <= {3}
        with pytest.raises(ZeroDivisionError):
            workers.undivided(divmod, 1, 0)
            raise ZeroDivisionError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


WIDTH, WORDS = 32, 40


def head(bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, WORDS, bias=bias)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The products that are asked for."""
    found: list[Any] = []

    def noting(*given: Any) -> Tensor:
        found.append(given)
        return products_cpu.product(*given)

    monkeypatch.setattr("jetson_mamba.ops.decoding.token_logits.product", noting)
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_token_s_vocabulary_is_multiplied_by_a_product(
    batch: int, bias: bool, asked: list[Any]
) -> None:
    module, hidden = head(bias), torch.randn(batch, 1, WIDTH)
    with torch.no_grad():
        out, right = vocabulary(module, hidden), module(hidden)
    assert len(asked) == 1
    assert out.shape == right.shape
    assert relative_norm(out, right.double()) < 1e-6


def hooked(module: nn.Linear) -> nn.Module:
    module.register_forward_hook(lambda module, given, out: out * 2)
    return module


class Adapter(nn.Linear):
    """Somebody else's."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice."""
        return super().forward(x) * 2


class Weights(Tensor):
    """Tensors that somebody looks on at."""


def of_another_kind(module: nn.Linear) -> nn.Module:
    module.weight = nn.Parameter(module.weight.detach().as_subclass(Weights))
    return module


CHANGES: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "hook": hooked,
    "adapter": lambda module: Adapter(WIDTH, WORDS, bias=False),
    "a weight of another kind": of_another_kind,
    "another dtype": lambda module: module.double(),
    "sequence of modules": lambda module: nn.Sequential(module, nn.ReLU()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_head_that_is_not_plain_is_called(change: str, asked: list[Any]) -> None:
    module = CHANGES[change](head())
    hidden = torch.randn(1, 1, WIDTH)
    if change == "another dtype":
        hidden = hidden.double()
    with torch.no_grad():
        assert torch.equal(vocabulary(module, hidden), module(hidden))
    assert asked == []


@pytest.mark.parametrize("shape", [(1, 2, WIDTH), (1, WIDTH), (17, 1, WIDTH), (0, 1, WIDTH)])
def test_what_is_no_token_is_the_head_s(shape: tuple[int, ...], asked: list[Any]) -> None:
    module, hidden = head(), torch.randn(shape)
    with torch.no_grad():
        assert torch.equal(vocabulary(module, hidden), module(hidden))
    assert asked == []


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "the path is off": lambda: inference_path(False),
}


@pytest.mark.parametrize("around", AROUND)
def test_what_looks_on_is_shown_the_head(around: str, asked: list[Any]) -> None:
    module, hidden = head(), torch.randn(1, 1, WIDTH)
    with torch.no_grad(), AROUND[around]():
        out = vocabulary(module, hidden)
        assert torch.equal(out, module(hidden))
        assert out.requires_grad is (around == "gradients")
    assert asked == []


def test_a_wrong_size_is_the_head_s_to_refuse(asked: list[Any]) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="mat1 and mat2"):
        vocabulary(head(), torch.randn(1, 1, WIDTH + 1))
    assert asked == []


def test_transforms_of_a_token_are_the_head_s(asked: list[Any]) -> None:
    module, hidden = head(), torch.randn(2, 1, 1, WIDTH)
    with torch.no_grad():
        out = torch.func.vmap(lambda each: vocabulary(module, each))(hidden)
        assert relative_norm(out, module(hidden).double()) < 1e-6
    assert asked == []
