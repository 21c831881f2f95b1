"""Writes the Python file that TensorRT reads beside a model with plugins.

The file holds the plugins and their PTX. It is imported before the model is parsed, and needs
``tensorrt`` alone, from 10.9 on, whose Python plugins may be compiled ahead. The engine that is
built holds the kernels: it needs neither the file nor Python.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

from jetson_mamba import advice
from jetson_mamba.errors import CannotRun, Unavailable
from jetson_mamba.kernels import compiler

from .forms.plugins import DOMAIN, Plugin, Size

_HEAD = '''\
"""TensorRT plugins of {model}: kernels of jetson_mamba as PTX for {architecture}.

Import this before the model is parsed. The PTX is of version {version}, by
NVRTC {nvrtc}: it wants a driver of CUDA {nvrtc} or later.
"""

from typing import Tuple

import tensorrt as trt
import tensorrt.plugin as trtp
'''

_PLUGIN = """

@trtp.register("{id}")
def {name}_outputs({parameters}) -> {returned}:
    return {outputs}


@trtp.aot_impl("{id}")
def {name}({inputs}, outputs, tactic) -> Tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
    launch = trtp.KernelLaunchParams(
        grid_x={grid[0]}, grid_y={grid[1]}, grid_z={grid[2]}, block_x={threads}
    )
    sizes = trtp.SymIntExprs.from_tuple(({sizes}))
    return "{entry}", {ptx}, launch, sizes
"""


def path_beside(model: Path) -> Path:
    """Where the plugins of a model's file stand: a name that Python can import."""
    stem = "".join(letter if letter.isalnum() else "_" for letter in model.stem)
    return model.with_name(f"{stem}_plugins.py")


def plugins_of(model: Any) -> list[Plugin]:
    """Those of an ``onnx_ir`` model, each once."""
    found = [Plugin.of(node) for node in model.graph]
    return list({each.name: each for each in found if each is not None}.values())


def check_architecture(name: str) -> None:
    """Raise CannotRun where NVRTC is missing, or does not compile for ``name``."""
    try:
        known = compiler.supported_architectures()
    except Unavailable as reason:
        raise CannotRun(f"plugins: {reason}; {advice.extra('cuda13')}") from reason
    if name not in known:
        raise CannotRun(
            f"plugins: expected what NVRTC {compiler.nvrtc_version()} compiles for, "
            f"{', '.join(sorted(known))}, found {name}"
        )


def text(plugins: Sequence[Plugin], model: str, architecture: str) -> str:
    """The file of some plugins for an architecture (``sm_87``) and those after it."""
    codes = [compiler.ptx(each.source, each.defines, architecture) for each in plugins]
    written = _HEAD.format(
        model=model,
        architecture=architecture,
        version=codes[0].split(".version ")[1].split()[0],
        nvrtc=compiler.nvrtc_version(),
    )
    for plugin, code in zip(plugins, codes):
        name = f"PTX_{plugin.name.rpartition('_')[2]}"
        written += f'\n{name} = r"""{code}"""\n' + _functions(plugin, name)
    return written


def _functions(plugin: Plugin, ptx: str) -> str:
    # The first is as the first input.
    results = [f"{plugin.inputs[0]}.like()"] + [
        f"trtp.from_shape_expr(({_listed(shape)}), trt.float32)" for shape in plugin.outputs[1:]
    ]
    return _PLUGIN.format(
        id=f"{DOMAIN}::{plugin.name}",
        name=plugin.name,
        parameters=", ".join(f"{name}: trtp.TensorDesc" for name in plugin.inputs),
        returned=f"Tuple[{', '.join(['trtp.TensorDesc'] * len(results))}]",
        outputs=f"({_listed(results)})",
        inputs=", ".join(plugin.inputs),
        grid=plugin.grid,
        threads=plugin.threads,
        sizes=_listed([f"trtp.SymInt32({size})" for size in plugin.sizes]),
        entry=plugin.entry,
        ptx=ptx,
    )


def _listed(items: Sequence[Size]) -> str:
    return " ".join(f"{item}," for item in items)
