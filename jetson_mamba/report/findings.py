"""What is wrong on a machine, each thing found by its cause, with the command that mends it.

The symptoms are those that people report, and ``SYMPTOMS`` holds the words that they see. A
cause that the hook gets around where it is active is still a finding, marked as cured: its
command then removes the cause.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from typing import Callable, Iterator, NamedTuple

from jetson_mamba import advice, triton_there
from jetson_mamba.report import installed
from jetson_mamba.report.extensions import Extension
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.hook import NOT_WHOLE
from jetson_mamba.report.packages import MambaSsm
from jetson_mamba.report.torch_build import lacks_kernels_for
from jetson_mamba.startup.files import folders as startup_folders

SYMPTOMS = {
    "undefined-symbol": "undefined symbol: _ZN3c10…",
    "no-selective-scan": "No module named 'selective_scan_cuda'",
    "call-form": "causal_conv1d_fwd(): incompatible function arguments",
    "no-kernel-image": "no kernel image is available for execution on the device",
    "two-mamba-ssm": "unexpected keyword argument 'bimamba_type', 'bimamba' or 'nslices'",
    "no-nvcc": "name 'bare_metal_version' is not defined",
    "none-called": "'NoneType' object is not callable, or has no attribute 'causal_conv1d_fwd'",
    "no-gpu": "Expected u.is_cuda() to be true",
    "no-triton": "No module named 'triton', or it has no attribute 'set_allocator'",
    "strides": "strides … to be multiples of 8",
    "no-causal-conv1d": "No module named 'causal_conv1d_cuda'",
    "other-platform": "a wheel for another platform is installed",
    "missing-library": "libc10.so: cannot open shared object file",
}
OTHERS = {
    "transformers-names": "cannot import name 'GreedySearchDecoderOnlyOutput'",
    "triton-log1p": "module 'triton.language.math' has no attribute 'log1p'",
    "incomplete-release": "No module named 'mamba_ssm.ops.triton.k_activations'",
    "no-dependency": "No module named 'einops', 'torch' …",
    "torch-broken": "torch cannot be imported",
    "extension-broken": "an extension ends the process, or cannot be imported",
    "backends-broken": "no backend of an op works",
    "no-nvrtc": "NVRTC is not installed, or cuda-core 1.0 or later is not installed",
    "kernels-broken": "causal_conv1d or selective_scan: installed but not working: 'cuda'",
    "backend-named": "the backend '…', asked for by JETSON_MAMBA_BACKEND, cannot serve",
    "copy-refused": "stays as it is installed: …",
    "bypassed": "it was imported before jetson_mamba was activated",
}
# Modules that mamba_ssm imports, by the name that pip knows.
LIGHT = {
    "einops": "einops",
    "transformers": "transformers",
    "huggingface_hub": "huggingface-hub",
    "packaging": "packaging",
}
EXTENSION_OF = {"selective_scan_cuda": "mamba-ssm", "causal_conv1d_cuda": "causal-conv1d"}
# The release of mamba-ssm that calls an extension of so many parameters as it wants to be called.
RELEASE_FOR_PARAMETERS = {4: "==1.0.1", 5: "==1.1.4", 7: "==2.2.4", 8: ">=2.2.5"}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    ``symptom`` is its name in ``SYMPTOMS`` or ``OTHERS``, ``message`` the words that people
    see. ``what``, ``why`` and ``command`` are a line each. ``cured`` says that the hook, which
    is active, gets around it.
    """

    symptom: str
    message: str
    what: str
    why: str
    command: str
    cured: bool


class Cause(NamedTuple):
    """What a detector has found. ``command`` removes the cause; ``served`` says that the hook
    gets around it where it is active.
    """

    what: str
    why: str
    command: str
    served: bool = False


def findings(facts: Facts) -> tuple[Finding, ...]:
    """Everything that is wrong, in the order of the tables above."""
    found = []
    for symptom, message in {**SYMPTOMS, **OTHERS}.items():
        for cause in _DETECTORS[symptom](facts):
            cured = cause.served and facts.served
            command = cause.command
            if cause.served and not facts.hook.active:
                off = facts.hook.mode == "off"
                command = "unset JETSON_MAMBA" if off else "jetson-mamba enable"
            found.append(Finding(symptom, message, cause.what, cause.why, command, cured))
    return tuple(found)


