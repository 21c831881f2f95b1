"""Installs into the environment that runs it, in parallel.

``python -m tools.install --requirement FILE --editable .`` lets uv do what pip would, in a fraction
of the time: the uv that FILE pins, with the indexes, folders and constraints that pip is configured
with. Where that fails, pip does it, which also says what is wrong.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

PIP = (sys.executable, "-m", "pip")
QUIETLY = ("install", "--quiet", "--disable-pip-version-check", "--no-compile")
# Settings of pip, and the options of uv that say the same.
OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "constraint": "--constraints",
    "trusted-host": "--allow-insecure-host",
}
SWITCHES = {"no-index": ("--no-index",), "pre": ("--prerelease", "allow")}
# Where the settings come from, the stronger last.
PLACES = ("global", "install", ":env:")


def settings(listed: str) -> dict[str, str]:
    """What pip is configured with, of what ``pip config list`` prints."""
    found: dict[str, tuple[int, str]] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        place, _, key = name.rpartition(".")
        if place in PLACES:
            found[key] = max(found.get(key, (-1, "")), (PLACES.index(place), value))
    return {key: str(ast.literal_eval(value)) for key, (_, value) in found.items()}


def as_uv(configured: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """The options of uv, with the variables, by which it takes what pip would."""
    options = ["--index-strategy", "unsafe-best-match"]  # of all indexes alike
    for key, option in OPTIONS.items():
        for value in configured.get(key, "").split():
            options += [option, value]
    for key, switch in SWITCHES.items():
        if configured.get(key, "").lower() in ("1", "true", "yes", "on"):
            options += switch
    certificates = configured.get("cert")
    return options, {"SSL_CERT_FILE": certificates} if certificates else {}


def main() -> int:
    """Install what the options name; the exit code of what did it."""
    wanted = sys.argv[1:]
    text = Path(wanted[wanted.index("--requirement") + 1]).read_text(encoding="utf-8")
    pinned = re.findall(r"^uv==\S+", text, re.MULTILINE)
    if pinned and not subprocess.run([*PIP, *QUIETLY, *pinned], check=False).returncode:
        listed = subprocess.check_output([*PIP, "config", "list"], text=True)
        options, variables = as_uv(settings(listed))
        uv = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet"]
        done = subprocess.run(
            [*uv, "--python", sys.executable, *options, *wanted],
            env={**os.environ, **variables},
            check=False,
        )
        if not done.returncode:
            return 0
        print("uv did not install it; pip tries", file=sys.stderr)
    return subprocess.run([*PIP, *QUIETLY, *wanted], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
