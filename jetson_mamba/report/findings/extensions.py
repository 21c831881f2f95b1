"""Finds what is wrong with the compiled extensions: missing, broken, or not fitting."""

from __future__ import annotations

import os
import re
from typing import Iterator

from jetson_mamba.report.extensions import Extension
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings import commands
from jetson_mamba.report.findings.registry import BUSY, NO_ANSWER, Cause, finds
from jetson_mamba.report.packages import MambaSsm, requires

# The release of mamba-ssm that calls an extension of so many parameters as it wants to be called.
RELEASE_FOR_PARAMETERS: dict[int | None, str] = {
    4: "==1.0.1",
    5: "==1.1.4",
    7: "==2.2.4",
    8: ">=2.2.5",
}
# How an import ends that takes the program with it; after any other error a next backend serves.
STOPS = re.compile(r"the process ended|no answer|(SystemExit|KeyboardInterrupt|GeneratorExit)\b")


def stopping(facts: Facts) -> Extension | None:
    """The extension that ends or holds up whatever imports it, if there is one."""
    return next((each for each in facts.extensions if _stops(each, facts)), None)


@finds("undefined-symbol", "undefined symbol: _ZN3c10…")
def _undefined_symbol(facts: Facts) -> Iterator[Cause]:
    for each in facts.extensions:
        if each.error and "undefined symbol" in each.error:
            torch = facts.torch.version if facts.torch else "none"
            yield Cause(
                f"{each.name} does not load: {each.error}",
                f"it was built for another torch than the one that is installed ({torch})",
                commands.without(each, facts),
                served=True,
            )


@finds("no-selective-scan", "No module named 'selective_scan_cuda'")
def _no_selective_scan(facts: Facts) -> Iterator[Cause]:
    if facts.mamba and "selective_scan_cuda" in facts.mamba.asks.mentioned and not facts.scan.path:
        yield Cause(
            f"mamba_ssm {facts.mamba.version} imports selective_scan_cuda, which is not installed",
            "this release leaves it out unless MAMBA_KEEP_CUDA_BUILD=TRUE is set"
            if facts.mamba.asks.scan_on_request
            else "it was installed without compiling, or its extension is for another Python",
            commands.compiled(facts, "mamba-ssm"),
            served=True,
            compiles=True,
        )


@finds("call-form", "causal_conv1d_fwd(): incompatible function arguments")
def _call_form(facts: Facts) -> Iterator[Cause]:
    for name, counts in facts.mamba.asks.calls.items() if facts.mamba else ():
        takes = facts.convolution.parameters.get(name)
        if takes is None or counts == (takes,):
            continue
        forward = facts.convolution.parameters.get("causal_conv1d_fwd")
        fitting = RELEASE_FOR_PARAMETERS.get(forward, "")
        passes = " and ".join(map(str, counts))
        yield Cause(
            f"mamba_ssm passes {name} {passes} arguments, and it takes {takes}",
            "mamba-ssm and causal-conv1d are of releases that do not fit together",
            commands.release(fitting),
            served=True,
        )
        return


@finds("none-called", "'NoneType' object is not callable, or has no attribute 'causal_conv1d_fwd'")
def _none_called(facts: Facts) -> Iterator[Cause]:
    if not facts.mamba or not _convolution_is_guarded(facts.mamba):
        return
    package, extension = facts.causal_conv1d.path, facts.convolution
    if not package:
        why = "causal_conv1d is not installed"
    elif not extension.path:
        why = "the extension of causal_conv1d, causal_conv1d_cuda, is not installed"
    elif extension.error:
        why = f"causal_conv1d_cuda does not load: {extension.error}"
    elif "causal_conv1d.cpp_functions" in facts.mamba.asks.mentioned and not os.path.exists(
        os.path.join(package, "cpp_functions.py")
    ):
        why = f"causal-conv1d {facts.causal_conv1d.version} has no cpp_functions: it came in 1.5.1"
    else:
        return
    yield Cause(
        f"mamba_ssm {facts.mamba.version} sets the functions of causal_conv1d to None",
        why,
        commands.compiled(facts, "causal-conv1d"),
        served=True,
        compiles=True,
    )


@finds("strides", "strides … to be multiples of 8")
def _strides(facts: Facts) -> Iterator[Cause]:
    if (
        facts.mamba
        and facts.mamba.asks.bare_strides
        and facts.convolution.loads
        and facts.torch
        and facts.torch.cuda_available
    ):
        yield Cause(
            f"the Mamba2 of mamba_ssm {facts.mamba.version} fails for some sizes, such as a "
            "number of heads that is no multiple of 8",
            "it hands causal_conv1d_cuda the strides that it has; mamba-ssm 2.2.5 evens them out",
            commands.release(">=2.2.5"),
            served=True,
        )