def _undefined_symbol(facts: Facts) -> Iterator[Cause]:
    for each in facts.extensions:
        if each.error and "undefined symbol" in each.error:
            torch = facts.torch.version if facts.torch else "none"
            yield Cause(
                f"{each.name} does not load: {each.error}",
                f"it was built for another torch than the one that is installed ({torch})",
                _without(each, facts),
                served=True,
            )


def _no_selective_scan(facts: Facts) -> Iterator[Cause]:
    if facts.mamba and "selective_scan_cuda" in facts.mamba.asks.mentioned and not facts.scan.path:
        yield Cause(
            f"mamba_ssm {facts.mamba.version} imports selective_scan_cuda, which is not installed",
            "it was installed without compiling, or its extension is for another Python",
            f"{_pip(facts)} install --no-build-isolation --no-deps --force-reinstall mamba-ssm",
            served=True,
        )


def _call_form(facts: Facts) -> Iterator[Cause]:
    for name, counts in facts.mamba.asks.calls.items() if facts.mamba else ():
        takes = facts.convolution.parameters.get(name)
        if takes is None or counts == (takes,):
            continue
        forward = facts.convolution.parameters.get("causal_conv1d_fwd", 0)
        fitting = RELEASE_FOR_PARAMETERS.get(forward, "")
        passes = " and ".join(map(str, counts))
        yield Cause(
            f"mamba_ssm passes {name} {passes} arguments, and it takes {takes}",
            "mamba-ssm and causal-conv1d are of releases that do not fit together",
            f"jetson-mamba install 'mamba-ssm{fitting}'",
            served=True,
        )
        return


def _no_kernel_image(facts: Facts) -> Iterator[Cause]:
    for gpu in facts.machine.gpus:
        if (
            facts.torch
            and facts.torch.cuda
            and gpu.capability
            and lacks_kernels_for(facts.torch, gpu.capability)
        ):
            held = ", ".join(facts.torch.architectures)
            yield Cause(
                f"torch {facts.torch.version} has no kernels for the {gpu.name}, of compute "
                f"capability {gpu.capability}",
                f"it was built for {held}",
                _install_torch(facts),
            )
            break
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
                    _without(extension, facts),
                    served=True,
                )


def _two_mamba_ssm(facts: Facts) -> Iterator[Cause]:
    if len(facts.mamba_ssm) < 2:
        return
    winner, *others = facts.mamba_ssm
    hidden = next((each for each in others if each.fork_parameters), others[0])
    fork_loses = bool(hidden.fork_parameters) and not winner.fork_parameters
    yield Cause(
        f"{winner.path} {_kind(winner)} hides {hidden.path} {_kind(hidden)}",
        "two packages named mamba_ssm are on the path, and code for one of them gets the other",
        _remove(winner if fork_loses else hidden, facts),
    )


def _no_nvcc(facts: Facts) -> Iterator[Cause]:
    wanted = facts.machine.gpus or (facts.torch and facts.torch.cuda)
    if wanted and not facts.machine.nvcc and not facts.mamba:
        yield Cause(
            "mamba-ssm is not installed, and there is no nvcc to compile it with",
            "its setup needs the CUDA toolkit, which is not in CUDA_HOME, on PATH, or in "
            "/usr/local/cuda",
            "jetson-mamba install",
        )


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
        f"{_pip(facts)} install --no-build-isolation --no-deps --force-reinstall causal-conv1d",
        served=True,
    )


def _no_gpu(facts: Facts) -> Iterator[Cause]:
    if not facts.mamba or not facts.torch or facts.torch.error or facts.torch.cuda_available:
        return
    if facts.scan.loads or facts.convolution.loads:
        reason = "this torch was built without CUDA"
        if facts.torch.cuda:
            reason = f"torch {facts.torch.version} sees no GPU"
        yield Cause(
            "tensors stay on the CPU, and the extensions take only those on a GPU",
            reason,
            _without(facts.scan if facts.scan.loads else facts.convolution, facts),
            served=True,
        )


