"""What to do where this package cannot do its work: commands that work when they are typed."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def repair() -> str:
    """How to install this package again, which depends on where it came from."""
    return again() or f"put the files that are missing in {HERE} back, from where they came"


def again() -> str | None:
    """The command that brings the files of this package again, if there is one."""
    distribution = installed("jetson-mamba")
    url = commit = ""
    editable = distribution is None
    if distribution is not None:
        import json

        try:
            told = json.loads(distribution.read_text("direct_url.json") or "{}")
        except ValueError:
            told = {}
        url = told.get("url", "")
        editable = bool(told.get("dir_info", {}).get("editable"))
        vcs = told.get("vcs_info", {})
        if vcs:
            commit = vcs.get("commit_id", "")
            url = f"{vcs.get('vcs', 'git')}+{url}" + f"@{commit}" * bool(commit)
    if editable:
        if os.path.exists(os.path.join(HERE, ".git")):
            folder = shlex.quote(HERE)
            return f"git -C {folder} checkout -- jetson_mamba vendored_overrides"
        return None
    if url.startswith("file://"):
        from urllib.parse import unquote, urlsplit

        url = unquote(urlsplit(url).path)
        if not os.path.exists(url):
            return None
    if not url:  # nobody knows where it came from, and no index has it
        return None
    return f"{pip()} install --force-reinstall --no-deps {shlex.quote(url)}"


def pip() -> str:
    """How pip is called for this interpreter, or uv where there is that and no pip."""
    python = shlex.quote(sys.executable or "python")
    if not has_pip():
        import shutil

        uv = os.environ.get("UV") or shutil.which("uv")
        if uv:
            return f"UV_PYTHON={python} {shlex.quote(uv)} pip"
    return f"{python} -m pip"


def has_pip() -> bool:
    """Whether this interpreter has a pip.

    Not asked of ``sys.meta_path``: the finder of setuptools takes the question for pip running,
    and gives the process the distutils of the standard library, which setuptools then refuses.
    """
    from importlib.machinery import PathFinder

    return PathFinder.find_spec("pip") is not None


def version_of_pip() -> str:
    """The pip of this interpreter, read from its text: importing it changes the process."""
    import re
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec("pip")
    try:
        with open(str(spec and spec.origin), encoding="utf-8", errors="replace") as file:
            match = re.search(r"^__version__ = [\"']([^\"']+)", file.read(), re.MULTILINE)
    except OSError:
        return "0"
    return match[1] if match else "0"


def installed(name: str) -> Any:
    """The metadata of a distribution; None where there is none."""
    from importlib import metadata

    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
