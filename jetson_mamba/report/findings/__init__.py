"""What is wrong on a machine, each thing found by its cause, with the command that fixes it.

Every module of this package holds the detectors of one area, which register themselves. A cause
that the hook works around where it is active is still a finding, marked as cured: nothing has to be
done, and its option would remove the cause.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from jetson_mamba.report.findings.registry import DETECTORS, SYMPTOMS, Cause, Finding, findings

for _module in sorted(each.name for each in pkgutil.iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")

__all__ = ["DETECTORS", "SYMPTOMS", "Cause", "Finding", "findings"]