def _no_triton(facts: Facts) -> Iterator[Cause]:
    mamba = facts.mamba
    if not mamba or not _requires(mamba, "triton"):
        return
    version = facts.triton.version or ""
    too_old = mamba.asks.sets_allocator and triton_there.numbers(version) < triton_there.ALLOCATES
    if facts.triton.path and not facts.triton_error and too_old:
        yield Cause(
            f"mamba_ssm {mamba.version} sets an allocator of Triton, which {version} does not let "
            "it on every machine",
            "its kernels for Mamba-3 need a later one, and are imported with it",
            f"{_pip(facts)} install --no-deps --upgrade {triton_there.REQUIREMENT}",
            served=True,
        )
    if facts.triton.path and not facts.triton_error:
        return
    old = sys.version_info < (3, 10) and facts.machine.architecture == "aarch64"
    again = "--force-reinstall " if facts.triton.path else ""
    requirement = shlex.quote(installed.triton_requirement(facts.path))
    yield Cause(
        f"mamba_ssm {mamba.version} imports triton, which "
        + (f"fails: {facts.triton_error}" if facts.triton.path else "is not installed"),
        "on aarch64 Triton has wheels for Python 3.10 and later; mamba-ssm 1.2 needs none"
        if old
        else "torch does not bring Triton on every platform, and mamba-ssm 2 imports it",
        "jetson-mamba install 'mamba-ssm==1.2.2'"
        if old
        else f"{_pip(facts)} install --no-deps {again}{requirement}",
        served=True,
    )


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
            "jetson-mamba install 'mamba-ssm>=2.2.5'",
            served=True,
        )


def _no_causal_conv1d(facts: Facts) -> Iterator[Cause]:
    package, extension = facts.causal_conv1d, facts.convolution
    if package.path and not extension.path:
        yield Cause(
            f"causal_conv1d {package.version} imports causal_conv1d_cuda, which is not installed",
            "it was installed without compiling, or its extension is for another Python",
            f"{_pip(facts)} uninstall --yes causal-conv1d",
            served=True,
        )
    elif facts.mamba and not package.path and _requires(facts.mamba, "causal_conv1d"):
        yield Cause(
            f"mamba_ssm {facts.mamba.version} imports causal_conv1d, which is not installed",
            "this release cannot be imported without it",
            f"{_pip(facts)} install --no-build-isolation --no-deps causal-conv1d",
            served=True,
        )


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
            _without(each, facts),
            served=True,
        )


def _missing_library(facts: Facts) -> Iterator[Cause]:
    for each in facts.extensions:
        if not each.error or "cannot open shared object file" not in each.error or each.misfits:
            continue
        if facts.torch and not facts.torch.error:
            yield Cause(
                f"{each.name} does not load: {each.error}",
                f"it was built for a torch or a CUDA that is not here: this is torch "
                f"{facts.torch.version}, for CUDA {facts.torch.cuda or 'none'}",
                _without(each, facts),
                served=True,
            )
        else:
            yield Cause(
                f"{each.name} does not load: {each.error}",
                "the library belongs to torch, which cannot be imported here",
                _install_torch(facts),
            )


