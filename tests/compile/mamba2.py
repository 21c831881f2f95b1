"""Prints how far Mamba-2 of one release is in a graph from its eager calls.

It is compiled, and exported. ``python -m tests.compile.mamba2 CHECK...`` prints a line for each
result: its name and the relative norm of its difference. The release is whatever ``mamba_ssm`` is
first on the path.
"""

from __future__ import annotations

import copy
from typing import Any, Callable, Iterator

import torch
from torch import Tensor, nn

import jetson_mamba  # noqa: F401 - activates the overrides
from tests import checks
from tests.references.tolerance import relative_norm

# Tests on a GPU set others.
DEVICE = torch.device("cpu")
D_MODEL, VOCABULARY = 16, 32
LAYER = {"d_state": 16, "headdim": 8, "chunk_size": 16}
Results = Iterator["tuple[str, float]"]


class Subject:
    """A module, what it is given at a batch and a length, and what of its output counts."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def given(self, batch: int, seqlen: int) -> Tensor:
        """An input."""
        return torch.randn(batch, seqlen, D_MODEL, device=DEVICE, requires_grad=True)

    def out(self, call: Callable[[Tensor], Any], x: Tensor) -> Tensor:
        """The output of a call."""
        found: Tensor = call(x)
        return found

    def step(self, call: Callable[[Tensor], Any], x: Tensor) -> dict[str, Tensor]:
        """The output and every gradient of a loss."""
        leaves: dict[str, Tensor] = dict(self.module.named_parameters())
        if x.requires_grad:
            leaves["x"] = x
        out = self.out(call, x)
        loss = (out * torch.linspace(-1, 1, out.shape[-1], device=DEVICE)).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return {"out": out.detach(), **dict(zip(leaves, gradients))}


class Model(Subject):
    """A language model, its output the logits."""

    def given(self, batch: int, seqlen: int) -> Tensor:
        """Tokens."""
        return torch.randint(0, VOCABULARY, (batch, seqlen), device=DEVICE)

    def out(self, call: Callable[[Tensor], Any], x: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = call(x).logits
        return logits


def block(**options: Any) -> Subject:
    from mamba_ssm.modules.mamba2 import Mamba2

    torch.manual_seed(0)
    return Subject(Mamba2(D_MODEL, device=DEVICE, **LAYER, **options))


def model(layers: int = 2, layer: str = "Mamba2") -> Subject:
    """Of the default configuration: norms by the root mean square, fused with the residual."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    torch.manual_seed(0)
    sizes = {"layer": layer, **(LAYER if layer == "Mamba2" else {"d_state": 8})}
    config = MambaConfig(d_model=D_MODEL, n_layer=layers, vocab_size=VOCABULARY, ssm_cfg=sizes)
    assert config.rms_norm and config.fused_add_norm and config.residual_in_fp32
    return Model(MambaLMHeadModel(config, device=DEVICE))


def compiled(
    subject: Subject,
    backend: str,
    *,
    lengths: tuple[int, ...] = (35,),
    dynamic: bool | None = None,
    autocast: bool = False,
) -> Results:
    """A module in one graph, forward and backward, and without gradients."""
    subject.out(subject.module, subject.given(1, 4))  # ops are there before a compiler is imported
    torch._dynamo.reset()
    whole: Any = torch.compile(subject.module, fullgraph=True, backend=backend, dynamic=dynamic)
    for seqlen in lengths:
        x = subject.given(2, seqlen)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
            expected, found = subject.step(subject.module, x), subject.step(whole, x)
            for name, right in expected.items():
                yield f"{seqlen} {name}", relative_norm(found[name], right)
            with torch.no_grad():
                right = subject.out(subject.module, x)
                yield f"{seqlen} without gradients", relative_norm(subject.out(whole, x), right)


def traced_block() -> Results:
    """At a second length Dynamo makes the length symbolic by itself."""
    yield from compiled(block(), "aot_eager", lengths=(35, 41))


