"""Small language models made of blocks of the mamba-ssm that is installed."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from typing import Any

import jetson_mamba
from jetson_mamba.errors import CannotRun
from jetson_mamba.releases import needed

WIDTH = 128
LAYERS = 2
KINDS: dict[str, dict[str, Any]] = {
    "Mamba": {"d_state": 16},
    "Mamba2": {"layer": "Mamba2", "d_state": 32, "headdim": 32},
}


def mamba_ssm() -> Any:
    """The package ``mamba_ssm``; CannotRun with the reason where it cannot be imported."""
    return require("mamba_ssm", "jetson-mamba install")


def require(module: str, install: str) -> Any:
    """Import a module; CannotRun, with the command that installs it, where that fails."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            advice = f"install it: {install}"
        elif not jetson_mamba.is_active():
            advice = "activate jetson_mamba: unset JETSON_MAMBA"
        else:
            advice = f"install what it needs: {_command(error.name or module)}"
        reason = str(error)
    except Exception as error:  # whatever a broken installation raises
        advice = f"repair it: {install}"
        reason = f"{type(error).__name__}: {error}"
    raise CannotRun(f"{module} cannot be imported ({' '.join(reason.split())}); {advice}")


def _command(name: str) -> str:
    """What brings a package that mamba_ssm imports, beside the torch that is there."""
    torch = str(getattr(sys.modules.get("torch"), "__version__", ""))
    return needed.command(torch, name.partition(".")[0].replace("_", "-"))


def kinds(package: Any) -> tuple[str, ...]:
    """The kinds of blocks that this release has: Mamba-2 came with 2.0."""
    return tuple(kind for kind in KINDS if hasattr(package, kind))


def build(package: Any, kind: str, alphabet: int, device: Any) -> Any:
    """A language model over ``alphabet`` characters, the same on every device.

    Its norms are PyTorch's: RMSNorm and the fused addition are Triton kernels upstream.
    """
    settings: dict[str, Any] = {
        "d_model": WIDTH,
        "n_layer": LAYERS,
        "vocab_size": alphabet,
        "ssm_cfg": dict(KINDS[kind]),
        "rms_norm": False,
        "fused_add_norm": False,
        "pad_vocab_size_multiple": 8,
    }
    model = import_module("mamba_ssm.models.mixer_seq_simple").MambaLMHeadModel
    if "config" in inspect.signature(model.__init__).parameters:
        config = import_module("mamba_ssm.models.config_mamba").MambaConfig(**settings)
        return model(config, device=device)
    return model(**settings, device=device)  # to 1.1
