"""The copies of all published releases differ from their sources in the declared places only.

The rewriter proves this itself before it hands over a copy; here it is shown once more, with
code that shares nothing with it.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Iterator, NamedTuple

import pytest

from jetson_mamba.finder import TARGETS
from jetson_mamba.hook import copies
from jetson_mamba.rewrite import Rewritten
from tests.releases import examined
from tools.releases import MAMBA_SSM, release_path

EXTENSIONS = ("causal_conv1d", "causal_conv1d_cuda", "selective_scan_cuda")
INTERFACE, COMBINED, GENERATION, *NORMS, ACTIVATIONS, UPDATE = TARGETS[:8]
TRITON = "mamba_ssm.ops.triton"
# Functions that launch a kernel themselves, and the op that serves where that cannot run.
PAST_TRITON = {
    INTERFACE: {"rms_norm_forward": "rms_norm_forward"},
    UPDATE: {"selective_state_update": "selective_state_update"},
    ACTIVATIONS: {"_swiglu_fwd": "swiglu_forward", "_swiglu_bwd": "swiglu_backward"},
    COMBINED: {"_mamba_chunk_scan_combined_bwd": "chunk_scan_combined_backward"},
    f"{TRITON}.layer_norm": {"_layer_norm_fwd": "norm_forward"},
    f"{TRITON}.layernorm": {"_layer_norm_fwd": "norm_forward_of_1"},
    f"{TRITON}.layernorm_gated": {
        "_layer_norm_fwd": "gated_norm_forward",
        "_layer_norm_bwd": "gated_norm_backward",
    },
    f"{TRITON}.ssd_bmm": {"_bmm_chunk_fwd": "bmm_chunk_forward"},
    f"{TRITON}.ssd_chunk_state": {
        "_chunk_cumsum_fwd": "chunk_cumsum_forward",
        "_chunk_state_fwd": "chunk_state_forward",
        "chunk_state_varlen": "chunk_state_varlen",
        "chunk_state": "chunk_state",
    },
    f"{TRITON}.ssd_state_passing": {
        "_state_passing_fwd": "state_passing_forward",
        "state_passing": "state_passing",
    },
    f"{TRITON}.ssd_chunk_scan": {
        "_chunk_scan_fwd": "chunk_scan_forward",
        "chunk_scan": "chunk_scan",
    },
}
# Functions of kernels for few GPUs, and what else than Triton those are written in.
ON_A_GPU = {
    f"{TRITON}.mamba3.mamba3_siso_combined.mamba3_siso_combined": "",
    f"{TRITON}.mamba3.mamba3_siso_step.mamba3_siso_step": "",
    f"{TRITON}.mamba3.mamba3_mimo_rotary_step.apply_rotary_qk_inference_fwd": "",
    "mamba_ssm.ops.tilelang.mamba3.mamba3_mimo.mamba3_mimo": ", 'tilelang'",
    "mamba_ssm.ops.cute.mamba3.mamba3_step_fn.mamba3_step_fn": ", 'cute'",
}
MHA = "mamba_ssm.modules.mha"
HF = "mamba_ssm.utils.hf"
MODEL = "mamba_ssm.models.mixer_seq_simple"
BLOCKS = {"mamba_simple": "Mamba", "mamba2": "Mamba2", "mamba2_simple": "Mamba2Simple"}


class Difference(NamedTuple):
    """Where the trees part: the function or class around it, and the two nodes."""

    inside: str
    source: ast.AST
    copy: ast.AST


def source_of(version: str, target: str) -> Path | None:
    path = release_path(version) / (target.replace(".", "/") + ".py")
    return path if path.exists() else None


def differences(source: ast.AST, copy: ast.AST, inside: str = "") -> list[Difference]:
    """The topmost nodes in which two trees differ."""
    if isinstance(source, (ast.FunctionDef, ast.ClassDef)):
        inside = f"{inside}.{source.name}".lstrip(".")
    if type(source) is not type(copy) or isinstance(source, (ast.Import, ast.ImportFrom)):
        return [] if ast.dump(source) == ast.dump(copy) else [Difference(inside, source, copy)]
    children, counterparts = list(ast.iter_child_nodes(source)), list(ast.iter_child_nodes(copy))
    if isinstance(source, ast.Module) and len(counterparts) > len(children):
        # Statements after the last one.
        appended = [Difference(inside, source, after) for after in counterparts[len(children) :]]
        return appended + [
            difference
            for child, counterpart in zip(children, counterparts)
            for difference in differences(child, counterpart, inside)
        ]
    values = [value for _, value in ast.iter_fields(source) if isinstance(value, (str, int))]
    others = [value for _, value in ast.iter_fields(copy) if isinstance(value, (str, int))]
    if len(children) != len(counterparts) or values != others:
        return [Difference(inside, source, copy)]
    if isinstance(source, ast.Call) and ast.dump(source.func) != ast.dump(copy.func):  # type: ignore[attr-defined]
        return [Difference(inside, source, copy)]
    return [
        difference
        for child, counterpart in zip(children, counterparts)
        for difference in differences(child, counterpart, inside)
    ]


def describe(target: str, difference: Difference) -> str:
    """The kind of an edit, in words; fails for a difference that is none of the kinds."""
    source, copy = difference.source, difference.copy
    if isinstance(source, (ast.Import, ast.ImportFrom)):
        text = ast.unparse(source)
        if text.startswith("from transformers.generation import"):
            assert ast.unparse(copy) == text.replace(
                "transformers.generation", "jetson_mamba.compat.transformers_generation"
            )
            return "import of names at their use"
        if text.startswith("from transformers.utils"):
            names = text.partition(" import ")[2]
            assert (
                ast.unparse(copy) == f"from jetson_mamba.compat.transformers_utils import {names}"
            )
            return "import of names at their use"
        if text == "import torch":
            assert ast.unparse(copy) in (
                "import torch, jetson_mamba.ops",
                "import torch, jetson_mamba.compat.cuda_events",
            )
            return "import beside torch"
        assert any(f" {name}" in text for name in EXTENSIONS), text
        assert ast.unparse(copy) == "import jetson_mamba.ops"
        return "import"
    if isinstance(source, ast.Module):
        text = ast.unparse(copy)
        for block in BLOCKS.values():
            for method in ("forward", "step"):
                name = f"{block}.{method}"
                own = f"jetson_mamba.ops.in_few_kernels({name})" if method == "step" else name
                graph = f"jetson_mamba.ops.{method}_by_graph({own})"
                calling = f"jetson_mamba.ops.calling_modules({name}, {graph}"
                if method == "step":
                    calling = f"jetson_mamba.ops.several_tokens({calling}"
                    calling = f"jetson_mamba.ops.by_launches({calling}"
                if text.startswith(f"{name} = {calling}"):
                    return f"{name} by a graph"
        if target == GENERATION:
            if text == "import jetson_mamba.ops":
                return "import"
            assert text == "decode = jetson_mamba.ops.decoding_by_graph(decode)"
            return "decode by a graph"
        if target == MHA:
            name = text.split()[1]
            own = f"jetson_mamba.ops.{name}"
            assert text == f"if {name} is None:\n    {name} = {own}"
            return f"{name} where there is none"
        name, _, _ = text.partition(" = ")
        if f"{target}.{name}" in ON_A_GPU:
            both = f"{name}, jetson_mamba.ops.{name}{ON_A_GPU[f'{target}.{name}']}"
            assert text == f"{name} = jetson_mamba.ops.on_a_gpu({both})"
            return f"{name} on a GPU"
        op = PAST_TRITON[target][name]
        assert text == f"{name} = jetson_mamba.ops.where_triton_runs({name}, jetson_mamba.ops.{op})"
        return f"{name} past Triton"
    if isinstance(source, ast.Name):
        assert source.id.startswith("causal_conv1d")
        assert ast.unparse(copy) == "jetson_mamba.ops"
        return "assertion"
    if "autocast" in ast.unparse(source):
        dtype = "jetson_mamba.ops.autocast_dtype(xz.device)"
        assert (ast.unparse(source), ast.unparse(copy)) in (
            ("torch.is_autocast_enabled()", f"{dtype} is not None"),
            ("torch.get_autocast_gpu_dtype()", dtype),
        )
        return "autocast"
    if isinstance(copy, ast.IfExp):
        assert isinstance(source, ast.Call) and isinstance(copy.body, ast.Call)
        twice = ast.unparse(copy.body.func)
        function, dot, apply = ast.unparse(source.func).partition(".")
        assert twice.startswith(f"jetson_mamba.ops.twice_differentiable({function}, jetson_mamba.")
        assert twice.endswith(f"){dot}{apply}") and apply == "apply"
        assert list(map(ast.dump, copy.body.args)) == list(map(ast.dump, source.args))
        assert not source.keywords and not copy.body.keywords
        assert isinstance(copy.orelse, ast.Call)
        assert ast.unparse(copy.orelse.func) == f"jetson_mamba.ops.{difference.inside}"
        named = ", ".join(ast.unparse(each) for each in copy.orelse.keywords)
        first = ast.unparse(source.args[0])
        fused = "jetson_mamba.ops.may_be_fused(norm=rmsnorm_weight, out_proj=outproj_weight)"
        return {
            f"autograd({first})": "past the autograd function",
            f"inner_autograd({named})": "past the autograd function",
            f"scan_autograd({named})": "past Triton's autograd function",
            f"mixer_autograd({named}) and {fused}": "past Triton's autograd function",
            f"norm_autograd({named})": "past Triton's autograd function",
        }[ast.unparse(copy.test).partition("jetson_mamba.ops.through_")[2]]
    if target.endswith("modules.mha") and isinstance(copy, (ast.Subscript, ast.Constant)):
        pair = "inference_params.key_value_memory_dict"
        assert (ast.unparse(source), ast.unparse(copy)) in (
            (pair, f"{pair}[self.layer_idx]"),
            ("self.layer_idx", "0"),
        )
        return "the first of a pair"
    if isinstance(copy, ast.Subscript):
        assert ast.unparse(copy.slice) == ":3"
        copy = copy.value
    assert isinstance(source, ast.Call) and isinstance(copy, ast.Call), ast.dump(source)
    before, after = ast.unparse(source.func), ast.unparse(copy.func)
    assert (
        after
        == {
            "causal_conv1d_fn": "jetson_mamba.ops.causal_conv1d_fn",
            "causal_conv1d_fwd_function": "jetson_mamba.ops.causal_conv1d_fn",
            "causal_conv1d_bwd_function": "jetson_mamba.ops.causal_conv1d_bwd",
            "causal_conv1d_cuda.causal_conv1d_fwd": "jetson_mamba.ops.causal_conv1d_fn",
            "causal_conv1d_cuda.causal_conv1d_bwd": "jetson_mamba.ops.causal_conv1d_bwd",
            "torch.addmm": "jetson_mamba.ops.addmm",
            "self.lm_head": "jetson_mamba.ops.vocabulary",
            "torch.cuda.Event": "jetson_mamba.compat.cuda_events.event",
            "torch.cuda.synchronize": "jetson_mamba.compat.cuda_events.synchronize",
            "selective_scan_cuda.fwd": "jetson_mamba.ops.selective_scan_fwd",
            "selective_scan_cuda.bwd": "jetson_mamba.ops.selective_scan_bwd",
        }[before]
    )
    given = [
        ast.unparse(argument) for argument in (*source.args, *(k.value for k in source.keywords))
    ]
    taken = [ast.unparse(argument) for argument in copy.args]
    for keyword in copy.keywords:
        value = ast.unparse(keyword.value)
        if keyword.arg == "activation" and value.startswith("'silu'"):
            value = value[len("'silu' if ") : -len(" else None")] or "True"
        taken.append(value)
    if before == "self.lm_head":  # is handed over itself
        given.insert(0, before)
    if before == "causal_conv1d_fn":
        given = [each.replace("'silu'", "True") for each in given]
    assert given == taken
    return f"call of {before}"


def pairs() -> list[tuple[str, str]]:
    """A release for each text of each target: the first that has it."""
    first: dict[tuple[str, bytes], str] = {}
    for version in MAMBA_SSM:
        for target in TARGETS:
            path = source_of(version, target)
            if path is not None:
                first.setdefault((target, path.read_bytes()), version)
    return [(version, target) for (target, _), version in first.items()]


def rewritten_text(target: str, path: Path) -> Rewritten:
    return copies.examine(target, path.read_bytes(), str(path))[1]


@pytest.fixture(scope="module", autouse=True)
def examined_once() -> Iterator[None]:
    """What the override makes of a text is asked for by the copy, and for what it says it did."""
    with examined.once():
        yield


@pytest.mark.parametrize(("version", "target"), pairs())
def test_a_copy_differs_in_the_declared_places_only(version: str, target: str) -> None:
    path = source_of(version, target)
    assert path is not None
    source = path.read_bytes()
    copy = copies.make(target, source, str(path))
    assert copy is not None
    found = differences(ast.parse(source), ast.parse(copy))
    kinds = [(each.inside, describe(target, each)) for each in found]
    convolution = {
        inside for inside, kind in kinds if "causal_conv1d_" in kind and "_fn" not in kind
    }
    if target in NORMS:
        gated = target.endswith("_gated")
        names: tuple[str, ...] = ("layer_norm_fn", "layer_norm_linear_fn", "rms_norm_fn")
        if gated:
            names = ("layernorm_fn", "rmsnorm_fn")
        elif "def layer_norm_linear_fn" not in source.decode():
            names = ("layer_norm_fn", "rms_norm_fn")
        assert sorted(kinds) == [
            *(("", f"{name} past Triton") for name in sorted(PAST_TRITON[target])),
            ("", "import beside torch"),
            *((name, "past Triton's autograd function") for name in names),
        ]
    elif target in PAST_TRITON and target not in (INTERFACE, COMBINED):
        names = tuple(each for each in PAST_TRITON[target] if f"def {each}(" in source.decode())
        assert sorted(kinds) == sorted(
            [("", "import beside torch"), *(("", f"{name} past Triton") for name in names)]
        )
    elif any(each.startswith(f"{target}.") for each in ON_A_GPU):
        (name,) = (each for each in ON_A_GPU if each.startswith(f"{target}."))
        assert sorted(kinds) == sorted(
            [("", "import beside torch"), ("", f"{name.rpartition('.')[2]} on a GPU")]
        )
    elif target == MHA:
        assert sorted(kinds) == [
            ("", "RotaryEmbedding where there is none"),
            ("", "flash_attn_with_kvcache where there is none"),
            ("", "import beside torch"),
            *[("MHA._update_kvcache_attention", "the first of a pair")]
            * (2 if b"[self.layer_idx][:batch]" in source else 0),
        ]
    elif target.startswith("mamba_ssm.modules."):
        block = BLOCKS[target.rpartition(".")[2]]
        methods = ("forward",) if block == "Mamba2Simple" else ("forward", "step")
        assert sorted(kinds) == [
            *(("", f"{block}.{method} by a graph") for method in methods),
            ("", "import beside torch"),
        ]
    elif target == GENERATION:
        assert sorted(kinds) == [
            ("", "decode by a graph"),
            ("", "import"),
            ("", "import beside torch"),
            ("", "import of names at their use"),
            ("decode", "call of torch.cuda.Event"),
            ("decode", "call of torch.cuda.Event"),
            ("decode", "call of torch.cuda.synchronize"),
        ]
    elif target == MODEL:
        assert sorted(kinds) == [
            ("", "import beside torch"),
            ("MambaLMHeadModel.forward", "call of self.lm_head"),
        ]
    elif target == HF:
        assert kinds == [("", "import of names at their use")] * 2
    elif target == INTERFACE:
        assert convolution == {"MambaInnerFn.forward", "MambaInnerFn.backward"}
        assert {inside for inside, kind in kinds if kind == "autocast"} == {"MambaInnerFn.forward"}
        assert {inside for inside, kind in kinds if kind == "past the autograd function"} == {
            "mamba_inner_fn",
            "selective_scan_fn",
        }
    else:
        name = "MambaSplitConv1dScanCombinedFn"
        assert convolution == {f"{name}.forward", f"{name}.backward"}
        assert {inside for inside, kind in kinds if "past Triton" in kind} == {
            "",
            "mamba_chunk_scan_combined",
            "mamba_split_conv1d_scan_combined",
        }
    # As many as the rewriter says it made, no line moved, and nothing of an extension is left.
    appended = len([each for each in found if isinstance(each.source, ast.Module)])
    rewritten = rewritten_text(target, path)
    # The pair's first is another index and what it is an index of: two differences.
    pairs = sum(kind == "the first of a pair" for _, kind in kinds)
    assert len(rewritten.applied) == len(found) - pairs // 2
    assert rewritten.left_out == ()
    assert len(rewritten.text.splitlines()) == len(source.splitlines()) + appended
    if target.startswith("mamba_ssm.modules."):
        return  # they call causal-conv1d's wrapper themselves
    loaded = {
        node.id
        for node in ast.walk(ast.parse(copy))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert not [
        name for name in loaded if name.startswith(("causal_conv1d", "selective_scan_cuda"))
    ]


def test_the_edits_of_each_release(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints how many edits each release gets, by target."""
    rows = []
    for version in MAMBA_SSM:
        counts = []
        for target in TARGETS:
            path = source_of(version, target)
            counts.append(len(rewritten_text(target, path).applied) if path else None)
        rows.append((version, counts))
    with capsys.disabled():
        print("\nedits by release" + "".join(f"  {t.rpartition('.')[2]}" for t in TARGETS))
        for version, counts in rows:
            print(
                f"{version:>16}"
                + "".join(
                    f"{'-' if count is None else count:>{len(target.rpartition('.')[2]) + 2}}"
                    for count, target in zip(counts, TARGETS)
                )
            )
    assert len(rows) == 26
    for version, in_order in rows:
        by_target = dict(zip(TARGETS, in_order))
        later = version >= "2"
        assert by_target[INTERFACE] in (19, 22, 23)
        assert by_target[COMBINED] == (10 if later else None)
        # Every release has the norms of its models, and from 2.0 on those of the mixer.
        assert [by_target[each] for each in NORMS] == ([5, None, 5] if later else [None, 5, None])
        assert by_target[ACTIVATIONS] == (3 if version >= "2.0.3" else None)
        assert by_target[UPDATE] == 2
        blocks = [by_target[f"mamba_ssm.modules.{name}"] for name in BLOCKS]
        assert blocks == ([3, 3, 2] if later else [3, None, None])
