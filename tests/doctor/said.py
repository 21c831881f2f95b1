"""What the doctor says of each change of a machine, in full: ``python -m tests.doctor.said``.

That writes it down in ``said.txt``, where a change of what is said to people is read as a change.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator
from unittest.mock import patch

from jetson_mamba.report.facts import Facts, Unserved
from jetson_mamba.report.findings import SYMPTOMS, findings
from jetson_mamba.report.findings.with_triton import PTXAS
from jetson_mamba.report.packages import Package
from jetson_mamba.report.status import Backend, PassedOver, Selected, Target
from tests.doctor.facts import FAILS, LIBRARY, MAMBA, NOT_THERE, changed, of_a_healthy_machine
from tests.doctor.test_findings import CHANGES

ACTIVE = {"active": True}
SAID = Path(__file__).with_name("said.txt")
FORK = replace(MAMBA, path="/fork/mamba_ssm", version=None, fork_parameters=("bimamba_type",))
SSD = Selected("ssd", "cuda", "JETSON_MAMBA_BACKEND")
NO_KERNELS = tuple(
    Backend(op, {"device": "cuda:0"}, "cuda", (PassedOver(name, "no kernel image is there"),))
    for op, name in (("selective_scan", "extension"), ("causal_conv1d", "package"))
)
REFUSED = Target("mamba_ssm.x", "not imported", None, "/site/mamba_ssm/x.py", 0, "unknown")
ABSENT = Package("causal_conv1d", None, None, ())
# Of those in :data:`CHANGES` each symptom is one; here are more ways to one of them.
MORE: tuple[dict[str, Any], ...] = (
    {"scan": NOT_THERE, "asks": {"scan_on_request": True}},
    {"scan": NOT_THERE, "machine__": {"cuda_toolkit": "11.4"}},
    {"scan": NOT_THERE, "mamba_ssm": (replace(MAMBA, distribution="2.2.4"),)},
    {"scan": NOT_THERE, "mamba_ssm": (replace(MAMBA, distribution=None),)},
    {"scan": LIBRARY, "torch__": {"cuda": None}},
    {"scan": LIBRARY, "torch": None},
    {"scan": FAILS, "torch": None},
    {"scan": {"loads": False, "error": "no answer within 300 s"}},
    {"scan": {"loads": False, "error": "OSError: x"}},
    {"causal_conv1d": ABSENT, "convolution": NOT_THERE},
    {"causal_conv1d": replace(ABSENT, version="1.4.0", path="/nowhere")},
    {
        "causal_conv1d": ABSENT,
        "convolution": NOT_THERE,
        "asks": {"required": {"causal_conv1d": ""}},
    },
    {"mamba_ssm": (replace(MAMBA, platforms=("cp310-linux_x86_64",)),), "scan": NOT_THERE},
    {"mamba_ssm": (MAMBA, FORK)},
    {"mamba_ssm": (FORK, MAMBA)},
    {"backends": NO_KERNELS},
    {"backends_error": "CUDA out of memory"},
    {"backends_error": "ImportError: jetson_mamba.x"},
    {"backends_error": "the process ended with signal SIGSEGV"},
    {"backends_error": "CUDA error: no kernel image"},
    {"backends_error": "no answer in time"},
    {"backends_error": "the process ended", "scan": {"loads": False, "error": "SystemExit: 1"}},
    {"selections": (SSD,), "unserved": (Unserved("ssd", "cuda:0", "NVRTC is not installed"),)},
    {"trial_error": "no answer within 300 s"},
    {"trial_error": "the process ended", "scan": {"loads": False, "error": "SystemExit: 1"}},
    {"trial_error": "x", "hook__": {"mode": "off"}},
    {"torch": None, "machine__": {"jetpack": None}},
    {"torch__": {"error": "no answer within 300 s"}},
    {"torch__": {"error": "ImportError: x", "version": None, "path": None}},
    {"torch__": {"cuda_available": False}, "scan": FAILS},
    {"torch__": {"cuda_available": False}, "scan": FAILS, "convolution": FAILS},
    {"torch__": {"cuda_available": False}, "machine__": {"board": None}},
    {"triton__": {"path": None}, "torch__": {"cuda_available": False}},
    {"triton_launch_error": "ptxas fatal", "machine__": {"ptxas": "/cuda/bin/ptxas"}},
    {"hook__": {"refused": {"mamba_ssm.x": "unknown"}, "targets": (REFUSED,)}},
    {"hook__": {"refused": {"mamba_ssm.x": "jetson_mamba is not installed whole (x)"}}},
    {"asks": {"required": {"einops": "a.py", "transformers.x": "b.py"}}, "transformers": ABSENT},
)


# What the machine has by its names, whatever machine this runs on.
HERE: dict[str, Any] = {
    "jetson_mamba.advice.pip": lambda: "pip",
    "jetson_mamba.advice.as_root": lambda: "sudo ",
    "jetson_mamba.advice._python": lambda: "python",
    "jetson_mamba.advice.managed": lambda: None,
    "jetson_mamba.advice.again": lambda: "install it again",
    "jetson_mamba.releases.instead.replacement": lambda path: path and "2.3.1",
    "jetson_mamba.report.installed.find": lambda *_: None,
    "jetson_mamba.report.findings.the_hook.startup_folders": list,
    "shutil.which": lambda name: name,
    "sys.version_info": (3, 10, 12),
}


def named(changes: dict[str, Any]) -> str:
    """A heading for what is changed."""
    texts = [repr(each) for each in changes.values()]
    short = [text if len(text) < 60 and "frozenset" not in text else "..." for text in texts]
    return ", ".join(f"{name} {text}" for name, text in zip(changes, short)) or "nothing"


def told(facts: Facts, folder: str) -> list[tuple[str, dict[str, str]]]:
    """What is found, by symptom: what is not empty, and of the messages those of this case."""
    found = []
    for finding in findings(facts):
        fields = {
            name: str(value).replace(folder, "/site")
            for name, value in dataclasses.asdict(finding).items()
            if value not in ("", False, SYMPTOMS[finding.symptom], finding.symptom)
        }
        found.append((finding.symptom, fields))
    return found


def lines_of(changes: dict[str, Any], healthy: Facts, folder: str) -> Iterator[str]:
    """What is found of a machine that is changed, and what is said otherwise with the hook."""
    yield f"\n{named(changes).replace(folder, '/site')}"
    facts = changed(healthy, **changes)
    plain, served = (told(each, folder) for each in (facts, changed(facts, hook__=ACTIVE)))
    assert [symptom for symptom, _ in plain] == [symptom for symptom, _ in served]
    for (symptom, fields), (_, with_the_hook) in zip(plain, served):
        yield f"  {symptom}"
        yield from (f"    {name}: {text}" for name, text in fields.items())
        for name in dict.fromkeys((*fields, *with_the_hook)):
            if fields.get(name) != with_the_hook.get(name):
                yield f"    {name} with the hook: {with_the_hook.get(name, '')}".rstrip()


def everything() -> str:
    """All of it, as it is on a machine on which each tool is called by its name."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        healthy = of_a_healthy_machine(Path(folder))
        for name, value in {**HERE, "os.getcwd": lambda: folder}.items():
            stack.enter_context(patch(name, value))
        stack.enter_context(patch.dict(os.environ, {"CXX": "c++"}))
        os.environ.pop(PTXAS, None)
        given = (*(changes for changes, _ in CHANGES), *MORE)
        lines = [line for changes in given for line in lines_of(changes, healthy, folder)]
    return "\n".join(lines).lstrip() + "\n"


if __name__ == "__main__":
    SAID.write_text(everything(), encoding="utf-8")
