"""Models run on a CPU with texts that no release has.

Each is made of one that was, and every model trains and generates. Where a function's own code is
Triton's, which does not run there, the op serves with one warning.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests import interpreters
from tools.releases import release_path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PROGRAM = """
import os, sys, warnings
from importlib.machinery import SourceFileLoader
import torch
import jetson_mamba
from jetson_mamba.hook import copies
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from mamba_ssm import MambaLMHeadModel
    from mamba_ssm.models.config_mamba import MambaConfig
    for layer, sizes in (("Mamba1", {}), ("Mamba2", dict(headdim=16, d_state=16))):
        torch.manual_seed(0)
        config = MambaConfig(
            d_model=64, n_layer=1, vocab_size=16, ssm_cfg=dict(layer=layer, **sizes)
        )
        model = MambaLMHeadModel(config)
        tokens = torch.arange(6)[None] % 16
        model(tokens).logits.square().sum().backward()
        total = sum(float(each.grad.double().square().sum()) for each in model.parameters())
        print(layer, repr(total), model.generate(tokens[:, :3], 6)[0].tolist())
ours = [each for each in caught if issubclass(each.category, RuntimeWarning)]
for each in ours:
    print("warning:", each.message)
for target in jetson_mamba._finder.outcomes:
    path = os.path.join(sys.argv[1], *target.split(".")[1:]) + ".py"
    seen = copies.look(target, SourceFileLoader(target, path))
    for what, _ in seen.left_out:
        print("left out:", what)
"""
FUNCTIONS = {
    "ops/triton/ssd_combined.py": ("mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined"),
    "ops/triton/layer_norm.py": ("layer_norm_fn", "rms_norm_fn"),
    "ops/triton/layernorm_gated.py": ("rmsnorm_fn",),
    "ops/triton/selective_state_update.py": ("selective_state_update",),
    "ops/selective_scan_interface.py": ("selective_scan_fn", "mamba_inner_fn"),
}
# Of these, the models call: each says once that it is served.
CALLED = {
    "mamba_chunk_scan_combined",
    "mamba_split_conv1d_scan_combined",
    "layer_norm_fn",
    "rmsnorm_fn",
    "selective_state_update",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which copies of the release are kept, as soon as ``released`` was asked for."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def released(cache: Path) -> list[str]:
    """What the models of the release give."""
    results, warned, left_out = run(release_path("2.3.2.post1") / "mamba_ssm", cache)
    assert (warned, left_out) == (set(), set())
    return results


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "mamba_ssm"
    shutil.copytree(release_path("2.3.2.post1") / "mamba_ssm", folder)
    return folder


def run(package: Path, cache: Path) -> tuple[list[str], set[str], set[str]]:
    """What the models give; the functions that warnings name; what was left out."""
    done = interpreters.run(
        ["-c", PROGRAM, str(package)],
        env={
            **{name: value for name, value in os.environ.items() if "JETSON_MAMBA" not in name},
            "PYTHONPATH": os.pathsep.join((str(package.parent), str(REPOSITORY))),
            "JETSON_MAMBA_CACHE": str(cache),
        },
        cwd=cache,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    warned = [line for line in lines if line.startswith("warning: ")]
    named = [
        match[1]
        for line in warned
        if (match := re.match(r"warning: mamba_ssm\.[\w.]+\.(\w+) stays as it is installed", line))
    ]
    assert len(named) == len(warned) == len(set(named)), warned
    left_out = {line.rpartition(" ")[2] for line in lines if line.startswith("left out: ")}
    return [line for line in lines if line.startswith("Mamba")], set(named), left_out


def with_parameter(package: Path, file: str, function: str, parameter: str) -> None:
    path = package / file
    text, count = re.subn(
        rf"(\ndef {function}\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*?),?\s*\):",
        rf"\1, {parameter}=None):",
        path.read_text(),
    )
    assert count == 1
    path.write_text(text)


def test_a_parameter_more_on_every_function(
    package: Path, cache: Path, released: list[str]
) -> None:
    for file, functions in FUNCTIONS.items():
        for function in functions:
            with_parameter(package, file, function, "own_extra")
    results, warned, left_out = run(package, cache)
    assert (results, warned) == (released, CALLED)
    assert left_out == {
        *(function for functions in FUNCTIONS.values() for function in functions),
        *("Mamba.forward", "Mamba.step", "Mamba2.forward", "Mamba2.step"),
    }


def test_what_upstreams_main_branch_changes(
    package: Path, cache: Path, released: list[str]
) -> None:
    """One parameter more, which the ops know, and a guarded import of the scan's extension."""
    for function in FUNCTIONS["ops/triton/ssd_combined.py"]:
        with_parameter(package, "ops/triton/ssd_combined.py", function, "state_dtype")
    interface = package / "ops" / "selective_scan_interface.py"
    guarded = (
        "try:\n    import selective_scan_cuda\nexcept ImportError:\n    selective_scan_cuda = None"
    )
    text = interface.read_text().replace("import selective_scan_cuda", guarded)
    interface.write_text(text)
    results, warned, left_out = run(package, cache)
    assert results == released
    assert warned == set(FUNCTIONS["ops/triton/ssd_combined.py"])
    assert "mamba_chunk_scan_combined" in left_out and "Mamba2.step" in left_out
    assert "selective_scan_fn" not in left_out and "rmsnorm_fn" not in left_out


@pytest.mark.usefixtures("released")
def test_another_kernel_beside_a_function_makes_it_another_function(
    package: Path, cache: Path
) -> None:
    """Also where a copy was kept that went past it."""
    kernels = package / "ops" / "triton" / "ssd_chunk_state.py"
    text = kernels.read_text()
    kernels.write_text(
        re.sub(r"(\ndef _chunk_cumsum_fwd\([^\n]*\n)", r"\1    A = A * 2\n", text, count=1)
    )
    assert kernels.read_text() != text
    _, warned, left_out = run(package, cache)
    assert warned == set(FUNCTIONS["ops/triton/ssd_combined.py"])
    assert "mamba_chunk_scan_combined" in left_out and "Mamba2.forward" in left_out
    assert "Mamba.forward" not in left_out
