"""Real releases import no transformers until text is generated, and run their blocks without."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest

from jetson_mamba.finder import TARGETS
from jetson_mamba.hook.missing import PACKAGES
from tests.releases.test_blocks import python
from tools.releases import MAMBA_SSM, release_path

# The text of the output classes changed after 2.2.6; the one of the models is that of all.
BEFORE, AFTER = "2.2.4", "2.3.2.post1"
START = """
import sys, torch
before = set(sys.modules)
import mamba_ssm
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.utils import generation, hf
from mamba_ssm.utils.generation import *
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert not new & {"transformers", "sympy"}, new
assert not {"torch._dynamo", "torch._inductor"} & (set(sys.modules) - before)
config = MambaConfig(d_model=8, n_layer=1, vocab_size=11, ssm_cfg={"layer": "Mamba1"})
if "ssm_cfg" not in MambaConfig.__dataclass_fields__:
    config.ssm_cfg = {}
model = mamba_ssm.MambaLMHeadModel(config)
ids = torch.arange(3)[None]
model(ids).logits.sum().backward()
mamba_ssm.Mamba(8)(torch.ones(1, 3, 8)).sum().backward()
assert "transformers" not in sys.modules
"""
# No package of these names for whoever asks, as where none is installed.
WITHOUT = """
import sys

class Without:
    names = {names!r}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Without())
"""
WITH_TRANSFORMERS = """
import json, os, pickle
output = model.generate(ids, 5, return_dict_in_generate=True, output_scores=True)
import transformers
assert output.sequences.shape == (1, 5) and len(output.scores) == 2
again = pickle.loads(pickle.dumps(output))
assert type(again) is type(output) is transformers.generation.GenerateDecoderOnlyOutput
assert isinstance(output, getattr(generation, "SampleDecoderOnlyOutput", type(output)))

class Streamer(TextStreamer):
    def __init__(self): self.seen = []
    def put(self, value): self.seen.append(value)
    def end(self): self.seen.append("end")

streamer = Streamer()
assert isinstance(streamer, transformers.TextStreamer)
model.generate(ids, 5, streamer=streamer)
assert len(streamer.seen) == 4 and streamer.seen[-1] == "end"

assert (hf.CONFIG_NAME, hf.WEIGHTS_NAME) == (
    transformers.utils.CONFIG_NAME, transformers.utils.WEIGHTS_NAME
)
with open("config.json", "w") as file:
    json.dump(dict(d_model=8), file)
torch.save(model.state_dict(), "pytorch_model.bin")
assert hf.load_config_hf(os.getcwd()) == dict(d_model=8)
assert hf.load_state_dict_hf(os.getcwd()).keys() == model.state_dict().keys()
"""
WITHOUT_TRANSFORMERS = """
for use in (lambda: model.generate(ids, 5), lambda: hf.load_config_hf("state-spaces/mamba")):
    try:
        use()
    except ModuleNotFoundError as error:
        assert error.name == "transformers"
        print(error)
"""
MISSING = """
for name in Without.names:
    finder = sys.meta_path[0]
    for module in [each for each in sys.modules if each.partition(".")[0] in (name, "mamba_ssm")]:
        del sys.modules[module]
    finder.names = {name}
    try:
        import mamba_ssm
    except ImportError as error:
        assert type(error) is ModuleNotFoundError and error.name == name
        assert error.__cause__ is error.__context__ is None
        print(error)
"""


@pytest.mark.parametrize("version", [BEFORE, AFTER])
def test_transformers_is_imported_when_text_is_generated(version: str, tmp_path: Path) -> None:
    assert python(version, tmp_path, "-W", "ignore", "-c", START + WITH_TRANSFORMERS) == ""


def test_the_blocks_and_the_model_need_no_transformers(tmp_path: Path) -> None:
    code = WITHOUT.format(names={"transformers"}) + START + WITHOUT_TRANSFORMERS
    printed = python(AFTER, tmp_path, "-W", "ignore", "-c", code).splitlines()
    pip = f"and there is none: {shlex.quote(sys.executable)} -m pip install transformers"
    assert printed == [
        f"mamba_ssm needs transformers to generate text, {pip}",
        f"mamba_ssm needs transformers to find a pretrained model, {pip}",
    ]


def test_a_missing_package_is_named_with_who_wants_it_and_the_command(tmp_path: Path) -> None:
    wanted = {
        "einops": "mamba_ssm.ops.selective_scan_interface",
        "huggingface_hub": "mamba_ssm.modules.mamba2",
        "packaging": "mamba_ssm.utils.determinism",
    }
    assert {*wanted, "transformers"} == set(PACKAGES)
    code = "import torch\n" + WITHOUT.format(names=list(wanted)) + MISSING
    printed = python(AFTER, tmp_path, "-W", "ignore", "-c", code).splitlines()
    assert printed == [
        f"No module named {package!r}, which {module} imports; install it with: "
        f"{shlex.quote(sys.executable)} -m pip install {package.replace('_', '-')}"
        for package, module in wanted.items()
    ]


def imports(text: str) -> list[str]:
    """The modules that a text imports when it is imported itself, in their order."""
    found = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            # 2.0.0 has another name for itself in some places.
            found.append(re.sub(r"^src\b", "mamba_ssm", node.module or ""))
    return found


@pytest.mark.parametrize("version", MAMBA_SSM)
def test_whatever_imports_such_a_package_is_a_target_or_imported_by_one(version: str) -> None:
    """So that the error passes the loader.

    The first import of all is that of the first target, which imports einops: without it nothing
    of the package is reached.
    """
    folder = release_path(version)
    imported = {
        ".".join(path.relative_to(folder).with_suffix("").parts): imports(path.read_text())
        for path in (folder / "mamba_ssm").rglob("*.py")
    }
    assert imported["mamba_ssm.__init__"][0] == TARGETS[0]
    assert "einops" in imported[TARGETS[0]]
    for package in set(PACKAGES) - {"einops"}:
        for name, modules in imported.items():
            if name in TARGETS or package not in [each.partition(".")[0] for each in modules]:
                continue
            importers = {other for other, theirs in imported.items() if name in theirs}
            assert importers & set(TARGETS), (package, name)
