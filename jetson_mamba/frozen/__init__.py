"""Tells PyInstaller what to put into an application: it asks the entry point ``pyinstaller40``.

It follows the imports of a program, and the hook's own are by name: the overrides, the ops that
copies call, what stands in for causal_conv1d. mamba_ssm goes in as source, of which copies are
made.
"""

from __future__ import annotations

import os


def hook_dirs() -> list[str]:
    """Where the files for PyInstaller lie, each named after the package that it is about."""
    return [os.path.dirname(os.path.abspath(__file__))]