def symbolic_block() -> Results:
    """With what the default does not have: groups, no norm, D for each channel, limits."""
    options = {"ngroups": 2, "rmsnorm": False, "D_has_hdim": True, "dt_limit": (0.01, 0.1)}
    subject = block(**options)
    yield from compiled(subject, "aot_eager", lengths=(35, 41), dynamic=True)


def mlp_block() -> Results:
    yield from compiled(block(d_ssm=16), "aot_eager")


def autocast_block() -> Results:
    yield from compiled(block(), "aot_eager", autocast=True)


def parts_of_block() -> Results:
    """The block that calls convolution, scan and norm one by one."""
    yield from compiled(block(use_mem_eff_path=False), "aot_eager")


def core_of_block() -> Results:
    """Its core one operator, as on a GPU; also under autocast."""
    from jetson_mamba.ops.ssd import op as ssd

    ssd._is_one_operator = lambda given: True
    yield from compiled(block(), "aot_eager", lengths=(35, 41))
    for name, difference in compiled(block(), "aot_eager", autocast=True):
        yield f"autocast {name}", difference


def traced_model() -> Results:
    yield from compiled(model(), "aot_eager")


def traced_model_of_mamba() -> Results:
    """The same model with layers of Mamba-1."""
    yield from compiled(model(layer="Mamba1"), "aot_eager", lengths=(35, 41))


def traced_layer() -> Results:
    """A model of one layer: of another release, which has the norms and the block of its own."""
    yield from compiled(model(layers=1), "aot_eager")


def inductor_model() -> Results:
    yield from compiled(model(layers=1), "inductor", lengths=(35, 41), dynamic=True)


def breaks() -> Results:
    """How often Dynamo has to leave its graph: no difference, but to be zero as well."""
    subjects = {"block": block(), "model": model(), "model of Mamba": model(layer="Mamba1")}
    for name, subject in subjects.items():
        torch._dynamo.reset()
        explained = torch._dynamo.explain(subject.module)(subject.given(2, 35))
        assert explained.graph_count == 1
        yield name, explained.graph_break_count


def exported() -> Results:
    """Both with symbolic batch and length."""
    sizes = {
        0: torch.export.Dim("batch", min=2, max=64),
        1: torch.export.Dim("seqlen", min=2, max=8192),
    }
    for name, subject in (("block", block()), ("model", model())):
        program = torch.export.export(
            subject.module, (subject.given(2, 35),), dynamic_shapes=(sizes,), strict=True
        )
        for batch, seqlen in ((3, 7), (2, 300)):
            x = subject.given(batch, seqlen)
            found, right = (subject.out(each, x) for each in (program.module(), subject.module))
            yield f"{name} {batch} {seqlen}", relative_norm(found, right)


def double() -> Results:
    """The model in eager float32 against itself in float64, forward and backward."""
    subject = model()
    exact = Model(copy.deepcopy(subject.module).double())
    x = subject.given(2, 35)
    found, expected = subject.step(subject.module, x), exact.step(exact.module, x)
    for name, right in expected.items():
        yield name, relative_norm(found[name], right)


def inference() -> Results:
    """Calls without gradients, on the inference path and past it, against those with."""
    from jetson_mamba.dispatch.paths import inference_path

    for name, subject in (
        *(("block", block()), ("MLP", block(d_ssm=16)), ("model", model())),
        ("parts", block(use_mem_eff_path=False)),
    ):
        x = subject.given(2, 35)
        right = subject.out(subject.module, x).detach()
        for context in (torch.no_grad, torch.inference_mode):
            for enabled in (True, False):
                with context(), inference_path(enabled):
                    found = subject.out(subject.module, x)
                assert not found.requires_grad
                yield f"{name} {context.__name__} {enabled}", relative_norm(found, right)


CHECKS = {
    check.__name__: check
    for check in (
        *(traced_block, symbolic_block, mlp_block, autocast_block, parts_of_block, core_of_block),
        *(traced_model, traced_layer, traced_model_of_mamba, inductor_model),
        *(breaks, exported, double, inference),
    )
}


def main() -> None:
    """Run the checks named on the command line."""
    checks.run(CHECKS)


if __name__ == "__main__":
    main()
