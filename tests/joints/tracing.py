"""Joints of traces, exports or graphs, right at the sizes that they are for.

They are saved and loaded too.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor, nn

from tests.joints.declared import BLOCKS, TRANSFORMERS, joint
from tests.joints.measures import Results, loss, out_of, same
from tests.joints.subjects import Subject


def _traced(s: Subject, module: nn.Module) -> Any:
    with warnings.catch_warnings():
        # jit.trace is deprecated, and warns of what it takes for constants.
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, s.x, check_trace=False)


def _saved(traced: Any) -> Any:
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def _longer(s: Subject) -> Tensor:
    return torch.cat([s.x, s.x.flip(1), s.x[:, :5]], 1)[:1]


@joint("jit.trace, no_grad")
def trace_no_grad(s: Subject) -> Results:
    module = s.module().eval()
    with torch.no_grad():
        traced = _saved(_traced(s, module))
        same("the trace with other numbers", traced(s.x.flip(1)), module(s.x.flip(1)))
        return {"out": traced(s.x)}


@joint("jit.trace in training")
def trace_training(s: Subject) -> Results:
    module = s.module().eval()
    traced = _traced(s, module)
    x = s.x.clone().requires_grad_()
    out = traced(x)
    loss(out).backward()
    return {"out": out.detach(), "gradient of x": x.grad}


@joint("jit.trace at another size", may_refuse=True)
def trace_other_size(s: Subject) -> Results:
    module = s.module().eval()
    with torch.no_grad():
        traced = _traced(s, module)
        out = traced(_longer(s))
        same("the trace at another size", out, module(_longer(s)))
    return {"longer": out}


@joint("jit.trace checked by torch")
def trace_checked(s: Subject) -> Results:
    module = s.module().eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, s.x)
    return {"out": traced(s.x).detach()}


@joint("jit.trace, then frozen and optimised", slow=True)
def trace_frozen(s: Subject) -> Results:
    module = s.module().eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = torch.jit.optimize_for_inference(torch.jit.freeze(_traced(s, module)))
        for _ in range(3):
            out = frozen(s.x)
    return {"out": out}


@joint("jit.script", on=(TRANSFORMERS,))
def script(s: Subject) -> Results:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(s.module().eval())
    return {"out": scripted(s.x).detach()}


@joint("fx.symbolic_trace", on=(TRANSFORMERS,))
def symbolic_trace(s: Subject) -> Results:
    graph = torch.fx.symbolic_trace(s.module().eval())
    return {"out": graph(s.x).detach()}


def _onnx(s: Subject, module: nn.Module, **options: Any) -> Any:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = str(Path(folder) / "model.onnx")
        with torch.no_grad():
            torch.onnx.export(module, (s.x,), path, input_names=["x"], verbose=False, **options)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])

    return run


@joint("onnx.export by a trace", may_refuse=True)
def onnx_by_trace(s: Subject) -> Results:
    module = s.module().eval()
    run = _onnx(s, module, dynamo=False, opset_version=17)
    out = run(s.x.flip(1).contiguous())
    same("the exported model", out, out_of(module, s.x.flip(1)), 1e-3)
    return {"flipped": out}


@joint("onnx.export by a trace, dynamic axes", may_refuse=True)
def onnx_by_trace_dynamic(s: Subject) -> Results:
    module = s.module().eval()
    axes = {"x": {0: "batch", 1: "seqlen"}}
    run = _onnx(s, module, dynamo=False, opset_version=17, dynamic_axes=axes)
    same("the exported model", run(s.x), out_of(module, s.x), 1e-3)
    out = run(_longer(s))
    same("the exported model at another size", out, out_of(module, _longer(s)), 1e-3)
    return {"longer": out}


@joint("onnx.export by torch.export", may_refuse=True, slow=True)
def onnx_by_export(s: Subject) -> Results:
    module = s.module().eval()
    run = _onnx(s, module, dynamo=True)
    out = run(s.x.flip(1).contiguous())
    same("the exported model", out, out_of(module, s.x.flip(1)), 1e-3)
    return {"flipped": out}


@joint("torch.export")
def export(s: Subject) -> Results:
    module = s.module().eval()
    with torch.no_grad():
        program = torch.export.export(module, (s.x,))
        return {"out": program.module()(s.x)}


@joint("torch.export, strict", slow=True)
def export_strict(s: Subject) -> Results:
    module = s.module().eval()
    with torch.no_grad():
        program = torch.export.export(module, (s.x,), strict=True)
        return {"out": program.module()(s.x)}


@joint("torch.export, saved and loaded")
def export_saved(s: Subject) -> Results:
    module = s.module().eval()
    buffer = io.BytesIO()
    with torch.no_grad():
        torch.export.save(torch.export.export(module, (s.x,)), buffer)
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()
        same("the loaded program", loaded(s.x.flip(1)), module(s.x.flip(1)))
        return {"out": loaded(s.x)}


@joint("torch.export with dynamic shapes", may_refuse=True)
def export_dynamic(s: Subject) -> Results:
    module = s.module().eval()
    dims = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("seqlen", min=2, max=64)}
    with torch.no_grad():
        program = torch.export.export(module, (s.x,), dynamic_shapes=(dims,)).module()
        same("the program", program(s.x), module(s.x))
        out = program(_longer(s))
        same("the program at another size", out, module(_longer(s)))
    return {"longer": out}


@joint("torch.export in training")
def export_training(s: Subject) -> Results:
    module = s.module().train()
    program = torch.export.export(module, (s.x,)).module()
    x = s.x.clone().requires_grad_()
    out = program(x)
    loss(out).backward()
    return {"out": out.detach(), "gradient of x": x.grad} | {
        f"gradient of {name}": parameter.grad for name, parameter in program.named_parameters()
    }


@joint("second derivatives of an exported program", may_refuse=True, tolerance=1e-3)
def exported_second(s: Subject) -> Results:
    program = torch.export.export(s.module().eval(), (s.x,)).module()
    x = s.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(program(x)), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    return {"second": second}


@joint("torch.export, then decomposed", slow=True)
def export_decomposed(s: Subject) -> Results:
    module = s.module().eval()
    with torch.no_grad():
        program = torch.export.export(module, (s.x,)).run_decompositions()
        return {"out": program.module()(s.x)}


@joint("torch.export of float64 weights")
def export_double(s: Subject) -> Results:
    module = s.module().double().eval()
    with torch.no_grad():
        program = torch.export.export(module, (s.x.double(),))
        return {"out": program.module()(s.x.double())}


@joint("an exported program that is differentiated by torch.func")
def exported_func(s: Subject) -> Results:
    program = torch.export.export(s.module().eval(), (s.x,)).module()
    return {"gradient of x": torch.func.grad(lambda x: loss(program(x)))(s.x)}


@joint("AOTInductor: compiled to a file and loaded", on=(BLOCKS,), may_refuse=True, slow=True)
def aot_inductor(s: Subject) -> Results:
    module = s.module().eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        program = torch.export.export(module, (s.x,))
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(Path(folder) / "model.pt2")
        )
        loaded = torch._inductor.aoti_load_package(path)
        return {"out": loaded(s.x), "flipped": loaded(s.x.flip(1).contiguous())}


@joint("an exported program, run node by node")
def export_interpreted(s: Subject) -> Results:
    with torch.no_grad():
        program = torch.export.export(s.module().eval(), (s.x,)).module()
        return {"out": torch.fx.Interpreter(program).run(s.x)}


@joint("jit.trace under autocast", rounded=True)
def trace_autocast(s: Subject) -> Results:
    module = s.module().eval()
    options: dict[str, Any] = {"enabled": not s.exact, "cache_enabled": False}
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16, **options):
            traced = _traced(s, module)
        return {"out": traced(s.x).float()}


@joint("torch.export with a batch of any size", slow=True)
def export_any_batch(s: Subject) -> Results:
    module = s.module().eval()
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    with torch.no_grad():
        program = torch.export.export(module, (s.x,), dynamic_shapes=shapes).module()
        more = torch.cat([s.x, s.x.flip(1), s.x[:1]])
        out = program(more)
        same("the program with more", out, module(more))
    return {"more": out}


@joint("torch.export, unflattened", slow=True)
def export_unflattened(s: Subject) -> Results:
    with torch.no_grad():
        program = torch.export.export(s.module().eval(), (s.x,))
        return {"out": torch.export.unflatten(program)(s.x)}


class _Step(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, *states: Tensor) -> Any:
        """The output of a step, whose states are written in place."""
        return self.block.step(x, *states)[0]  # type: ignore[operator]


def _steps(s: Subject, taken: Callable[[nn.Module, tuple[Tensor, ...]], Any]) -> Results:
    block: Any = s.module().eval()
    with torch.no_grad():
        step = taken(_Step(block), (s.x[:, :1], *block.allocate_inference_cache(2, 1)))
        states = block.allocate_inference_cache(2, 1)
        outs = [step(s.x[:, place : place + 1], *states) for place in range(4)]
    return {"outs": torch.cat(outs, 1), "conv_state": states[0], "ssm_state": states[1]}


@joint("torch.export of a step of decoding", on=("Mamba", "Mamba2"), slow=True)
def export_of_step(s: Subject) -> Results:
    return _steps(s, lambda step, given: torch.export.export(step, given).module())


@joint("jit.trace of a step of decoding", on=("Mamba", "Mamba2"))
def trace_of_step(s: Subject) -> Results:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _steps(s, lambda step, given: torch.jit.trace(step, given, check_trace=False))


class _Scaled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self, x: Tensor, *, factor: float = 1.0, twice: bool = False, of: Any = None
    ) -> Any:
        """With what is no tensor among its keywords, and tensors in a dictionary."""
        out = self.inner(x if of is None else x + of["more"]) * factor
        return {"out": out, "both": (out, out * 2)} if twice else out


@joint("torch.export with keywords that are no tensors, and trees of tensors")
def export_keywords(s: Subject) -> Results:
    module = _Scaled(s.module().eval())
    given: dict[str, Any] = {"factor": 0.5, "twice": True, "of": {"more": 0.1 * s.x.flip(1)}}
    with torch.no_grad():
        program = torch.export.export(module, (s.x,), given, strict=False).module()
        found = program(s.x.flip(1), **given)
    return {"out": found["out"], "second": found["both"][1]}


@joint("torch.export with sizes that it finds (Dim.AUTO)", may_refuse=True, slow=True)
def export_auto(s: Subject) -> Results:
    module = s.module().eval()
    dims: Any = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    with torch.no_grad():
        program = torch.export.export(module, (s.x,), dynamic_shapes=(dims,)).module()
        same("the program", program(s.x), module(s.x))
        return {"out": program(s.x.flip(1))}


@joint("AOTInductor with a batch of any size", on=(BLOCKS,), may_refuse=True, slow=True)
def aot_inductor_dynamic(s: Subject) -> Results:
    module = s.module().eval()
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        program = torch.export.export(module, (s.x,), dynamic_shapes=shapes)
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(Path(folder) / "model.pt2")
        )
        loaded = torch._inductor.aoti_load_package(path)
        more = torch.cat([s.x, s.x.flip(1), s.x[:1]])
        return {"out": loaded(s.x), "more": loaded(more)}
