"""Makes the installed mamba-ssm run where it does not; importing this package activates it.

While Python imports ``mamba_ssm``, a finder on ``sys.meta_path`` hands over modified copies of the
modules that call a compiled extension, launch Triton kernels or hold a block. The copies call
``jetson_mamba.ops`` instead. What the package offers to programs:

* ``status()``: what runs in this process, the targets with their copies and the ops with their
  backends; ``print(jetson_mamba.status())``.
* ``backend(selective_scan="pytorch")``: names the backend of an op, for a ``with`` block.
* ``activate()``, ``deactivate()``, ``is_active()``: the finder.
* ``prefill(model, input_ids, inference_params)``: a long prompt in pieces, in little memory.
* ``export``: a model as ONNX, ``jetson_mamba.export.onnx(...)``.

Environment variables, read when this package is first imported: ``JETSON_MAMBA=off`` switches it
off, ``JETSON_MAMBA=strict`` makes every target that cannot be modified an ImportError. If no
``causal_conv1d`` or compiled extension can be imported, a stand-in is, unless
``JETSON_MAMBA_STAND_IN=off``. ``JETSON_MAMBA_BACKEND`` names what computes an op.

A process has one finder: reloading this package, or importing it again after it was deleted from
``sys.modules``, finds the one that is there, with its mode and what it remembers.
"""

import os
import sys

from jetson_mamba.finder import TARGETS, Finder, present

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from jetson_mamba import export
    from jetson_mamba.ops import backend
    from jetson_mamba.ops.decoding import prefill
    from jetson_mamba.report.status import status

__version__ = "0.1.0"
__all__ = ["activate", "backend", "deactivate", "export", "is_active", "prefill", "status"]


def activate() -> None:
    """Put the finder at the head of ``sys.meta_path``, if it is not in it.

    A target that is imported already stays as it is, and a RuntimeWarning says so.
    """
    if not is_active():
        if any(name in sys.modules for name in TARGETS):
            from jetson_mamba.hook import loader

            loader.warn_of_bypassed_targets(_finder)
        sys.meta_path.insert(0, _finder)


def deactivate() -> None:
    """Take the finder away. Targets that are imported already stay modified."""
    if is_active():
        sys.meta_path.remove(_finder)


def is_active() -> bool:
    """Whether targets that are imported from here on are modified."""
    return _finder in sys.meta_path


def __getattr__(name: str) -> "Any":
    if name == "status":
        from jetson_mamba.report.status import status

        return status
    if name == "backend":
        from jetson_mamba.ops import backend

        return backend
    if name == "prefill":
        from jetson_mamba.ops.decoding import prefill

        return prefill
    if name == "export":
        from importlib import import_module

        return import_module("jetson_mamba.export")
    if name == "activated_by":  # "import", or "startup file" in jetson_mamba.startup
        return _finder.activated_by
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _new_finder() -> Finder:
    mode = os.environ.get("JETSON_MAMBA") or "on"
    if mode not in ("on", "strict", "off"):
        import warnings

        warnings.warn(
            f"JETSON_MAMBA: expected on, strict or off, found {mode!r}; taken as on",
            RuntimeWarning,
            stacklevel=3,
        )
        mode = "on"
    return Finder(mode, stand_in=os.environ.get("JETSON_MAMBA_STAND_IN") != "off")


# A reload runs this module in the namespace that it has.
if "_finder" not in globals():
    _finder = present() or _new_finder()
    if _finder.mode != "off":
        activate()
