"""The Pythons of this machine that the hook's tests run in: it has to work in every one."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
from functools import lru_cache


@lru_cache(maxsize=None)
def interpreters() -> tuple[str, ...]:
    """Every other CPython that this machine has, from 3.8 on: on the path, or under pyenv."""
    folders = [*os.get_exec_path(), *glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin"))]
    found: dict[str, str] = {}
    for minor in range(8, 20):
        for folder in folders:
            python = os.path.join(folder, f"python3.{minor}")
            version = f"import sys; assert sys.version_info[:2] == (3, {minor})"
            if os.access(python, os.X_OK) and not subprocess.call(
                [python, "-c", version], stderr=subprocess.DEVNULL
            ):
                found[f"3.{minor}"] = python
    return tuple(found.values())


def named(version: str) -> str:
    """The Python of a version such as 3.8, or that version, where this machine has none."""
    names = (sys.executable, *interpreters())
    name = f"python{version}"
    return next((each for each in names if os.path.basename(each) == name), version)


def oldest_own_newest() -> list[str]:
    """The Python of these tests, and the two between which the others lie."""
    found = interpreters()
    return list(dict.fromkeys([sys.executable, *found[:1], *found[-1:]]))


if __name__ == "__main__":
    print(named(sys.argv[1]))
