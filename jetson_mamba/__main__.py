"""``python -m jetson_mamba`` is the command ``jetson-mamba``, which begins here.

Its modules take a moment to import, on a board seconds, and an interrupt is answered from the
first of them on.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; the exit code."""
    try:
        from jetson_mamba import cli
    except KeyboardInterrupt:
        print("jetson-mamba: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("", "jetson_mamba", "vendored_overrides"):
            raise
        from jetson_mamba.installing import environments

        needs = f"the commands need {error.name}, which is not installed"
        print(f"jetson-mamba: {needs}; {environments.commands()}", file=sys.stderr)
        return 2
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
