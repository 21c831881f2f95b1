"""Exports models as ONNX files, each compared with its model before it is left behind.

``jetson_mamba.export.onnx`` writes a model, ``jetson_mamba.export.step`` a block or a language
model that is called token by token with its states. They need what the extra ``export`` brings and
torch 2.8; ``torch.onnx.export(dynamo=True)`` by itself needs neither, and takes one form for all.
"""

from __future__ import annotations

from .files import Exported, onnx, step

__all__ = ["Exported", "onnx", "step"]
