"""Activation at interpreter start, through the ``.pth`` and ``.start`` files in this folder.

Installed, they lie at the top of ``site-packages``. Python 3.15 prefers the ``.start`` file and
then ignores the ``.pth`` file of the same name (PEP 829); earlier ones know only the ``.pth``.
"""

import jetson_mamba


def main() -> None:
    """Note that the interpreter's start activated the package; importing it did the work."""
    jetson_mamba.activated_by = "startup file"
