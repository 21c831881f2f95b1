"""Every kernel of a layer's step compiles, without spills, for layers of the published sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler
from jetson_mamba.ops.decoding import layers, layers_cuda
from jetson_mamba.ops.norms import cuda as norms_cuda
from tests.kernels.layers import Mamba, Mamba2
from tests.kernels.test_compile_norms import ARCHITECTURES


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The kernels that are asked for: source, entry and definitions."""
    found: list[Any] = []
    monkeypatch.setattr(compiler, "load", lambda *given: found.append(given[:3]))
    monkeypatch.setattr(compiler, "Launch", lambda *given, **named: None)
    for module in (layers_cuda, norms_cuda):
        monkeypatch.setattr(module, "processors", lambda index: 16)
        monkeypatch.setattr(module, "index_of", lambda device: 0)
    return found


def ask(block: Any, batch: int, dtype: torch.dtype, state_dtype: torch.dtype) -> None:
    """Ask for the kernels of a layer."""
    block = block.to(dtype)
    hidden = torch.empty(batch, 1, block.in_proj.weight.shape[1], dtype=dtype)
    conv_state, states = block.states(batch, state_dtype)
    found = layers._read(block, layers._options)
    assert found is not None
    of, weights = found
    layers._kind(block).layer(of, hidden, conv_state, states, weights)


@pytest.mark.parametrize(
    ("batch", "dtype", "state_dtype", "architectures"),
    [
        (4, torch.float32, torch.float32, ARCHITECTURES),
        (1, torch.bfloat16, torch.bfloat16, ("sm_87", "sm_90")),
        (4, torch.float16, torch.float32, ("sm_87",)),
    ],
    ids=str,
)
def test_the_kernels_of_a_step_compile(
    batch: int,
    dtype: torch.dtype,
    state_dtype: torch.dtype,
    architectures: tuple[str, ...],
    loaded: list[Any],
) -> None:
    for block in (Mamba(768, dt_rank=48), Mamba2(768), Mamba(1280, dt_rank=80)):
        ask(block, batch, dtype, state_dtype)
    kernels = dict.fromkeys(loaded)
    assert len(kernels) >= 7
    for source, entry, defines in kernels:
        for architecture in architectures:
            try:
                found = compiler.compile_source(source, entry, defines, architecture)
            except Unavailable as error:
                if "does not compile for" in str(error):
                    continue
                pytest.skip(str(error))
            assert found.spill_bytes == 0, (entry, defines, architecture)
