"""A plugin of pytest that runs the tests of a list, in its order."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep those that are named in the file, in its order."""
    names = json.loads(Path(os.environ["NOTICED_CHOSEN"]).read_text("utf-8"))
    place = {name: number for number, name in enumerate(names)}
    kept = [each for each in items if each.nodeid in place]
    config.hook.pytest_deselected(items=[each for each in items if each.nodeid not in place])
    items[:] = sorted(kept, key=lambda item: place[item.nodeid])
