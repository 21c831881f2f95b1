"""The forms of each operator in ONNX, with the targets that each form suits."""

from __future__ import annotations

from typing import Any, Callable, Mapping

import onnx_ir as ir

from . import plugins, selective_scan, ssd
from .convolution import convolution
from .writer import Writer

DOMAIN = plugins.DOMAIN

# The forms of each recurrence; the others have one.
FORMS: Mapping[str, Mapping[str, Callable[..., tuple[Any, Any]]]] = {
    "selective_scan": {"scan": selective_scan.scan, "blocks": selective_scan.blocks},
    "ssd_scan": {"chunks": ssd.chunks, "attention": ssd.attention},
}

# The recurrences that may be plugins of TensorRT in place of a form.
PLUGINS: Mapping[str, Callable[..., tuple[Any, Any]]] = {"selective_scan": plugins.selective_scan}

# What may serve for a target: where there are several, the one that is faster there.
TARGETS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "onnxruntime": {"selective_scan": ("scan", "blocks"), "ssd_scan": ("chunks", "attention")},
    "tensorrt": {"selective_scan": ("blocks",), "ssd_scan": ("chunks",)},
}


def recurrences(model: ir.Model) -> list[str]:
    """Which recurrences a model has that a form is to be chosen for."""
    found = {node.op_type for node in model.graph if node.domain == DOMAIN}
    return [name for name in FORMS if name in found]


def written(model: ir.Model, chosen: Mapping[str, str]) -> ir.Model:
    """A copy of a model with its placeholders replaced.

    ``chosen`` is the form of each recurrence, or ``"plugin"``.
    """
    model = model.clone()
    for node in list(model.graph):
        if node.domain == DOMAIN:
            _write(model, node, chosen)
    model.opset_imports.pop(DOMAIN, None)
    for domain in {node.domain for node in model.graph} & {DOMAIN, "com.microsoft"}:
        model.opset_imports[domain] = 1
    return model


def _write(model: ir.Model, node: ir.Node, chosen: Mapping[str, str]) -> None:
    options: dict[str, Any] = {name: each.value for name, each in node.attributes.items()}
    writer = Writer(str(node.outputs[0].name), *node.inputs)
    if node.op_type == "causal_conv1d":
        x, weight, bias, first = _filled(node, 4)
        returned, silu = bool(options["return_final_states"]), bool(options["silu"])
        results = convolution(writer, x, weight, bias, first, returned, silu)
    elif node.op_type == "selective_scan":
        last = node.outputs[1]
        returns_state = bool(last.uses()) or last.is_graph_output()
        softplus, longest = bool(options["delta_softplus"]), options["longest"] or None
        scan = selective_scan.SelectiveScan._make(
            [*_filled(node, 8), softplus, longest, returns_state]
        )
        results = _form(node.op_type, chosen)(writer, scan)
    else:
        limit = (options["dt_least"], options["dt_most"])
        given = ssd.SsdScan._make([*_filled(node, 8), bool(options["dt_softplus"]), limit])
        results = _form(node.op_type, chosen)(writer, given)
    pairs = [(old, new) for old, new in zip(node.outputs, results) if new is not None]
    used = [old for old, new in zip(node.outputs, results) if new is None and old.uses()]
    if used:
        raise RuntimeError(f"{node.op_type}: nothing was written for {used[0].name}")
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], writer.nodes, [o for o, _ in pairs], [n for _, n in pairs]
    )


def _form(name: str, chosen: Mapping[str, str]) -> Callable[..., tuple[Any, Any]]:
    return PLUGINS[name] if chosen[name] == "plugin" else FORMS[name][chosen[name]]


def _filled(node: ir.Node, count: int) -> list[Any]:
    """The inputs, with None for those at the end that were left out."""
    return [*node.inputs, *[None] * (count - len(node.inputs))]
