"""A machine of the tests' own, for the doctor to examine.

The interpreter sees the standard library, this repository and the folder ``site``. Torch and the
extensions are small modules that behave as a machine has them: a CUDA build that sees one GPU,
an extension that loads or does not.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import sysconfig
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

from packaging.requirements import Requirement

from jetson_mamba.cli.schema import DOCUMENTS
from jetson_mamba.installing.plan import plan
from jetson_mamba.installing.situation import Situation, Torch
from jetson_mamba.installing.tools import tool
from jetson_mamba.report.schema import schema
from tests import interpreters
from tools.releases import release_path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SCHEMA = schema("doctor", *DOCUMENTS["doctor"])
validate: Any = import_module("jsonschema").validate  # which has no types
# The report, and then what the findings would be if the startup file were there.
EXAMINE = (
    "import json, sys\n"
    "from dataclasses import asdict, replace\n"
    "from jetson_mamba.report import doctor, findings\n"
    "report = doctor.examine(sys.argv[1])\n"
    "served = replace(report.facts, hook=replace(report.facts.hook, active=True))\n"
    "served = [asdict(each) for each in findings.findings(served)]\n"
    "print(json.dumps([report.as_json(), served]))\n"
    "assert not {'torch', 'mamba_ssm', 'causal_conv1d'} & set(sys.modules)\n"
)
# What the doctor imports of the standard library, and a folder without packages.
LIBRARY = ("dataclasses", "importlib.metadata", "inspect", "json", "subprocess", "tempfile")
NO_PACKAGES = Path(__file__).resolve().parent
COMMANDS = ("enable", "install", "run")
STARTUP = "import jetson_mamba.startup; jetson_mamba.startup.main()\n"

TORCH = '''
"""Stands for a torch with CUDA: what the doctor asks, and ops that record nothing."""
import sys, types

__version__ = "2.5.0"


class Anything:
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args, **keywords):
        return self

    __getitem__ = __neg__ = __call__


class _C:
    _cuda_getArchFlags = staticmethod(lambda: "{architectures}")


class version:
    cuda, hip = {cuda!r}, None


class cuda:
    OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})
    is_initialized = staticmethod(lambda: False)
    is_available = staticmethod(lambda: {available})
    device_count = staticmethod(lambda: int({available}))
    get_device_properties = staticmethod(
        lambda index: types.SimpleNamespace(name="Orin", major=8, minor=7, total_memory=1 << 33)
    )


compiled_with_cxx11_abi = lambda: True
ones = Anything()
import jetson_mamba
ops = types.ModuleType("jetson_mamba.ops")
ops.causal_conv1d_fn = ops.selective_scan_fn = ops.triton_runs_on = Anything()
sys.modules["jetson_mamba.ops"] = ops
trial = types.ModuleType("jetson_mamba.report.trial")
trial.Failed = type("Failed", (Exception,), {})
trial.run = lambda: "a version"
import jetson_mamba.report
sys.modules["jetson_mamba.report.trial"] = jetson_mamba.report.trial = trial
'''


class Machine:
    """A machine with nothing on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "site"
        self.root = folder / "root"
        self.work = folder / "work"
        for each in (self.site, self.root, self.work, folder / "bin"):
            each.mkdir()
        (self.site / "pip").mkdir()
        (self.site / "pip" / "__init__.py").touch()
        self.path = [self.site, REPOSITORY]
        self.environment: dict[str, str] = {}
        self.findings_if_served: list[dict[str, Any]] = []

    def torch(
        self, *, cuda: str | None = "12.6", architectures: str = "sm_87", available: bool = True
    ) -> None:
        """A torch as it might be built."""
        text = TORCH.replace("{architectures}", architectures)
        text = text.replace("{cuda!r}", repr(cuda)).replace("{available}", str(available))
        self.package("torch", code=text)

    def torch_again(self, **built: Any) -> None:
        """Another torch in the place of the one that is there."""
        shutil.rmtree(self.site / "torch-1.0.dist-info")
        self.torch(**built)

    def append_to_torch(self, code: str) -> None:
        """Let the torch that is there run more code when it is imported."""
        with (self.site / "torch" / "__init__.py").open("a") as file:
            file.write(code)

    def real_torch(self) -> None:
        """The torch that these tests run on."""
        self.path.append(Path(sysconfig.get_path("purelib")))

    def package(self, name: str, version: str = "1.0", code: str = "") -> Path:
        """A package, on pip's record."""
        folder = self.site / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text(code or f"__version__ = {version!r}\n")
        self.record(name, version)
        return folder

    def record(self, name: str, version: str, tag: str = "py3-none-any") -> None:
        """What pip keeps of an installation."""
        folder = self.site / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        )
        (folder / "WHEEL").write_text(f"Wheel-Version: 1.0\nTag: {tag}\n")

    def mamba_ssm(self, version: str) -> None:
        """A published release, with nothing compiled."""
        (self.site / "mamba_ssm").symlink_to(release_path(version) / "mamba_ssm")
        self.record("mamba_ssm", version)

    def dependencies(self) -> None:
        """What mamba-ssm needs besides torch, all of which fits."""
        for name in ("einops", "huggingface_hub", "packaging"):
            self.package(name)
        self.package("triton", "3.6.0")
        generation = self.package("transformers", "4.39.0") / "generation"
        generation.mkdir()
        names = (
            "GreedySearchDecoderOnlyOutput, SampleDecoderOnlyOutput, GenerateDecoderOnlyOutput, "
            "TextStreamer = object, object, object, object\n"
        )
        (generation / "__init__.py").write_text(names)

    def causal_conv1d(self, version: str = "1.6.1") -> None:
        """The Python part of causal-conv1d."""
        folder = self.package("causal_conv1d", version)
        if version >= "1.5.1":
            (folder / "cpp_functions.py").touch()

    def extension(self, name: str, code: str = "") -> None:
        """A module in the place of a compiled one; by default it loads."""
        (self.site / f"{name}.py").write_text(dedent(code))

    def examine(self, *, hook: bool = False, first: str = "") -> dict[str, Any]:
        """The doctor's report, valid against the schema.

        ``hook`` is the startup file's work, ``first`` what else an interpreter does at its start.
        """
        code = (STARTUP if hook else "") + first + EXAMINE
        done = interpreters.run(
            ("-W", "error", "-c", code, str(self.root)),
            env={
                "PATH": str(self.folder / "bin"),
                "HOME": str(self.folder),
                "CUDA_HOME": str(self.root),
                "PYTHONPATH": os.pathsep.join(map(str, self.path)),
                "JETSON_MAMBA_CACHE": str(interpreters.copies()),
                "OMP_NUM_THREADS": "1",
                # Bytecode is known by its source's second and size: another torch may have both.
                "PYTHONDONTWRITEBYTECODE": "1",
                # Without site nothing says that this is an environment of the user's.
                "PIP_BREAK_SYSTEM_PACKAGES": "1",
                **self.environment,
            },
            cwd=self.work,
            timeout=120,
            modules=LIBRARY,
            bare=NO_PACKAGES,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        found: dict[str, Any]
        found, self.findings_if_served = json.loads(done.stdout)
        validate(found, SCHEMA)
        for finding in (*found["findings"], *self.findings_if_served):
            check_command(finding["command"])
        return found

    def findings(self, *, hook: bool = False, first: str = "") -> dict[str, dict[str, Any]]:
        """The findings by their symptoms."""
        found = self.examine(hook=hook, first=first)["findings"]
        return {each["symptom"]: each for each in found}


def check_command(command: str) -> None:
    """Fail for advice that is refused when it is typed: by pip's grammar or by the installer."""
    program, *words = shlex.split(command, comments=True) or [""]
    if program == "jetson-mamba":
        assert words[0] in COMMANDS, command
        if words[0] == "install":
            here = Situation(sys.version_info[:2], "x86_64", Torch("2.8.0"), {}, tool())
            for requirement in words[1:]:
                plan(here, requirement)
    elif words[:3] == ["-m", "pip", "install"]:
        for word in words[3 : words.index("--index-url") if "--index-url" in words else None]:
            if not word.startswith(("-", "/", "https://")):
                Requirement(word)


def healthy(machine: Machine, version: str = "2.3.2.post1") -> Machine:
    """Make a machine one on which everything fits and nothing is missing."""
    machine.torch()
    machine.dependencies()
    machine.mamba_ssm(version)
    machine.causal_conv1d()
    machine.extension("selective_scan_cuda")
    machine.extension("causal_conv1d_cuda")
    return machine