def _transformers_names(facts: Facts) -> Iterator[Cause]:
    if not facts.mamba or not facts.transformers.path:
        return
    generation = os.path.join(facts.transformers.path, "generation", "__init__.py")
    try:
        with open(generation, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return
    gone = [name for name in facts.mamba.asks.generation_names if name not in text]
    if gone:
        yield Cause(
            f"transformers {facts.transformers.version} has no {', '.join(gone)}",
            f"mamba_ssm {facts.mamba.version} is older, and imports it",
            "jetson-mamba install 'mamba-ssm>=2.3.0'",
            served=True,
        )


def _triton_log1p(facts: Facts) -> Iterator[Cause]:
    if (
        facts.mamba
        and facts.mamba.asks.triton_2_only
        and facts.torch
        and facts.torch.cuda_available
        and (facts.triton.version or "").split(".")[0] not in ("", "2")
    ):
        yield Cause(
            f"the kernels of mamba_ssm {facts.mamba.version} do not compile with Triton "
            f"{facts.triton.version}",
            "they use tl.math.log1p, which Triton 3 does not have",
            "jetson-mamba install 'mamba-ssm>=2.1.0'",
        )


def _incomplete_release(facts: Facts) -> Iterator[Cause]:
    if not facts.mamba:
        return
    strange = [
        module
        for module in facts.mamba.asks.required
        if module.split(".")[0] == "src"  # a module of the authors' checkout
    ]
    missing = [*facts.mamba.asks.missing, *strange]
    if missing:
        yield Cause(
            f"mamba_ssm {facts.mamba.version} imports {', '.join(missing)}, which it does not have",
            "it was published with files missing (2.0.0 to 2.0.2), or is half uninstalled",
            "jetson-mamba install",
        )


def _no_dependency(facts: Facts) -> Iterator[Cause]:
    if not facts.mamba:
        return
    if not facts.torch:
        yield Cause("torch is not installed", "mamba_ssm runs on it", _install_torch(facts))
    for module, name in LIGHT.items():
        if _requires(facts.mamba, module) and installed.find(module, facts.path) is None:
            yield Cause(
                f"{name} is not installed",
                f"mamba_ssm {facts.mamba.version} imports it",
                f"{_pip(facts)} install {name}",
            )


def _torch_broken(facts: Facts) -> Iterator[Cause]:
    if facts.torch and facts.torch.error:
        yield Cause(
            f"torch {facts.torch.version or ''} does not work: {facts.torch.error}",
            f"it is installed in {os.path.dirname(facts.torch.path or '')}",
            _install_torch(facts),
        )


def _extension_broken(facts: Facts) -> Iterator[Cause]:
    told = ("undefined symbol", "cannot open shared object file")
    for each in facts.extensions:
        if each.error and not any(words in each.error for words in told):
            yield Cause(
                f"{each.name} cannot be imported: {each.error}",
                f"{each.path} does not fit this machine",
                _without(each, facts),
                served=not each.error.startswith("the process ended"),
            )


def _backends_broken(facts: Facts) -> Iterator[Cause]:
    if facts.backends_error:
        yield Cause(
            f"the ops cannot be tried: {facts.backends_error}",
            "an extension, torch, or this package does not work here",
            advice.again() or f"{_pip(facts)} check",
        )


def _no_nvrtc(facts: Facts) -> Iterator[Cause]:
    reasons = [reason for reason in _kernels_do_not_run(facts) if "not installed" in reason]
    extra = _kernels_extra(facts)
    if reasons and extra:
        yield Cause(
            f"the CUDA kernels cannot be compiled: {reasons[0]}",
            "they are compiled for the GPU at their first use, and PyTorch's functions, which are "
            "many times slower, run in their place",
            f"{_pip(facts)} install {extra}",
        )


def _kernels_broken(facts: Facts) -> Iterator[Cause]:
    reasons = [reason for reason in _kernels_do_not_run(facts) if "not installed" not in reason]
    extra = _kernels_extra(facts)
    if reasons and extra and facts.torch:
        yield Cause(
            f"the CUDA kernels do not run: {reasons[0]}",
            f"the NVRTC or cuda-core that is installed does not fit the GPU, its driver, or torch "
            f"for CUDA {facts.torch.cuda}",
            f"{_pip(facts)} install --upgrade --upgrade-strategy eager {extra}",
        )


def _kernels_do_not_run(facts: Facts) -> list[str]:
    """Why calls on a GPU are not served by the project's kernels where nothing before them is."""
    passed = [
        each.reason
        for row in facts.backends
        if row.case["device"].startswith("cuda")
        for each in row.passed_over
        if each.backend == "cuda"
    ]
    named = {each.op for each in facts.selections if each.backend == "cuda"}
    return passed + [
        each.reason
        for each in facts.unserved
        if each.device.startswith("cuda") and each.op in named
    ]


def _kernels_extra(facts: Facts) -> str | None:
    """The requirement that brings NVRTC for torch's CUDA; None where there is none."""
    major = ((facts.torch and facts.torch.cuda) or "").partition(".")[0]
    if major not in ("12", "13") or sys.version_info < (3, 10):  # which cuda-core needs
        return None
    return f"'jetson-mamba[cuda{major}]'"


def _backend_named(facts: Facts) -> Iterator[Cause]:
    for each in facts.selections:
        reasons = [row.reason for row in facts.unserved if row.op == each.op]
        if reasons and not any(row.op == each.op for row in facts.backends):
            yield Cause(
                f"every call of {each.op} fails: {each.asked_by} names the backend "
                f"'{each.backend}', which serves it on no device here",
                reasons[-1],
                f"unset {each.asked_by}",
            )
    if facts.selection_ignored:
        yield Cause(
            facts.selection_ignored,
            "it names an op or a backend that there is not",
            "unset JETSON_MAMBA_BACKEND",
        )


def _copy_refused(facts: Facts) -> Iterator[Cause]:
    paths = {target.name: target.path for target in facts.hook.targets}
    off = "export JETSON_MAMBA=off"
    for target, reason in facts.hook.refused.items():
        what = f"{target} stays as it is installed: {reason}"
        if reason.startswith(NOT_WHOLE):
            yield Cause(what, "files of this package are missing", advice.again() or off)
            continue
        release = advice.replacement(paths.get(target))
        yield Cause(
            what,
            f"the text of this mamba_ssm, {paths.get(target)}, is not one that is understood",
            f"jetson-mamba install mamba-ssm=={release}" if release else off,
        )


def _bypassed(facts: Facts) -> Iterator[Cause]:
    for target in facts.hook.too_late:
        starter = _startup_file_that_mentions("mamba_ssm")
        yield Cause(
            f"{target} is imported at interpreter start, before the hook is there",
            f"{starter} imports it" if starter else "another startup file imports it",
            _aside(starter) if starter else "python -X importtime -c pass",
        )
    if facts.hook.taken_by:
        yield Cause(
            f"another import hook takes the targets first: {facts.hook.taken_by}",
            "it stands before this package's finder on sys.meta_path",
            "jetson-mamba run SCRIPT",
        )


def _without(extension: Extension, facts: Facts) -> str:
    """The command that takes an extension away, which leaves its package working."""
    if extension.name == "selective_scan_cuda":
        version = facts.mamba.distribution if facts.mamba else None
        return f"jetson-mamba install mamba-ssm{f'=={version}' if version else ''}"
    return f"{_pip(facts)} uninstall --yes causal-conv1d"


def _pip(facts: Facts) -> str:
    return f"{shlex.quote(facts.python.executable)} -m pip"


def _install_torch(facts: Facts) -> str:
    if facts.machine.l4t:
        wheel = f"TORCH-WHEEL-FOR-JETPACK-{facts.machine.jetpack}.whl"
        return f"{_pip(facts)} install --force-reinstall {wheel}"
    return f"{_pip(facts)} install --force-reinstall torch"


def _requires(mamba: MambaSsm, name: str) -> bool:
    return any(module.split(".")[0] == name for module in mamba.asks.required)


def _convolution_is_guarded(mamba: MambaSsm) -> bool:
    asks = any(module.split(".")[0] == "causal_conv1d" for module in mamba.asks.mentioned)
    return asks and not _requires(mamba, "causal_conv1d")


def _kind(mamba: MambaSsm) -> str:
    if mamba.fork_parameters:
        return f"(a fork, with {', '.join(mamba.fork_parameters)})"
    return f"({mamba.version or 'no version'})"


def _remove(mamba: MambaSsm, facts: Facts) -> str:
    first = next(iter(installed.distributions("mamba-ssm", facts.path)), None)
    if first and first.folder == os.path.realpath(os.path.dirname(mamba.path)):
        return f"{_pip(facts)} uninstall --yes mamba-ssm"
    return _aside(mamba.path)


def _aside(path: str) -> str:
    return f"mv {shlex.quote(path)} {shlex.quote(path + '.aside')}"


def _startup_file_that_mentions(word: str) -> str | None:
    for folder in startup_folders():
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            path = os.path.join(folder, name)
            if name.endswith(".pth") and not name.startswith("jetson_mamba"):
                with open(path, encoding="utf-8", errors="replace") as file:
                    if word in file.read():
                        return path
    return None


_DETECTORS: dict[str, Callable[[Facts], Iterator[Cause]]] = {
    "undefined-symbol": _undefined_symbol,
    "no-selective-scan": _no_selective_scan,
    "call-form": _call_form,
    "no-kernel-image": _no_kernel_image,
    "two-mamba-ssm": _two_mamba_ssm,
    "no-nvcc": _no_nvcc,
    "none-called": _none_called,
    "no-gpu": _no_gpu,
    "no-triton": _no_triton,
    "strides": _strides,
    "no-causal-conv1d": _no_causal_conv1d,
    "other-platform": _other_platform,
    "missing-library": _missing_library,
    "transformers-names": _transformers_names,
    "triton-log1p": _triton_log1p,
    "incomplete-release": _incomplete_release,
    "no-dependency": _no_dependency,
    "torch-broken": _torch_broken,
    "extension-broken": _extension_broken,
    "backends-broken": _backends_broken,
    "no-nvrtc": _no_nvrtc,
    "kernels-broken": _kernels_broken,
    "backend-named": _backend_named,
    "copy-refused": _copy_refused,
    "bypassed": _bypassed,
}
