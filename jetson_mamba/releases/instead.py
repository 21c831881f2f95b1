"""Which release of mamba-ssm to install in place of one that this package cannot serve."""

from __future__ import annotations

import os
import sys
from typing import Any

from jetson_mamba import advice
from jetson_mamba.releases import together
from jetson_mamba.releases.versions import key


def known_release(triton: str | None = None) -> str:
    """The newest release of mamba-ssm that can work here, beside a ``triton`` where one is there.

    The installer would choose the same.
    """
    return together.newest(sys.version_info[:2], triton)


def for_a_text(path: object) -> str:
    """What to do about a target whose text, in the file ``path``, is not understood."""
    release = replacement(path)
    install = f"install a release that is known (jetson-mamba install mamba-ssm=={release}), "
    text = path if isinstance(path, str) else "its text"
    return (
        f"{install if release else ''}report {text} to the authors of jetson_mamba, or set "
        "JETSON_MAMBA=off to silence this"
    )


def replacement(path: object) -> str | None:
    """The release to install in place of one whose text, in the file ``path``, is not understood.

    None where that would be the same text again, or where the text is a fork's or a checkout's,
    which its user wants.
    """
    distribution = advice.installed("mamba-ssm")
    if distribution is None or not isinstance(path, str):
        return None
    folder = os.path.realpath(str(distribution.locate_file("")))
    relative = os.path.relpath(os.path.realpath(path), folder)
    recorded = {os.path.normpath(str(each)): each for each in distribution.files or ()}
    if relative not in recorded:
        return None
    triton = advice.installed("triton")
    release = known_release(triton and triton.version)
    published = not distribution.read_text("direct_url.json")
    if published and key(distribution.version) <= key(together.NEWEST):
        if not _altered(path, recorded[relative].hash):
            return None
        here = sys.version_info[:2]
        able = together.cannot_be_imported(distribution.version, here) is None
        return distribution.version if able else release
    return release


def _altered(path: str, recorded: Any) -> bool:
    """Whether a file is another one than was installed, as far as that is recorded."""
    if recorded is None or recorded.mode != "sha256":
        return False
    import base64
    import hashlib

    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).digest()
    return bool(base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != recorded.value)
