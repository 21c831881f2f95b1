"""Removes from a report whatever names its author, such as the path of a home folder."""

from __future__ import annotations

import os
import re
from typing import Any

# What ends a name in a path as it is written in prose.
END = r"(?=$|[/\s:;,'\")\]}`])"
SOMEBODYS = re.compile(r"(?<![\w.~-])/(?:home|Users)/[^/\s:;,'\")\]}`]+")


def without_home(value: Any) -> Any:
    """The same text, list or dictionary of them, with "~" for home folders."""
    if isinstance(value, dict):
        return {name: without_home(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_home(each) for each in value]
    if not isinstance(value, str):
        return value
    homes, user = _own()
    for home in homes:
        value = re.sub(re.escape(home) + END, "~", value)
    value = SOMEBODYS.sub("~", value)
    return re.sub(f"(?<=/){re.escape(user)}{END}", "user", value) if user else value


def _own() -> tuple[list[str], str]:
    """The home folders of this user, the longest first, and the name, but for root's."""
    home = os.path.expanduser("~")
    homes, user = {home, os.path.realpath(home)}, ""
    try:
        import pwd

        own = pwd.getpwuid(os.getuid())
        homes |= {own.pw_dir, os.path.realpath(own.pw_dir)}
        user = own.pw_name
    except (ImportError, KeyError):  # not on this system, or nobody in a container
        pass
    known = (each.rstrip("/") for each in homes if each.startswith("/"))
    return sorted(filter(None, known), key=len, reverse=True), "" if user == "root" else user
