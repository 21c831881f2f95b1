"""Models that users export, each through torch's exporter or this package's own.

A test runs this in an interpreter of its own, ``python -m tests.export.models CASE…``, with a
release of mamba_ssm on its path; without a case for all of them. For each it prints the largest
error of a file at a size that it was not made at, over the largest result; the exit code is 1 if
one is more than 1e-5. Through this package a model is captured once, for both targets.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, Callable, Iterator

import torch
from torch import Tensor, nn

# About a chunk, one step, and many; and another batch.
SIZES = [(1, 63), (1, 65), (1, 1), (1, 1000), (3, 70)]
TRACED = (2, 70)
VOCABULARY = 50
TOLERANCE = 1e-5

Make = Callable[[], nn.Module]


def mamba(**options: Any) -> nn.Module:
    """A block of Mamba."""
    from mamba_ssm import Mamba

    block: nn.Module = Mamba(16, **options)
    return block


def mamba2(**options: Any) -> nn.Module:
    """A block of Mamba-2."""
    from mamba_ssm import Mamba2

    block: nn.Module = Mamba2(**{"d_model": 32, "headdim": 8, "d_state": 8, **options})
    return block


def mamba2_simple() -> nn.Module:
    """The short form of the block."""
    from mamba_ssm.modules.mamba2_simple import Mamba2Simple

    block: nn.Module = Mamba2Simple(32, headdim=8, d_state=8)
    return block


def language_model(layer: str, layers: int = 1) -> nn.Module:
    """A language model; the second of its layers is the first that is given a residual."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    small = {"headdim": 8, "d_state": 8} if layer == "Mamba2" else {}
    config = MambaConfig(
        d_model=32, n_layer=layers, vocab_size=VOCABULARY, ssm_cfg={"layer": layer, **small}
    )
    model: nn.Module = MambaLMHeadModel(config)
    return model


def of_transformers(kind: str, **options: Any) -> nn.Module:
    """A language model of transformers."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, **options
    )
    model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config)
    return model


class Functions(nn.Module):
    """A block that calls the functions itself, as models of vision do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 4) / 2)
        self.A = nn.Parameter(-torch.rand(32, 8))
        self.in_proj, self.x_proj = nn.Linear(16, 32), nn.Linear(32, 48)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, seqlen, 16) to (batch, seqlen, 32)."""
        from causal_conv1d import causal_conv1d_fn
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        u = self.in_proj(x).transpose(1, 2)
        u = causal_conv1d_fn(u, self.weight, activation="silu")
        delta, B, C = self.x_proj(u.transpose(1, 2)).transpose(1, 2).split([32, 8, 8], 1)
        out: Tensor = selective_scan_fn(u, delta, self.A, B, C, delta_softplus=True)
        return out.transpose(1, 2)


class Chunks(nn.Module):
    """A scan of Mamba-2 that a model calls itself, gated, with its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.D = nn.Parameter(-torch.rand(4)), nn.Parameter(torch.randn(4, 4))
        self.proj = nn.Linear(16, 16 + 4 + 16 + 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output and last state."""
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

        values, dt, B, C = self.proj(x).split([16, 4, 16, 16], -1)
        heads, B, C = values.unflatten(-1, (4, 4)), B.unflatten(-1, (2, 8)), C.unflatten(-1, (2, 8))
        found: tuple[Tensor, Tensor] = mamba_chunk_scan_combined(
            heads, dt, self.A, B, C, 64, D=self.D, dt_softplus=True, return_final_states=True
        )
        return found


class Vision(nn.Module):
    """A model of pictures: patches, a mixer as MambaVision has it, attention, classes."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, (4, 1), stride=(4, 1))
        self.in_proj, self.out_proj = nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False)
        self.x_proj, self.dt_proj = nn.Linear(16, 2 + 16, bias=False), nn.Linear(2, 16)
        self.conv_x, self.conv_z = (nn.Conv1d(16, 16, 3, groups=16) for _ in range(2))
        self.A_log, self.D = nn.Parameter(torch.rand(16, 8)), nn.Parameter(torch.ones(16))
        self.qkv = nn.Linear(16, 48)
        self.head = nn.Linear(16, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, 10)."""
        tokens = self.patches(pictures).flatten(2).transpose(1, 2)
        tokens = tokens + self.mixed(tokens)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        tokens = tokens + seen.transpose(1, 2).flatten(2)
        classes: Tensor = self.head(tokens.mean(1))
        return classes

    def mixed(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, 16) to the same, along all of them."""
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, 1)
        x = nn.functional.silu(self.conv_x(nn.functional.pad(x, (1, 1))))
        z = nn.functional.silu(self.conv_z(nn.functional.pad(z, (1, 1))))
        dt, B, C = self.x_proj(x.transpose(1, 2)).split([2, 8, 8], -1)
        y = selective_scan_fn(
            x,
            (dt @ self.dt_proj.weight.t()).transpose(1, 2),
            -self.A_log.float().exp(),
            B.transpose(1, 2).contiguous(),
            C.transpose(1, 2).contiguous(),
            self.D.float(),
            z=None,
            delta_bias=self.dt_proj.bias.float(),
            delta_softplus=True,
        )
        mixed: Tensor = self.out_proj(torch.cat((y, z), 1).transpose(1, 2))
        return mixed


