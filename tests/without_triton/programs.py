"""What runs in a process without Triton.

Models of mamba_ssm and of transformers. ``python -m tests.without_triton.programs CHECK...`` prints
a line for each result.
"""

from __future__ import annotations

import sys
from collections import Counter
from importlib import import_module, invalidate_caches
from typing import Any, Callable, Iterator

import torch
from torch import Tensor

import jetson_mamba  # noqa: F401 - activates the overrides
from tests import checks
from tests.compile import mamba2 as compiled
from tests.references.blocks import mamba2_block
from tests.references.tolerance import relative_norm
from tests.releases import compare, decoding
from tools.releases import INCOMPLETE, MAMBA_SSM, release_path

Results = Iterator["tuple[str, float]"]
STEP = 1e-4


def releases() -> Results:
    """How many modules of each release imported Triton's place; every release is imported."""
    for version in MAMBA_SSM:
        if version in INCOMPLETE:
            continue
        for name in [each for each in sys.modules if each.partition(".")[0] == "mamba_ssm"]:
            del sys.modules[name]
        sys.path.insert(0, str(release_path(version)))
        invalidate_caches()
        package = import_module("mamba_ssm")
        assert package.__version__ in version
        assert str(package.__file__).startswith(sys.path.pop(0))
        loaded = [each for name, each in sys.modules.items() if name.startswith("mamba_ssm.")]
        yield version, sum(" as triton" in _source(each) for each in loaded)


def _source(module: Any) -> str:
    loader = module.__spec__.loader
    return str(loader.get_source(module.__name__)) if loader is not None else ""


def nobody_sees_triton() -> Results:
    """Everybody who asks for Triton hears no, before and after mamba_ssm is there."""
    import pickle
    import pkgutil
    from importlib import metadata
    from importlib.util import find_spec

    from transformers.utils import import_utils

    for _ in range(2):
        try:
            import_module("triton")
            raise AssertionError("triton is there")
        except ModuleNotFoundError as error:
            assert error.name == "triton"
        assert find_spec("triton") is None
        import_module("mamba_ssm.ops.triton.ssd_combined")
    assert not [name for name in sys.modules if name.partition(".")[0] == "triton"]
    _triton: Any = import_module("torch.utils._triton")
    assert not _triton.has_triton_package() and not _triton.has_triton()
    assert not import_utils.is_triton_available()
    assert "triton" not in {each.name for each in pkgutil.iter_modules()}
    assert "triton" not in {each.metadata["Name"] for each in metadata.distributions()}
    try:
        metadata.version("triton")
        raise AssertionError("triton has a version")
    except metadata.PackageNotFoundError:
        pass
    # What launches its kernels is found by its name, as without the hook.
    ssd_bmm: Any = import_module("mamba_ssm.ops.triton.ssd_bmm")
    for function in (ssd_bmm._bmm_chunk_fwd, ssd_bmm._bmm_chunk_bwd):
        assert pickle.loads(pickle.dumps(function)) is function
    yield "seen", 0.0


def mamba2_simple() -> Results:
    """A block of ``Mamba2Simple`` beside float64."""
    from mamba_ssm.modules.mamba2_simple import Mamba2Simple

    module = Mamba2Simple(compare.D_MODEL, d_state=16, headdim=8, chunk_size=16)
    return compare.block(
        module, lambda weight, x: mamba2_block(weight, x, headdim=8, eps=module.norm.eps)
    )


def language_models() -> Results:
    """The gradients of both language models: beside float64, whose slope is the loss's own."""
    tokens = torch.randint(0, 40, (2, 9))
    for layer in ("Mamba1", "Mamba2"):
        model = decoding.language_model(layer).train()
        single = _gradients(model, tokens)
        model.double()
        for each in model.modules():
            if hasattr(each, "residual_in_fp32"):
                each.residual_in_fp32 = False
        double = _gradients(model, tokens)
        for name, gradient in double.items():
            yield f"{layer} {name}", relative_norm(single[name], gradient)
        directions = {name: torch.randn_like(each) for name, each in double.items()}
        slope = torch.stack(
            [(double[name] * each).sum() for name, each in directions.items()]
        ).sum()
        losses = []
        with torch.no_grad():
            for step in (STEP, -2 * STEP):
                for name, parameter in model.named_parameters():
                    parameter.add_(directions[name], alpha=step)
                losses.append(_loss(model, tokens))
        yield f"{layer} slope", relative_norm((losses[0] - losses[1]) / (2 * STEP), slope)


def _loss(model: Any, tokens: Tensor) -> Tensor:
    logits: Tensor = model(tokens).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def _gradients(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(_loss(model, tokens), list(named.values()))
    return dict(zip(named, found))


def transformers_models() -> Results:
    """Each model's gradients to a file, and how often it called an op."""
    from tests.modules import models
    from tests.releases.transformers_models import count

    calls: Counter[str] = Counter()
    count(calls)
    computed = {}
    for name in models.MODELS:
        calls.clear()
        computed[name] = models.trained(models.build(name))
        yield name, sum(calls.values())
    torch.save(computed, "computed.pt")


def no_op() -> Results:
    """Kernels that nothing takes the place of say so."""
    angle_dt: Any = import_module("mamba_ssm.ops.triton.mamba3.angle_dt")
    ssd_bmm: Any = import_module("mamba_ssm.ops.triton.ssd_bmm")
    a = torch.randn(1, 16, 16)
    calls: dict[str, Callable[[], Any]] = {
        "ssd_bmm._bmm_chunk_bwd": lambda: ssd_bmm._bmm_chunk_bwd(a, a.unsqueeze(1)),
        "angle_dt.angle_dt_fwd": lambda: angle_dt.angle_dt_fwd(a.unsqueeze(-1), a),
    }
    for name, call in calls.items():
        try:
            call()
        except RuntimeError as error:
            (sentence,) = str(error).splitlines()
            assert name in sentence and "`jetson-mamba doctor`" in sentence, sentence
            assert "Triton is not installed" in sentence or "Triton 3" in sentence, sentence
            yield name, 0.0
    try:
        ssd_bmm._bmm_chunk_bwd(chunk=16)
    except TypeError as error:
        assert "chunk" in str(error)
        yield "arguments", 0.0


def mamba3() -> Results:
    """Blocks of Mamba-3 compute as they do beside a Triton that cannot run either."""
    from tests.releases import launched

    yield from launched.mamba3()


CHECKS = {
    **{each.__name__: each for each in (compare.mamba, compare.mamba2, compare.mamba_inner)},
    **{each.__name__: each for each in (compiled.traced_model, compiled.traced_model_of_mamba)},
    "decoding1": decoding.mamba1,
    "decoding2": decoding.mamba2,
    **{
        each.__name__: each
        for each in (
            *(releases, nobody_sees_triton, mamba2_simple, language_models),
            *(transformers_models, no_op, mamba3),
        )
    },
}


if __name__ == "__main__":
    compiled.DEVICE = checks.device()
    checks.run(CHECKS)
