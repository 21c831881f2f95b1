"""Which releases of what mamba_ssm imports go with the torch that is there.

The newest transformers refuses an older torch, and what it needs has no wheel that an old pip
knows. So ``pip install transformers`` alone may install one that does not work.
"""

from __future__ import annotations

import platform
import shlex

from jetson_mamba import advice
from jetson_mamba.releases import together
from jetson_mamba.releases.versions import at_least


def old_pip(version: str | None, architecture: str) -> bool:
    """Whether a pip would compile what has wheels for a newer glibc alone; None is no pip."""
    return version is not None and not at_least(version, 20, 3) and architecture == "aarch64"


def requirements(name: str, torch: str, old: bool) -> list[str]:
    """The requirements that bring a package beside a torch, "" where none is known.

    ``old`` is what :func:`old_pip` says.
    """
    hub = f"huggingface-hub{together.HUB_WITHOUT_XET if old else ''}"
    if name == "huggingface-hub":
        return [hub]
    if name != "transformers":
        return [name]
    bound = together.transformers_for(torch) if torch else ""
    return [f"{name}{together.TRANSFORMERS_WITHOUT_XET}", hub] if old else [name + bound]


def command(torch: str, *names: str) -> str:
    """The command that brings packages here; ``torch`` is as :func:`requirements` takes it."""
    old = old_pip(advice.version_of_pip() if advice.has_pip() else None, platform.machine())
    wanted = dict.fromkeys(each for name in names for each in requirements(name, torch, old))
    words = [*(["--prefer-binary"] if old else []), *wanted]
    return f"{advice.pip()} install {' '.join(map(shlex.quote, words))}"
