"""Links of the distribution, to where it is built from: a forge's CI says so, or git's remote.

No address is written down here: whoever publishes a fork of this project publishes its own links.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Links(MetadataHookInterface):
    """Fills ``urls``, which pyproject.toml declares dynamic."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the links, or none where nobody says where the repository is."""
        address = os.environ.get("REPOSITORY_URL") or _remote(self.root)
        metadata["urls"] = links(address) if address else {}


def links(address: str) -> dict[str, str]:
    """The links of a repository on a forge."""
    return {
        "Repository": address,
        "Issues": f"{address}/issues",
        "Changelog": f"{address}/blob/HEAD/CHANGELOG.md",
        "Documentation": f"{address}/blob/HEAD/docs/index.md",
    }


def _remote(root: str) -> str | None:
    """The address that git fetches from, if it is one that a browser can open."""
    command = ("git", "-C", root, "config", "--get", "remote.origin.url")
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return None
    return told[: -len(".git")] if told.startswith("https://") and told.endswith(".git") else None
