"""The key of what decides the numbers: it changes with each setting, and never raises."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any, Callable, Iterator

import pytest
import torch

import jetson_mamba
from jetson_mamba.dispatch import environment
from jetson_mamba.dispatch.environment import environment_key
from tests import interpreters

CPU = torch.device("cpu")


@contextmanager
def attribute(owner: Any, name: str, *values: Any) -> Iterator[None]:
    """The first of the values that is another than the one there."""
    before = getattr(owner, name)
    setattr(owner, name, next(value for value in values if value != before))
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def put_back(setting: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    setting(value)
    try:
        yield
    finally:
        setting(before)


def deterministic(warn_only: bool) -> Any:
    return put_back(
        lambda on: torch.use_deterministic_algorithms(on, warn_only=on and warn_only), True, False
    )


MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn
# Behind its properties, of which those of a torch without opt_einsum refuse values.
EINSUM: Any = vars(import_module("torch.backends.opt_einsum"))["m"]
SETTINGS: dict[str, Callable[[], Any]] = {
    "precision of products": lambda: put_back(
        torch.set_float32_matmul_precision, "high", torch.get_float32_matmul_precision()
    ),
    "tf32 of products": lambda: attribute(MATMUL, "allow_tf32", True, False),
    "reductions in fp16": lambda: attribute(
        MATMUL, "allow_fp16_reduced_precision_reduction", False, True
    ),
    "reductions in bf16": lambda: attribute(
        MATMUL, "allow_bf16_reduced_precision_reduction", False, True
    ),
    "determinism": lambda: deterministic(False),
    "determinism, warned of": lambda: deterministic(True),
    "memory that is filled": lambda: attribute(
        torch.utils.deterministic, "fill_uninitialized_memory", False, True
    ),
    "cuDNN": lambda: attribute(CUDNN, "enabled", False, True),
    "tf32 of cuDNN": lambda: attribute(CUDNN, "allow_tf32", False, True),
    "determinism of cuDNN": lambda: attribute(CUDNN, "deterministic", False, True),
    "cuDNN's own choice": lambda: attribute(CUDNN, "benchmark", False, True),
    "oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "NNPACK": lambda: torch.backends.nnpack.flags(enabled=False),
    "whether the order of products is sought": lambda: attribute(EINSUM, "enabled", False, True),
    "how the order of products is sought": lambda: attribute(EINSUM, "strategy", "auto", "greedy"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to another dtype": lambda: torch.autocast("cpu", torch.float16),
    "autocast that keeps nothing": lambda: torch.autocast("cpu", cache_enabled=False),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "anomalies, and what is one": lambda: torch.autograd.set_detect_anomaly(False, check_nan=False),
    "default dtype": lambda: put_back(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": lambda: torch.device("meta"),
    "a backend of the scan": lambda: jetson_mamba.backend(selective_scan="pytorch"),
    "a backend of Mamba-2": lambda: jetson_mamba.backend(ssd="pytorch"),
    "a backend of the convolution": lambda: jetson_mamba.backend(causal_conv1d="pytorch"),
}
if hasattr(MATMUL, "allow_fp16_accumulation"):
    SETTINGS["accumulation in fp16"] = lambda: attribute(
        MATMUL, "allow_fp16_accumulation", True, False
    )
if hasattr(torch._C, "_set_mkldnn_deterministic"):
    SETTINGS["determinism of oneDNN"] = lambda: attribute(
        torch.backends.mkldnn, "deterministic", True, False
    )


OF_A_CPU = (
    "oneDNN",
    "determinism of oneDNN",
    "NNPACK",
    "autocast",
    "autocast to another dtype",
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in OF_A_CPU])
def test_each_setting_has_a_key_of_its_own_on_a_gpu(name: str) -> None:
    device = torch.device("cuda", 0)
    before = environment_key(device)
    with SETTINGS[name]():
        assert environment_key(device) != before


@pytest.mark.filterwarnings("ignore")  # what torch says of its own settings
@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_has_a_key_of_its_own(name: str) -> None:
    before = environment_key(CPU)
    assert before == environment_key(CPU)
    hash(before)
    with SETTINGS[name]():
        assert environment_key(CPU) != before
    if name not in ("precision of products", "tf32 of products", "tf32 of cuDNN"):
        # torch has more values for these than ways to put one back.
        assert environment_key(CPU) == before


def test_settings_that_differ_by_their_kind_alone_differ() -> None:
    keys = []
    for name in ("autocast", "autocast to another dtype", "determinism", "determinism, warned of"):
        with SETTINGS[name]():
            keys.append(environment_key(CPU))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("device", ["cpu", "cuda:1", "meta", "mps", "xpu"])
def test_every_device_has_a_key(device: str) -> None:
    hash(environment_key(torch.device(device)))


SAID_BY_ONE_WAY_AND_ASKED_BY_ANOTHER = """
import itertools, warnings
warnings.simplefilter("ignore")
import torch
from jetson_mamba.dispatch.environment import environment_key
b = torch.backends
says = [
    lambda: setattr(b, "fp32_precision", "ieee"),
    lambda: setattr(b.cuda.matmul, "fp32_precision", "tf32"),
    lambda: setattr(b.cudnn, "fp32_precision", "ieee"),
    lambda: setattr(b.cudnn.conv, "fp32_precision", "tf32"),
    lambda: setattr(b.cudnn.rnn, "fp32_precision", "ieee"),
    lambda: setattr(b.mkldnn, "fp32_precision", "ieee"),
    lambda: setattr(b.mkldnn.matmul, "fp32_precision", "bf16"),
    lambda: setattr(b.cuda.matmul, "allow_tf32", False),
    lambda: setattr(b.cudnn, "allow_tf32", True),
    lambda: torch.set_float32_matmul_precision("medium"),
    lambda: torch.set_float32_matmul_precision("highest"),
]
for one, other in itertools.permutations(says, 2):
    for say in (one, other):
        try:
            say()
        except (AttributeError, RuntimeError):  # torch's own word on it
            pass
        for device in ("cpu", "cuda"):
            hash(environment_key(torch.device(device)))