@finds("no-causal-conv1d", "No module named 'causal_conv1d_cuda'")
def _no_causal_conv1d(facts: Facts) -> Iterator[Cause]:
    package, extension = facts.causal_conv1d, facts.convolution
    if package.path and not extension.path:
        yield Cause(
            f"causal_conv1d {package.version} imports causal_conv1d_cuda, which is not installed",
            "it was installed without compiling, or its extension is for another Python",
            commands.uninstall("causal-conv1d"),
            served=True,
        )
    elif facts.mamba and not package.path and requires(facts.mamba, "causal_conv1d"):
        yield Cause(
            f"mamba_ssm {facts.mamba.version} imports causal_conv1d, which is not installed",
            "this release cannot be imported without it",
            commands.compiled(facts, "causal-conv1d"),
            served=True,
            compiles=True,
        )


@finds("other-platform", "a wheel for another platform is installed")
def _other_platform(facts: Facts) -> Iterator[Cause]:
    platforms = {
        "selective_scan_cuda": facts.mamba.platforms if facts.mamba else (),
        "causal_conv1d_cuda": facts.causal_conv1d.platforms,
    }
    here = facts.machine.architecture
    for each in facts.extensions:
        fits = not platforms[each.name] or any(
            tag.endswith(("-any", here)) for tag in platforms[each.name]
        )
        if each.loads or (fits and not each.misfits):
            continue
        found = each.misfits or (f"the wheel's tags are {', '.join(platforms[each.name])}",)
        yield Cause(
            f"{each.name} is for another platform: {'; '.join(found)}",
            f"a wheel was chosen that is not for Python {facts.python.version} on {here}",
            commands.without(each, facts),
            served=True,
        )


@finds("missing-library", "libc10.so: cannot open shared object file")
def _missing_library(facts: Facts) -> Iterator[Cause]:
    for each in facts.extensions:
        if not each.error or "cannot open shared object file" not in each.error or each.misfits:
            continue
        if facts.torch and not facts.torch.error:
            yield Cause(
                f"{each.name} does not load: {each.error}",
                f"it was built for a torch or a CUDA that is not here: this is torch "
                f"{facts.torch.version}, for CUDA {facts.torch.cuda or 'none'}",
                commands.without(each, facts),
                served=True,
            )
        else:
            yield Cause(
                f"{each.name} does not load: {each.error}",
                "the library belongs to torch, which cannot be imported here",
                commands.torch(facts),
            )


@finds("extension-broken", "an extension ends the process, or cannot be imported")
def _extension_broken(facts: Facts) -> Iterator[Cause]:
    told = ("undefined symbol", "cannot open shared object file")
    for each in facts.extensions:
        if each.error and not any(words in each.error for words in told):
            unknown = each.error.startswith(NO_ANSWER) and not _stops(each, facts)
            yield Cause(
                f"{each.name} cannot be imported: {each.error}",
                BUSY if unknown else f"{each.path} does not fit this machine",
                commands.NOTHING if unknown else commands.without(each, facts),
                served=not unknown and not _stops(each, facts),
            )


@finds("no-kernel-image", "no kernel image is available for execution on the device")
def _kernels_of_an_extension(facts: Facts) -> Iterator[Cause]:
    seen = set()
    for backend in facts.backends:
        for passed in backend.passed_over:
            if "no kernel image" in passed.reason and passed.backend not in seen:
                seen.add(passed.backend)
                scan = backend.op == "selective_scan"
                extension = facts.scan if scan else facts.convolution
                yield Cause(
                    f"{extension.name} has no kernels for {backend.case['device']}",
                    "it was built for other GPUs than the one in this machine",
                    commands.without(extension, facts),
                    served=True,
                )


def _stops(extension: Extension, facts: Facts) -> bool:
    error = extension.error or ""
    # Where torch gives no answer either, nothing is known of what is imported after it.
    waited = error.startswith(NO_ANSWER) and (facts.torch is None or facts.torch.error is not None)
    return bool(STOPS.match(error)) and not waited


def _convolution_is_guarded(mamba: MambaSsm) -> bool:
    asks = any(module.split(".")[0] == "causal_conv1d" for module in mamba.asks.mentioned)
    return asks and not requires(mamba, "causal_conv1d")
