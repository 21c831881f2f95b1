"""Activates the hook at interpreter start, by the ``.pth`` or ``.start`` file of this folder.

Installed, they lie at the top of ``site-packages``. Python 3.15 prefers the ``.start`` file and
then ignores the ``.pth`` file of the same name (PEP 829); earlier ones know only the ``.pth``,
which does what ``main`` does without importing this package too.
"""


def main() -> None:
    """Note that the interpreter's start activated the package; importing it did the work."""
    from jetson_mamba import _finder  # an ImportError where the package is half uninstalled

    _finder.activated_by = "startup file"