for owner, devices in (
    (b.cuda.matmul, ["cpu", "cuda"]),
    (b.cudnn.conv, ["cpu", "cuda"]),
    (b.cudnn.rnn, ["cpu", "cuda"]),
    (b.mkldnn.matmul, ["cpu"]),
    (b.mkldnn.conv, ["cpu"]),
    (b.mkldnn.rnn, ["cpu"]),
):
    for device in devices:
        keys = set()
        for precision in ("tf32", "ieee"):
            owner.fp32_precision = precision
            keys.add(environment_key(torch.device(device)))
        assert len(keys) == 2, (owner, device)
"""


@pytest.mark.skipif(
    not hasattr(torch._C, "_get_fp32_precision_getter"), reason="one way to say it, in this torch"
)
def test_no_mixture_of_torchs_ways_to_say_a_precision_raises() -> None:
    command = ["-c", SAID_BY_ONE_WAY_AND_ASKED_BY_ANOTHER]
    done = interpreters.run(command)
    assert done.returncode == 0, done.stderr


def readers() -> list[str]:
    return [
        *environment._READ,
        *environment._READ_ON_CPU,
        *environment._READ_BEFORE,
        "_get_fp32_precision_getter",
    ]


@pytest.mark.parametrize(
    ("function", "of_gpus"),
    [
        ("_get_blas_preferred_backend", True),
        ("_get_cpu_allow_fp16_reduced_precision_reduction", False),
    ],
)
def test_what_cannot_be_set_on_every_machine_is_asked_for(
    function: str, of_gpus: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._C, function, lambda: "another", raising=False)
    for on_gpu in (False, True):
        found = [read() for read in environment._readers(on_gpu)]
        assert ("another" in found) == (of_gpus or not on_gpu)


@pytest.mark.parametrize("missing", [None, *readers()])
def test_a_torch_without_some_of_them_has_a_key(
    missing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in readers() if missing is None else [missing]:
        monkeypatch.delattr(torch._C, name, raising=False)
    monkeypatch.setattr(environment, "_settings", environment._readers(on_gpu=False))
    monkeypatch.setattr(environment, "_settings_of_gpus", environment._readers(on_gpu=True))
    for device in ("cpu", "cuda"):
        hash(environment_key(torch.device(device)))


@pytest.mark.parametrize("error", [RuntimeError, AttributeError, TypeError, AssertionError])
def test_a_function_that_raises_is_a_value_like_others(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises() -> Any:
        raise error("no longer to be asked by this way")

    before = environment_key(CPU)
    monkeypatch.setattr(environment, "_settings", [*environment._settings, raises])
    assert environment_key(CPU) == (*before, error.__name__)
    with ExitStack() as stack:
        stack.enter_context(SETTINGS["determinism"]())
        assert environment_key(CPU) != (*before, error.__name__)
