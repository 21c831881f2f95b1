"""What ``jetson_mamba.start`` names, beside it in ``site-packages``.

Python 3.15 prints a traceback at every start where an entry point cannot be imported. This module
needs nothing, so that a startup file that outlives its package is silent.
"""


def main() -> None:
    """Activate the hook, if it is there."""
    try:
        from jetson_mamba import startup
    except ImportError:
        return
    startup.main()
