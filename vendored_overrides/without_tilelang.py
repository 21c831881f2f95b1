"""What changes besides in every module that imports tilelang, where that cannot be imported."""

from __future__ import annotations

from jetson_mamba.rewrite import Placeholder

EDITS = (Placeholder(of="tilelang", becomes="jetson_mamba.compat.without_tilelang"),)
