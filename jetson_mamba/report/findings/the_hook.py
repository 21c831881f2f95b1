"""Finds what keeps the hook from serving a program."""

from __future__ import annotations

import os
from typing import Iterator

from jetson_mamba import advice
from jetson_mamba.releases import instead
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings import commands
from jetson_mamba.report.findings.registry import Cause, finds
from jetson_mamba.report.hook import NOT_WHOLE
from jetson_mamba.startup.files import folders as startup_folders


@finds("copy-refused", "stays as it is installed: …")
def _copy_refused(facts: Facts) -> Iterator[Cause]:
    paths = {target.name: target.path for target in facts.hook.targets}
    off = "export JETSON_MAMBA=off"
    for target, reason in facts.hook.refused.items():
        what = f"{target} stays as it is installed: {reason}"
        if reason.startswith(NOT_WHOLE):
            yield Cause(what, "files of this package are missing", advice.again() or off)
            continue
        release = instead.replacement(paths.get(target))
        yield Cause(
            what,
            f"the text of this mamba_ssm, {paths.get(target)}, is not one that is understood",
            f"jetson-mamba install mamba-ssm=={release}" if release else off,
        )


@finds("bypassed", "it was imported before jetson_mamba was activated")
def _bypassed(facts: Facts) -> Iterator[Cause]:
    for target in facts.hook.too_late:
        starter = _startup_file_that_mentions("mamba_ssm")
        yield Cause(
            f"{target} is imported at interpreter start, before the hook is there",
            f"{starter} imports it" if starter else "another startup file imports it",
            commands.aside(starter) if starter else "python -X importtime -c pass",
        )
    if facts.hook.taken_by:
        yield Cause(
            f"another import hook takes the targets first: {facts.hook.taken_by}",
            "it stands before this package's finder on sys.meta_path",
            "jetson-mamba run SCRIPT",
        )


def _startup_file_that_mentions(word: str) -> str | None:
    for folder in startup_folders():
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            path = os.path.join(folder, name)
            if name.endswith(".pth") and not name.startswith("jetson_mamba"):
                with open(path, encoding="utf-8", errors="replace") as file:
                    if word in file.read():
                        return path
    return None
