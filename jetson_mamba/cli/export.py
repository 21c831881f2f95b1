"""``jetson-mamba export``: a model as an ONNX file that agrees with it."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import typer

from jetson_mamba.cli import output as written
from jetson_mamba.cli import tables
from jetson_mamba.demo.models import mamba_ssm
from jetson_mamba.errors import CannotRun


def export(
    model: str = typer.Argument(
        ..., metavar="MODULE:CALLABLE|CHECKPOINT", help="What makes a model, or a folder of one."
    ),
    file: Path = typer.Argument(..., metavar="OUT.onnx", help="The file to write."),
    shape: Optional[List[str]] = typer.Option(
        None,
        metavar="[int64:]2,70,768",
        help="The shape of an argument; once for each. Default: that of a block or of a text.",
        show_default=False,
    ),
    dynamic: Optional[List[str]] = typer.Option(
        None,
        metavar="0=batch,1=seqlen",
        help="The axes of an argument whose size is left open; once for each, or for all.",
        show_default=False,
    ),
    target: str = typer.Option(
        "onnxruntime",
        "--for",
        help="onnxruntime or tensorrt.",
        autocompletion=lambda: ["onnxruntime", "tensorrt"],
    ),
    step: bool = typer.Option(False, "--step", help="Token by token, with states in and out."),
    plugins: Optional[str] = typer.Option(
        None,
        metavar="sm_87",
        help="For TensorRT 10.9 and later: Mamba's scan as a plugin with this project's kernel.",
        show_default=False,
    ),
) -> None:
    """Write a model to ONNX, run it at other sizes than it was made at, and compare.

    The forms of the recurrences are those that are fastest here, for TensorRT those without a loop.
    With --step a language model becomes two files, a prompt's and a step's, which share states.
    """
    console = written.console()
    with console.status("importing torch and mamba_ssm"):
        mamba_ssm()
        import torch

        from jetson_mamba import export as room
    found = _model(model)
    with console.status("exporting"):
        if step:
            files = room.step(found, file, target=target, plugins=plugins)
        else:
            shapes, opened = _given(found, shape, dynamic)
            torch.manual_seed(0)
            args = [_argument(found, each) for each in shapes]
            files = [room.onnx(found, args, file, dynamic=opened, target=target, plugins=plugins)]
    shown = tables.Records(
        "file", "nodes", "form", "largest error", "runtime", "eager", wraps=("form",)
    )
    for each in files:
        shown.add(
            each.path.name,
            str(each.nodes),
            ", ".join(f"{name} {form}" for name, form in each.forms.items()) or "none to choose",
            f"{each.error:.1e} of {each.tolerance:.0e}",
            f"{each.times.runtime * 1e3:.2f} ms",
            f"{each.times.eager * 1e3:.2f} ms",
        )
    shown.show(console)
    for each in files:
        if each.plugins:
            console.print(f"TensorRT's Python is to import {each.plugins.name} before it parses.")
    sizes = [
        " ".join(f"{name}={size}" for name, size in run.sizes.items()) for run in files[0].compared
    ]
    console.print(
        f"Compared at {'; '.join(dict.fromkeys(sizes))}." if any(sizes) else "Compared once more."
    )


def _model(name: str) -> Any:
    """The model; whatever goes wrong while it is made is one line."""
    from jetson_mamba.export.check import in_one_line

    module_name, colon, attribute = name.partition(":")
    try:
        found = _made(module_name, attribute) if colon else _checkpoint(Path(name))
    except CannotRun:
        raise
    except Exception as error:
        raise CannotRun(f"{name}: {in_one_line(error)}") from error
    return found.train(False)


def _made(module_name: str, attribute: str) -> Any:
    from torch import nn

    sys.path.insert(0, "")
    found: Any = import_module(module_name)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        found = found()
    if not isinstance(found, nn.Module):
        raise CannotRun(
            f"{module_name}:{attribute}: expected a torch.nn.Module, found {type(found).__name__}"
        )
    return found


def _checkpoint(folder: Path) -> Any:
    import json

    config = folder / "config.json"
    if not config.is_file():
        raise CannotRun(
            f"{folder}: expected MODULE:CALLABLE, or a folder with a config.json, found neither"
        )
    if "model_type" in json.loads(config.read_text("utf-8")):
        from transformers import AutoModelForCausalLM

        said: Any = import_module("transformers.utils.logging")
        said.disable_progress_bar()
        return AutoModelForCausalLM.from_pretrained(str(folder))
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    return MambaLMHeadModel.from_pretrained(str(folder))


Shape = Tuple[bool, List[int]]


def _given(
    model: Any, shapes: Optional[List[str]], dynamic: Optional[List[str]]
) -> Tuple[List[Shape], List[Dict[int, str]]]:
    """The shapes of the arguments, each with whether it holds integers, and what is left open."""
    try:
        found = [_shape(each) for each in shapes] if shapes else [_usual(model)]
        opened = [_axes(each) for each in dynamic or ([] if shapes else ["0=batch,1=seqlen"])]
    except ValueError:
        raise CannotRun(
            f"--shape, --dynamic: expected such as 2,70,768 or int64:2,70, and 0=batch,1=seqlen, "
            f"found {shapes} and {dynamic}"
        ) from None
    return found, opened * len(found) if len(opened) == 1 else opened


def _shape(text: str) -> Shape:
    kind, colon, sizes = text.rpartition(":")
    if colon and kind != "int64":
        raise ValueError(text)
    found = [int(size) for size in sizes.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return bool(colon), found


def _axes(text: str) -> Dict[int, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if any(not name for _, _, name in pairs):
        raise ValueError(text)
    return {int(axis): name for axis, _, name in pairs}


def _usual(model: Any) -> Shape:
    """A text of 70 tokens, or what a block takes."""
    if hasattr(model, "lm_head") or hasattr(model, "get_input_embeddings"):
        return True, [1, 70]
    width = getattr(model, "d_model", None)
    if not isinstance(width, int):
        raise CannotRun("--shape: expected the shape of each argument, found none")
    return False, [1, 70, width]


def _argument(model: Any, shape: Shape) -> Any:
    import torch

    holds_integers, sizes = shape
    if not holds_integers:
        dtype = next((each.dtype for each in model.parameters()), torch.float32)
        return torch.randn(sizes, dtype=dtype)
    embeddings = [each for each in model.modules() if isinstance(each, torch.nn.Embedding)]
    return torch.randint(embeddings[0].num_embeddings if embeddings else 2, tuple(sizes))
