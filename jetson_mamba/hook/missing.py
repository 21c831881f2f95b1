"""Says what to install where a package is missing that mamba_ssm imports.

Each of them is first imported by a target, or while a target imports another module of mamba_ssm,
so the error passes the loader whichever module wants it.
"""

from __future__ import annotations

import sys

from jetson_mamba.releases import needed

# What mamba_ssm's metadata names, or its modules import, beyond torch and Triton.
PACKAGES = ("einops", "huggingface_hub", "packaging", "transformers")
INSTALL = " pip install "


def explain(error: ModuleNotFoundError) -> None:
    """Add to the message who imports the missing package, and the command that installs it.

    The error stays the one that it is, of its class and with its ``name``; it is left alone where
    another package is missing, or where its message has a command already.
    """
    if error.name not in PACKAGES or INSTALL in str(error):
        return
    error.msg = (
        f"No module named {error.name!r}, which {_importer(error)} imports; install it with: "
        f"{needed.command(_torch(), error.name.replace('_', '-'))}"
    )
    error.args = (error.msg,)


def _torch() -> str:
    """The version of the torch that has been imported, as mamba_ssm does first; "" of none."""
    return str(getattr(sys.modules.get("torch"), "__version__", ""))


def _importer(error: ModuleNotFoundError) -> str:
    """The module whose statement asked for the package, whichever finder then refused it."""
    name = "mamba_ssm"
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        here = frame.f_globals.get("__name__") or ""
        if frame.f_code.co_name == "<module>" and not here.startswith("jetson_mamba."):
            name = here
        traceback = traceback.tb_next
    return name
