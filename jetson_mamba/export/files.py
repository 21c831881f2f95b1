"""Writes a model to a file: captures it, writes a target's forms, compares, moves it into place."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor, nn

import jetson_mamba
from jetson_mamba import advice
from jetson_mamba.errors import CannotRun

from . import states
from .check import Check, Compared, Open, Times, session

# protobuf takes no file of 2 GB; weights beyond this stand beside it.
INLINE_BYTES = 1 << 30

Dynamic = Sequence[Mapping[int, Any]]


class Exported(NamedTuple):
    """A file that agrees with its model, and what was found out about it."""

    path: Path
    nodes: int
    forms: Mapping[str, str]  # of each recurrence
    tolerance: float
    compared: list[Compared]
    times: Times
    # What TensorRT's Python is to import, where recurrences are plugins.
    plugins: Path | None = None

    @property
    def error(self) -> float:
        """The largest error of any run, over the largest result."""
        return max(each.error for each in self.compared)


def onnx(
    model: nn.Module,
    args: Sequence[Tensor],
    path: str | os.PathLike[str],
    *,
    dynamic: Dynamic = (),
    target: str = "onnxruntime",
    forms: Mapping[str, str] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    tolerance: float | None = None,
    plugins: str | None = None,
) -> Exported:
    """Write ``model(*args)`` to an ONNX file that agrees with it, also at other sizes.

    ``dynamic`` has for each argument the axes whose size is left open, by name:
    ``[{0: "batch", 1: "seqlen"}]``; what has one name has one size, and a name may be a
    ``torch.export.Dim``, which has bounds. ``target`` is ``onnxruntime`` or ``tensorrt``.
    ``forms`` names the form of a recurrence (``{"selective_scan": "scan"}`` or ``"blocks"``,
    ``{"ssd_scan": "chunks"}`` or ``"attention"``); without, of those that the target takes the one
    that is fastest here at the sizes of ``args``. ``tolerance`` is what a result may differ by over
    the largest of its tensor, by default 1e-5 for float32. ``plugins``, an architecture such as
    ``sm_87``, leaves each selective scan to a plugin of TensorRT (10.9 or later), whose kernel
    stands in a Python file beside; what is compared is the same file with a form in their place.

    Raises CannotRun for what cannot be exported, or where the file does not agree; then none is
    left behind.
    """
    _check_possible(model, target, plugins)
    model = states.plain(model)
    shapes, sizes = _open_sizes(args, dynamic)
    names = {"input_names": input_names, "output_names": output_names}
    check = Check(model, args, sizes, tolerance)
    return _exported(model, shapes, names, check, Path(path), target, forms or {}, plugins)


def step(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    target: str = "onnxruntime",
    tolerance: float | None = None,
    plugins: str | None = None,
) -> list[Exported]:
    """Write a model that is told its states, and gives them back, for any batch.

    A block, ``Mamba`` or ``Mamba2``, becomes one file: a step of one token. A language model
    becomes two, ``NAME.prompt.onnx`` of any length from nothing and ``NAME.step.onnx`` of one token
    more, which share their states: each result ``conv_state_0_after`` is the argument
    ``conv_state_0`` of the next step. ``plugins`` are those of the prompt.

    Raises CannotRun as :func:`onnx` does.
    """
    _check_possible(model, target, plugins)
    path = Path(path)
    if not states.is_language_model(model):
        if plugins:
            raise CannotRun("plugins: expected a scan, found a step of a block, which has none")
        found = {path: (states.block_step(model), [0])}
    else:
        stem = path.with_suffix("")
        found = {
            stem.with_name(stem.name + ".prompt.onnx"): (states.prompt(model, 70), [0, 1]),
            stem.with_name(stem.name + ".step.onnx"): (states.token_step(model), [0]),
        }
    exported = []
    for file, (made, axes) in found.items():
        open_axes = {axis: ("batch", "seqlen")[axis] for axis in axes}
        _, sizes = _open_sizes(made.args, [open_axes] * len(made.args))
        dims = {axis: torch.export.Dim(name) for axis, name in open_axes.items()}
        first, *others = [dims] * len(made.args)
        shapes: Any = (first, tuple(others)) if made.is_variadic else (first, *others)
        check = Check(made.module, made.args, sizes, tolerance)
        names = {"input_names": made.inputs, "output_names": made.outputs}
        of_prompt = None if made.is_variadic else plugins
        exported.append(_exported(made.module, shapes, names, check, file, target, {}, of_prompt))
    return exported


def _check_possible(model: nn.Module, target: str, plugins: str | None) -> None:
    from jetson_mamba.dispatch.operators import has_operators

    if target not in ("onnxruntime", "tensorrt"):
        raise CannotRun(f"target: expected onnxruntime or tensorrt, found {target!r}")
    if plugins and target != "tensorrt":
        raise CannotRun(f"plugins: expected the target tensorrt, found {target}; leave plugins out")
    if plugins:
        from .plugins import check_architecture

        check_architecture(plugins)
    if not has_operators or not hasattr(getattr(torch.onnx, "ops", None), "symbolic_multi_out"):
        raise CannotRun(f"torch: expected 2.8 or later, found {torch.__version__}")
    try:
        import onnx_ir  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise CannotRun(f"{error.name} is not installed; {advice.extra('export')}") from error
    if model.training:
        raise CannotRun("model: expected one in evaluation, found one in training; model.eval()")
    devices = {each.device.type for each in (*model.parameters(), *model.buffers())} - {"cpu"}
    if devices:
        raise CannotRun(f"model: expected it on the CPU, found {devices.pop()}; model.cpu()")
    named = jetson_mamba.status().selections
    if named:
        raise CannotRun(
            f"{named[0].op}: expected no backend that is named, since a runtime computes by "
            f"itself, found {named[0].backend}, named by {named[0].asked_by}; leave that out"
        )


def _open_sizes(args: Sequence[Tensor], dynamic: Dynamic) -> tuple[Any, dict[str, Open]]:
    """What :func:`torch.export.export` is told of sizes, and what is compared at others."""
    if not dynamic:
        return None, {}
    if len(dynamic) != len(args):
        raise CannotRun(
            f"dynamic: expected one for each of the {len(args)} arguments, found {len(dynamic)}"
        )
    dims: dict[str, Any] = {}
    sizes: dict[str, Open] = {}
    shapes = []
    for argument, axes in enumerate(dynamic):
        of_argument = {}
        for axis, given in axes.items():
            name = given if isinstance(given, str) else given.__name__
            dim = dims.setdefault(name, torch.export.Dim(name) if given is name else given)
            if not -args[argument].dim() <= axis < args[argument].dim():
                raise CannotRun(
                    f"dynamic: expected axes of {tuple(args[argument].shape)}, found {axis}"
                )
            size = args[argument].shape[axis]
            least, most = getattr(dim, "min", 0), getattr(dim, "max", None) or 1 << 31
            found = sizes.setdefault(name, Open([], size, least, most))
            found.places.append((argument, axis))
            of_argument[axis % args[argument].dim()] = dim
        shapes.append(of_argument)
    return tuple(shapes), sizes


def _exported(
    module: nn.Module,
    shapes: Any,
    names: Mapping[str, Any],
    check: Check,
    path: Path,
    target: str,
    named: Mapping[str, str],
    plugins: str | None,
) -> Exported:
    from .capture import captured

    if not path.parent.is_dir():
        raise CannotRun(f"{path}: expected a folder {path.parent}, found none")
    # Of a size of 1 torch makes a graph that has no other.
    model = captured(module, check.resized_to_two(), shapes, **names)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        best: tuple[Times, Exported] | None = None
        refused: CannotRun | None = None
        for count, forms in enumerate(_choices(model, target, named)):
            file = Path(folder) / str(count) / path.name
            file.parent.mkdir()
            try:
                found = _tried(model, forms, check, file, target)
            except CannotRun as error:
                refused = refused or error
                continue
            if best is None or found.times.runtime < best[0].runtime:
                best = (found.times, found)
        if best is None:
            assert refused is not None
            raise refused
        file, compared = best[1].path, [*best[1].compared]
        for each in check.at_other_sizes(session(file)):
            compared.append(each)
            _expect_agreement(each, check.tolerance)
        exported = best[1]._replace(path=path, compared=compared)
        if plugins:
            exported = _with_plugins(model, exported, file, plugins)
        for made in sorted(file.parent.iterdir()):
            os.replace(made, path.with_name(made.name))
    return exported


def _with_plugins(model: Any, exported: Exported, file: Path, architecture: str) -> Exported:
    """The same with plugins in place of forms, over the file that was compared."""
    from .forms import PLUGINS, recurrences
    from .plugins import path_beside, plugins_of, text

    served = {name: "plugin" for name in recurrences(model) if name in PLUGINS}
    if not served:
        raise CannotRun(
            "plugins: expected a selective scan, found none; Mamba-2's scan is products of "
            "matrices, which TensorRT has kernels for; leave plugins out"
        )
    forms = {**exported.forms, **served}
    written = _written(model, forms, "tensorrt")
    found = plugins_of(written)
    beside = path_beside(file)
    beside.write_text(text(found, exported.path.name, architecture), "utf-8")
    _save(written, file)
    return exported._replace(
        nodes=len(list(written.graph)),
        forms=forms,
        plugins=exported.path.with_name(beside.name),
    )


def _tried(model: Any, forms: Mapping[str, str], check: Check, file: Path, target: str) -> Exported:
    """A file with these forms that agrees at the sizes of the export."""
    found = _written(model, forms, target)
    _save(found, file)
    error, times = check.at_traced_sizes(session(file))
    compared = Compared({name: each.traced for name, each in check.sizes.items()}, error)
    _expect_agreement(compared, check.tolerance)
    return Exported(file, len(list(found.graph)), forms, check.tolerance, [compared], times)


def _written(model: Any, forms: Mapping[str, str], target: str) -> Any:
    """A copy of a model with these forms, optimized, of operators that the target takes."""
    from onnxscript import optimizer

    from .forms import written
    from .tensorrt import FIRST, not_taken

    found = written(model, forms)
    optimizer.optimize(found)
    missing = not_taken(found) if target == "tensorrt" else []
    if missing:
        raise CannotRun(
            f"model: expected operators that TensorRT takes from {FIRST} on, found "
            f"{', '.join(missing)}"
        )
    return found


def _save(found: Any, file: Path) -> None:
    import onnx_ir

    tensors = [value.const_value for value in found.graph.initializers.values()]
    weights = sum(each.nbytes for each in tensors if each is not None)
    beside = file.name + ".data" if weights > INLINE_BYTES else None
    onnx_ir.save(found, file, external_data=beside)


def _expect_agreement(found: Compared, tolerance: float) -> None:
    if found.error > tolerance:
        where = ", ".join(f"{name}={size}" for name, size in found.sizes.items())
        raise CannotRun(
            f"the file computes something else{f' at {where}' if where else ''}: expected an error "
            f"of {tolerance:.0e} at most, found {found.error:.1e}; none is left behind"
        )


def _choices(model: Any, target: str, named: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The forms to try: the first of each recurrence, then each other of one of them."""
    from .forms import FORMS, TARGETS, recurrences

    for name, form in named.items():
        if form not in FORMS.get(name, ()):
            known = ", ".join(f"{each}={known}" for each, of in FORMS.items() for known in of)
            raise CannotRun(f"forms: expected some of {known}, found {name}={form}")
    found = {
        name: (named[name],) if name in named else TARGETS[target][name]
        for name in recurrences(model)
    }
    first = {name: of[0] for name, of in found.items()}
    yield first
    for name, of in found.items():
        for other in of[1:]:
            yield {**first, name: other}
