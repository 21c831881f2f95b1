"""Puts the startup files at the top of a wheel, from where Python reads them at its start.

``jetson-mamba enable`` needs them inside the package as well, and hatchling moves a file that it is
told to include elsewhere; so it is given copies. A wheel without bundled copies says so.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAMES = ("jetson_mamba.pth", "jetson_mamba.start", "_jetson_mamba_start.py")
COPIES = "vendored_overrides/copies"


class StartupFiles(BuildHookInterface):  # type: ignore[type-arg]
    """What hatchling calls before and after it builds a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the startup files to a wheel, editable (``version``) or not."""
        root = Path(self.root)
        self.folder = tempfile.mkdtemp()
        places = "force_include_editable" if version == "editable" else "force_include"
        for name in NAMES:
            copy = shutil.copy(root / "jetson_mamba" / "startup" / name, self.folder)
            build_data[places][copy] = name
        if version != "editable" and not any((root / COPIES).glob("*.py")):
            self.app.display_warning(
                f"{COPIES} is empty: what imports mamba_ssm makes its copies at the first import. "
                "`make copies` makes those of a release."
            )

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what the wheel was given."""
        shutil.rmtree(self.folder)
