"""Exported models compute in ONNX Runtime what they compute in Python.

Every model through this package, a few through torch's exporter as well; ``make exports`` takes all
both ways.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.export import models
from tests.interpreters import COMPILER
from tests.releases.test_blocks import python

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.skipif(
    not hasattr(getattr(torch.onnx, "ops", None), "symbolic_multi_out"), reason="needs torch 2.8"
)

REPOSITORY = Path(__file__).resolve().parent.parent.parent
RELEASE = "2.3.2.post1"
TOLERANCE = 1e-5


# Those that torch exports here: one of each operator, and of what calls it.
BY_TORCH = ("Mamba", "functions", "chunks", "vision", "MambaLMHeadModel of Mamba2")
# What both ways import before they begin: it takes as long as a model.
EXPORTERS = (*COMPILER, "networkx", "onnx", "onnx_ir", "onnxscript", "onnxruntime")
# Each begins once with what neighbours share: torch's registries, the imports of transformers.
PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_models_are_right_at_sizes_that_they_were_not_exported_at(
    part: int, tmp_path: Path
) -> None:
    assert set(BY_TORCH) < set(models.CASES)
    first, after = (len(models.CASES) * each // PARTS for each in (part, part + 1))
    names = list(models.CASES)[first:after]
    cases = [name if name in BY_TORCH else f"{name}/package" for name in names]
    arguments = ("-W", "ignore", "-m", "tests.export.models", *cases)
    printed = python(RELEASE, tmp_path, *arguments, modules=EXPORTERS, timeout=900)
    errors = dict(line.rsplit(" ", 1) for line in printed.splitlines())
    made = {f"{name}/{target}" for name in names for target in ("onnxruntime", "tensorrt")}
    assert errors.keys() == made | {f"{name}/torch" for name in names if name in BY_TORCH}
    assert {name: error for name, error in errors.items() if not float(error) <= TOLERANCE} == {}


MODEL = """
import torch
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

def small():
    torch.manual_seed(0)
    config = MambaConfig(
        d_model=32, n_layer=2, vocab_size=50, ssm_cfg={"layer": "Mamba1"}, tie_embeddings=False
    )
    model = MambaLMHeadModel(config).eval()
    with torch.no_grad():  # of a model that has learned nothing all logits are alike
        model.lm_head.weight.mul_(50)
    return model
"""
GENERATED = """
import sys, torch
from model import small
prompt, count = torch.tensor([[int(each) for each in sys.argv[1].split(",")]]), int(sys.argv[2])
print(*small().generate(prompt, max_length=prompt.shape[1] + count)[0].tolist())
"""
# A finder that knows nothing of these, however they are installed.
WITHOUT = """
import sys
for name in ("torch", "mamba_ssm", "jetson_mamba", "transformers"):
    sys.modules[name] = None
"""


def program() -> str:
    """The program of the documentation."""
    page = (REPOSITORY / "docs" / "onnx.md").read_text()
    (found,) = re.findall(r"```python title=\"generate.py\"\n(.*?)```", page, flags=re.DOTALL)
    assert isinstance(found, str)
    return found


def test_the_program_of_the_documentation_writes_what_generate_does(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    arguments = ("model:small", "model.onnx", "--step")
    command = ("-W", "ignore", "-m", "jetson_mamba", "export", *arguments)
    python(RELEASE, tmp_path, *command, modules=EXPORTERS)
    assert {each.name for each in tmp_path.glob("*.onnx")} == {
        "model.prompt.onnx",
        "model.step.onnx",
    }
    assert len(program().splitlines()) <= 30
    (tmp_path / "generate.py").write_text(WITHOUT + program())
    for prompt in ("7,3,11,29,2", "4"):
        done = subprocess.run(
            [sys.executable, "generate.py", prompt, "40"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={"JETSON_MAMBA": "off", "PYTHONPATH": ""},
        )
        assert done.returncode == 0, done.stderr
        expected = python(RELEASE, tmp_path, "-W", "ignore", "-c", GENERATED, prompt, "40")
        assert done.stdout == expected
        assert len(set(done.stdout.split())) > 5


MAMBAVISION = """
import sys
try:
    from mambavision import create_model
except Exception as error:
    sys.exit(print(f"mambavision cannot be imported: {error!r}"))
import torch
import jetson_mamba
torch.manual_seed(0)
model = create_model("mamba_vision_T", pretrained=False, resolution=64).eval()
found = jetson_mamba.export.onnx(model, [torch.randn(1, 3, 64, 64)], "m.onnx", target="tensorrt")
print(found.nodes, *found.forms.values(), found.error)
"""


@pytest.mark.skipif(find_spec("mambavision") is None, reason="mambavision is not installed")
def test_mambavision_is_exported_as_it_comes_from_pip(tmp_path: Path) -> None:
    printed = python(RELEASE, tmp_path, "-W", "ignore", "-c", MAMBAVISION)
    if "cannot be imported" in printed:
        pytest.skip(printed)
    nodes, form, error = printed.splitlines()[-1].split()
    assert int(nodes) > 500 and form == "blocks"
    assert float(error) <= TOLERANCE
    assert (tmp_path / "m.onnx").is_file()
