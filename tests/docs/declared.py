"""How each command or program of the pages is tried.

At once, by ``make docs-check``, or why not. One table: a command that a page shows stands in one of
these, and none stands here for nothing.
"""

from __future__ import annotations

# Each by itself, in an environment with this package, torch and mamba-ssm, with a train.py. A
# doctor that finds something ends with 1, which is its work.
AT_ONCE = {
    'python3 -c "import torch; print(torch.__version__, torch.cuda.is_available())"': (0,),
    "jetson-mamba status": (0,),
    "jetson-mamba diff": (0,),
    "jetson-mamba copies": (0,),
    "jetson-mamba doctor": (0, 1),
    "python train.py": (0,),
    "python3 train.py": (0,),
}

# One after the other, in one new environment that has torch and pip and nothing of this project,
# in the folder of a checkout: the README's, then the page of ONNX, then what is left.
IN_A_NEW_ENVIRONMENT = (
    "pip install .",
    "jetson-mamba install",
    "python train.py",
    "jetson-mamba verify",
    "python3 -m pip install .",
    "python3 -m pip install matplotlib",
    "python3 -m jetson_mamba install --yes",
    "python3 -m jetson_mamba doctor",
    "python3 -m jetson_mamba verify",
    "python3 -m jetson_mamba demo --steps 3",
    "pip install '.[cuda12]'",
    "pip install '.[export]'",
    "jetson-mamba export model:make out.onnx --shape 1,1024,768 --dynamic 0=batch,1=seqlen",
    "jetson-mamba export model:make out.onnx --for tensorrt",
    # NVRTC is there: the extra above brought it.
    "jetson-mamba export model:make out.onnx --for tensorrt --plugins sm_87",
    "jetson-mamba export model:make model.onnx --step",
    "python generate.py 7,3,11,29,2 40",
)

BY_BOARDS = "`make boards` carries the section out in an imitation of the board"
NOT_TRIED = {
    ". ~/mamba/bin/activate": BY_BOARDS,
    "python3 -m venv --system-site-packages ~/mamba": BY_BOARDS,
    "python3 -m pip install matplotlib 'numpy<2'": BY_BOARDS,
    "make demo": "minutes, and a second torch: the workflow has a job of its own for it",
    "make test": "is what this is part of",
    "make lint": "the first part of `make test`",
    "make release": "the workflow has a job of its own for it",
    "make .releases/ready": "what `make test` begins with",
    "make mutate PART=rewrite COUNT=10 SEED=1": "half an hour; tests/noticed tries its parts",
    ".venv/bin/python -m pytest tests/rewrite": "a part of `make test`",
    ".venv/bin/python -m pytest tests/releases": "a part of `make test`",
    ".venv/bin/python -m tests.cli.printed": "writes into the tree; tests/cli holds what it writes",
    ".venv/bin/python -m tests.cli.drawn": "writes into the tree; tests/cli holds what it writes",
    ".venv/bin/python -m tests.doctor.said": "writes into the tree; tests/doctor holds it",
    ".venv/bin/python -m tools.known": "writes into the tree; tests/rewrite holds what it writes",
    "pip install mambavision --no-deps": "another project's package, which changes by itself",
    "pip install timm einops '.[export]'": "the same; the extra is tried by itself",
    "trtexec --onnx=out.onnx --stronglyTyped --minShapes=x:1x1x768 --optShapes=x:1x1024x768 "
    "--maxShapes=x:8x4096x768": "there is no TensorRT for a CPU",
}

# Programs by page and how they begin; the text is what stands before them on the page in words.
TORCH = "import torch\nimport jetson_mamba\nfrom mamba_ssm import Mamba\n"
BLOCK = f"{TORCH}block = model = Mamba(16)\nx = torch.randn(2, 5, 16)\n"
PROMPT = """import torch
import jetson_mamba
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.utils.generation import InferenceParams
model = MambaLMHeadModel(MambaConfig(d_model=16, n_layer=1, vocab_size=32, fused_add_norm=False))
input_ids = torch.randint(32, (1, 300))
inference_params = InferenceParams(max_seqlen=320, max_batch_size=1)
"""
PROGRAMS = {
    ("README.md", "import jetson_mamba"): "",
    ("README.zh.md", "import jetson_mamba"): "",
    ("docs/how-it-works.md", "with jetson_mamba.backend"): BLOCK,
    ("docs/how-it-works.zh.md", "with jetson_mamba.backend"): BLOCK,
    ("docs/calls.md", "batch, seqlen ="): BLOCK,
    ("docs/calls.md", "from jetson_mamba.dispatch.paths"): BLOCK,
    ("docs/calls.md", "logits = jetson_mamba.prefill"): PROMPT,
}
PROGRAMS_NOT_TRIED = {
    ("docs/calls.md", "import jetson_mamba"): "needs a GPU; tests/compile compiles on a CPU",
    ("docs/call-forms.md", "out = causal_conv1d_cuda"): "tests/docs rewrites these three",
    ("docs/call-forms.md", "Form(("): "the same",
    ("docs/call-forms.md", "out = jetson_mamba.ops"): "the same",
    ("docs/onnx.md", "torch.onnx.export("): "tests/export exports so, which takes minutes",
    ("docs/onnx.md", "table = torch.export"): "tests/export/test_decompositions.py does so",
    ("docs/onnx.md", "import torch\nimport jetson_mamba"): "tests/export/test_files.py does so",
    ("docs/onnx.md", "import sys"): "generate.py: `make docs-check` runs it",
    ("docs/onnx.md", "import tensorrt"): "there is no TensorRT for a CPU",
    ("docs/onnx.md", "import torch\nfrom mambavision"): "another project's package and weights",
    ("docs/onnx.md", "import numpy as np\nimport onnxruntime\nfrom PIL"): "the same",
}
