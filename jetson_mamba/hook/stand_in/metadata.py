"""The metadata of the stand-in for causal-conv1d, so that its version can be asked for by name.

``importlib.metadata`` asks the finders; nothing is written beside other packages. What is
installed, or looks as if it were, tells for itself.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Any, Iterator

from jetson_mamba.hook import stand_in

VERSION = "1.7.0+jetson.mamba"


class StandIn(metadata.Distribution):
    """The distribution that the stand-in would be, if it were one."""

    def read_text(self, filename: str) -> str | None:
        """The name and the version; there is no other file."""
        if filename not in ("METADATA", "PKG-INFO"):
            return None
        return (
            f"Metadata-Version: 2.1\nName: causal-conv1d\nVersion: {VERSION}\n"
            "Summary: jetson_mamba's stand-in for causal-conv1d\n"
        )

    def locate_file(self, path: Any) -> Any:
        """A file beside the stand-in."""
        return os.path.join(stand_in.FOLDER, os.fspath(path))


def distributions(finder: Any, context: Any) -> Iterator[metadata.Distribution]:
    """The stand-in's metadata, if it is imported or would be and no finder has any other."""
    for other in sys.meta_path:
        find = getattr(other, "find_distributions", None)
        if other is not finder and find is not None and any(True for _ in find(context)):
            return iter(())
    module = sys.modules.get(stand_in.PACKAGE)
    if module is not None:
        return iter([StandIn()] if stand_in.is_one(module) else [])
    found = finder.find_spec(stand_in.PACKAGE)
    return iter([StandIn()] if stand_in.stands_in(found) else [])
