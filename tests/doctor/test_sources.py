"""What the text of a mamba_ssm asks for is read from it, whatever release or fork it is of."""

from __future__ import annotations

from pathlib import Path

import pytest

from jetson_mamba.report import sources
from jetson_mamba.report.sources import Asks
from tools.releases import release_path

INTERFACE = "ops/selective_scan_interface.py"
COMBINED = "ops/triton/ssd_combined.py"
TEXTS = {
    "__init__.py": "from mamba_ssm.modules.mamba_simple import Mamba\nimport einops\n",
    "modules/__init__.py": "",
    "modules/mamba_simple.py": (
        "import torch\nfrom ..ops import there\nfrom .gone import x\nfrom . import mamba2\n"
        "if True:\n    import guarded\n"
        "class Mamba:\n    def __init__(self, d_model, own, *, other=1): pass\n"
    ),
    INTERFACE: (
        "import selective_scan_cuda\n"
        "try:\n    from causal_conv1d import causal_conv1d_fn\nexcept ImportError:\n    pass\n"
        "causal_conv1d_cuda.causal_conv1d_fwd(1, 2, 3)\n"
        "causal_conv1d_fwd(1, 2, 3, 4, last=5)\n"
        "causal_conv1d_cuda.causal_conv1d_bwd(1)\n"
        "other(1, 2)\n# MAMBA_KEEP_CUDA_BUILD\n"
    ),
    COMBINED: "causal_conv1d_fwd(rearrange(x, 'b l d -> b d l'), 2, 3)\n",
    "ops/there.py": "",
    "modules/mamba2.py": "",
    "ops/triton/ssd_chunk_state.py": "x = tl.math.log1p(1)\n",
    "utils/generation.py": "from transformers.generation import GenerateDecoderOnlyOutput, Other\n",
}


def asks(folder: Path, **others: str) -> Asks:
    """What TEXTS ask for, with others of these by their places in it."""
    for name, text in {**TEXTS, **others}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return sources.asks(str(folder))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return tmp_path / "mamba_ssm"


def test_calls_of_the_convolution_are_counted_by_function_and_arguments(package: Path) -> None:
    calls = asks(package).calls
    assert calls == {"causal_conv1d_fwd": (3, 5), "causal_conv1d_bwd": (1,)}


def test_what_an_import_fails_without_is_apart_from_what_it_does_without(package: Path) -> None:
    found = asks(package)
    assert set(found.required) == {"einops", "torch"}
    assert found.missing == ("mamba_ssm.modules.gone",)
    assert {"selective_scan_cuda", "causal_conv1d"} <= found.mentioned
    assert found.generation_names == ("GenerateDecoderOnlyOutput", "Other")


def test_a_block_of_a_fork_has_parameters_of_its_own(package: Path) -> None:
    assert asks(package).own_parameters == ("own", "other")


@pytest.mark.parametrize(
    ("call", "bare"),
    [
        ("causal_conv1d_fwd(rearrange(x, 'a'), 2)", True),
        ("causal_conv1d_fwd_function(rearrange(x, 'a'), 2)", True),
        ("causal_conv1d_fwd(rearrange_and_update_stride(x, 'a'), 2)", False),
        ("causal_conv1d_fwd(rearrange(f(x), 'a'), 2)", False),
        ("causal_conv1d_fwd(x, 2)", False),
        ("causal_conv1d_bwd(rearrange(x, 'a'), 2)", False),
        ("causal_conv1d_fwd()", False),
    ],
)
def test_strides_are_bare_where_they_are_handed_on_as_they_are(
    call: str, bare: bool, package: Path
) -> None:
    assert asks(package, **{COMBINED: call, INTERFACE: ""}).bare_strides is bare


@pytest.mark.parametrize("is_there", [True, False])
def test_words_of_a_text_tell_what_it_needs(is_there: bool, package: Path) -> None:
    others = {} if is_there else {INTERFACE: "", "ops/triton/ssd_chunk_state.py": ""}
    found = asks(package, **others)
    assert (found.triton_2_only, found.scan_on_request) == (is_there, is_there)


def test_texts_that_are_not_there_ask_for_nothing(tmp_path: Path) -> None:
    found = sources.asks(str(tmp_path / "mamba_ssm"))
    assert found.calls == {} and found.required == {} and found.mentioned == frozenset()
    assert not (found.bare_strides or found.triton_2_only or found.scan_on_request)


def test_the_releases_ask_for_what_is_known_of_them() -> None:
    first, last = (
        sources.asks(str(Path(release_path(version)) / "mamba_ssm"))
        for version in ("1.0.1", "2.3.2.post1")
    )
    assert first.own_parameters == last.own_parameters == ()
    assert (first.missing, last.missing) == ((), ())
    assert {"torch", "einops"} <= set(last.required)
    assert set(first.calls) == {"causal_conv1d_fwd", "causal_conv1d_bwd"}


@pytest.mark.parametrize(
    ("text", "required", "missing"),
    [
        ("from mamba_ssm.ops import there, gone\n", set(), ()),
        ("from mamba_ssm.ops import (there, inner)\n", {"deep"}, ()),
        ("from mamba_ssm.ops import inner as other, there\n", {"deep"}, ()),
        ("from mamba_ssm.ops import inner  # for a, b\n", {"deep"}, ()),
        ("from mamba_ssm.ops.inner import x\n", {"deep"}, ()),
        ("from .ops import inner\n", {"deep"}, ()),
        ("from .ops.inner import x\nfrom . import ops\n", {"deep"}, ()),
        ("import mamba_ssm.ops.inner\n", {"deep"}, ()),
        ("import mamba_ssm.gone.more\n", set(), ("mamba_ssm.gone", "mamba_ssm.gone.more")),
        ("import a.b\nfrom c.d import e\n", {"a.b", "c.d"}, ()),
        (
            "try:\n    import a\nexcept ImportError:\n    pass\nif 1:\n  from b import c\n",
            set(),
            (),
        ),
    ],
)
def test_what_is_imported_is_followed_through_the_package(
    text: str, required: set[str], missing: tuple[str, ...], tmp_path: Path
) -> None:
    package = tmp_path / "mamba_ssm"
    for name, content in (
        ("__init__.py", text),
        ("ops/__init__.py", ""),
        ("ops/there.py", ""),
        ("ops/inner.py", "import deep\nfrom . import there\nfrom .. import ops\n"),
    ):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    found = sources.asks(str(package))
    files = {"deep": package / "ops" / "inner.py"}
    path_of = {each: str(files.get(each, package / "__init__.py")) for each in required}
    assert (found.required, set(found.missing)) == (path_of, set(missing))