PICTURES = -1

# The width of the input; 0 of tokens, -1 of pictures.
CASES: dict[str, tuple[Make, int]] = {
    "Mamba": (mamba, 16),
    "Mamba, bias and no convolution's": (lambda: mamba(bias=True, conv_bias=False), 16),
    "Mamba2": (mamba2, 32),
    "Mamba2, groups": (lambda: mamba2(ngroups=2, d_ssm=32), 32),
    "Mamba2, no norm, limits": (lambda: mamba2(rmsnorm=False, dt_limit=(0.01, 0.2)), 32),
    "Mamba2Simple": (mamba2_simple, 32),
    "functions": (Functions, 16),
    "chunks": (Chunks, 16),
    "vision": (Vision, PICTURES),
    "MambaLMHeadModel of Mamba": (lambda: language_model("Mamba1"), 0),
    "MambaLMHeadModel of Mamba2": (lambda: language_model("Mamba2", layers=2), 0),
    "transformers' Mamba": (lambda: of_transformers("Mamba", state_size=8), 0),
    "transformers' FalconMamba": (lambda: of_transformers("FalconMamba", state_size=8), 0),
    "transformers' Mamba2": (
        lambda: of_transformers("Mamba2", state_size=8, num_heads=8, head_dim=8, n_groups=1),
        0,
    ),
}


def drawn(width: int, batch: int, seqlen: int) -> Tensor:
    """An input: tokens where a model has no width, or pictures of twice ``seqlen`` patches."""
    torch.manual_seed(batch * seqlen)
    if width == PICTURES:
        return torch.randn(batch, 3, 8, seqlen)
    if width:
        return torch.randn(batch, seqlen, width)
    return torch.randint(VOCABULARY, (batch, seqlen))


def open_axes(x: Tensor) -> dict[int, str]:
    """The axes of an input whose sizes are left open."""
    return {0: "batch", x.dim() - 1 if x.dim() == 4 else 1: "seqlen"}


def by_torch(model: nn.Module, x: Tensor, folder: Path) -> Iterator[tuple[str, Path]]:
    """By the exporter of torch, as it is."""
    file = folder / "torch.onnx"
    dims = {axis: torch.export.Dim(name) for axis, name in open_axes(x).items()}
    with torch.no_grad():
        torch.onnx.export(
            model, (x,), str(file), dynamo=True, verbose=False, dynamic_shapes=(dims,)
        )
    yield "torch", file


def by_package(model: nn.Module, x: Tensor, folder: Path) -> Iterator[tuple[str, Path]]:
    """By this package, for each target, of one graph."""
    import jetson_mamba
    from jetson_mamba.export import capture

    kept: list[Any] = []
    captured = capture.captured

    def once(*args: Any, **options: Any) -> Any:
        if not kept:
            kept.append(captured(*args, **options))
        return kept[0]

    capture.captured = once
    try:
        for target in ("onnxruntime", "tensorrt"):
            file = folder / f"{target}.onnx"
            jetson_mamba.export.onnx(model, [x], file, dynamic=[open_axes(x)], target=target)
            yield target, file
    finally:
        capture.captured = captured


WAYS: dict[str, Callable[[nn.Module, Tensor, Path], Iterator[tuple[str, Path]]]] = {
    "torch": by_torch,
    "package": by_package,
}


def error(model: nn.Module, width: int, file: Path) -> float:
    """The largest error of a file, over the largest result."""
    from jetson_mamba.export.check import session, tensors_of

    runs = session(file)
    name = runs.get_inputs()[0].name
    worst = 0.0
    for batch, seqlen in SIZES:
        x = drawn(width, batch, seqlen)
        with torch.no_grad():
            expected = tensors_of(model(x))
        for found, right in zip(runs.run(None, {name: x.numpy()}), expected):
            difference = torch.from_numpy(found).sub(right).abs().max()
            worst = max(worst, float(difference / right.abs().max()))
    return worst


def errors(case: str) -> Iterator[tuple[str, float]]:
    """Of a ``CASE``, by the way to its file; or of ``CASE/WAY`` alone."""
    from jetson_mamba.export.states import plain

    name, _, chosen = case.partition("/")
    make, width = CASES[name]
    torch.manual_seed(0)
    model = plain(make().eval())
    # While torch exports by itself, transformers goes step by step, in one length.
    ways = [way for way in WAYS if way != "torch" or "transformers" not in name]
    for way in [chosen] if chosen else ways:
        with tempfile.TemporaryDirectory() as folder:
            for made, file in WAYS[way](model, drawn(width, *TRACED), Path(folder)):
                yield f"{name}/{made}", error(model, width, file)


def main() -> None:
    """Print each case and its error."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    worst = 0.0
    for case in sys.argv[1:] or CASES:
        for made, found in errors(case):
            print(f"{made} {found:.2e}", flush=True)
            worst = max(worst, found)
    sys.exit(0 if worst <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
