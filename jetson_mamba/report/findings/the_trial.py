"""Tells what running a block has shown, whether or not anything else explains it."""

from __future__ import annotations

from typing import Iterator

from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings import commands
from jetson_mamba.report.findings.extensions import stopping
from jetson_mamba.report.findings.registry import BUSY, NO_ANSWER, Cause, finds


@finds("block-fails", "a block of mamba_ssm fails")
def _the_block_fails(facts: Facts) -> Iterator[Cause]:
    if not facts.mamba or not facts.torch or facts.torch.error or not facts.trial_error:
        return
    why, command = "it was imported, and a block of each kind run, in a process of its own", ""
    extension = stopping(facts)
    if extension:
        why = f"{extension.name} ends or holds up whatever imports it"
        command = commands.without(extension, facts)
    elif NO_ANSWER in facts.trial_error:
        why = BUSY
    else:
        command = "jetson-mamba install"
    if facts.hook.mode == "off":
        command = "unset JETSON_MAMBA"
    yield Cause(
        f"mamba_ssm {facts.mamba.version} does not work here: {facts.trial_error}",
        why,
        command,
    )
