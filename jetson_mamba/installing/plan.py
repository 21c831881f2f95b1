"""Works out what to install from what is there. Nothing is asked and nothing is done here."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from jetson_mamba.errors import CannotRun
from jetson_mamba.installing import environments
from jetson_mamba.installing.situation import Situation, Torch
from jetson_mamba.releases import get_torch, needed, together
from jetson_mamba.releases.versions import allows, at_least, is_specifier, key
from jetson_mamba.report.trial import BUSY, NO_ANSWER

REQUIREMENT = re.compile(r"mamba[-_.]ssm\s*(?P<specifier>[^;@\[\]]*)", re.IGNORECASE)
WITHOUT_COMPILING = {"MAMBA_SKIP_CUDA_BUILD": "TRUE", "MAMBA_FORCE_BUILD": "TRUE"}
# Kept at the version that is there, as torch is, for whoever else was built beside them.
HELD = ("numpy", "pydantic", "triton")


@dataclass(frozen=True)
class Choice:
    """A row of what is decided: a package, what is there of it, what will be, and why."""

    package: str
    found: str | None
    then: str | None
    why: str


@dataclass(frozen=True)
class Outcome:
    """What was chosen, what was done, and what came of it, as texts."""

    requirement: str
    torch: str | None
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]
    packages: tuple[str, ...]
    commands: tuple[str, ...]
    installed: str | None
    failure: str | None


@dataclass(frozen=True)
class Plan:
    """What to do.

    ``bring`` are the requirements of what is missing or does not fit, ``held`` those that keep
    what is there, and ``optional`` what is tried for and done without where there is none.
    ``mamba`` is the requirement that is built, None where the one that is there stays. ``notes``
    are sentences about what is not the installer's to change.
    """

    requirement: str
    torch: Torch
    choices: tuple[Choice, ...]
    bring: tuple[str, ...]
    held: tuple[str, ...]
    optional: tuple[str, ...]
    mamba: str | None
    notes: tuple[str, ...] = ()


def plan(here: Situation, requirement: str = "mamba-ssm") -> Plan:
    """What installs a requirement such as "mamba-ssm==2.2.4".

    Raises :class:`CannotRun` for a requirement of something else or one that cannot work here,
    without a torch that works, and where nothing may be installed.
    """
    match = REQUIREMENT.fullmatch(requirement.strip())
    specifier = match["specifier"].strip() if match else ""
    if match is None or not is_specifier(specifier):
        raise CannotRun(
            f"{requirement}: expected mamba-ssm, or mamba-ssm and a version such as "
            "mamba-ssm==2.2.4"
        )
    torch = _torch(here)
    release, stays = _release(here, specifier)
    known = release.then if release.then != specifier else None
    chooser = _Chooser(here, torch, known or together.NEWEST)
    chooser.choose(release)
    named = f"mamba-ssm=={known}" if known else f"mamba-ssm{specifier}"
    build = None if stays else named
    if build:
        chooser.for_the_build()
    chooser.what_is_imported()
    chooser.triton()
    if here.managed and (build or chooser.bring):
        raise CannotRun(environments.own(here.managed))
    if here.tool is None and (build or chooser.bring):
        raise CannotRun(environments.without_pip())
    return Plan(
        named,
        torch,
        tuple(chooser.choices),
        tuple(chooser.bring),
        tuple(chooser.held()),
        tuple(chooser.optional),
        build,
        tuple(chooser.notes),
    )


def _torch(here: Situation) -> Torch:
    jetpack = here.board.jetpack if here.board else None
    if here.torch is None:
        raise CannotRun(
            "torch is not installed, and mamba-ssm cannot be installed without it; install the "
            f"one for this machine: {get_torch.command(jetpack)}"
        )
    if here.torch.error and here.torch.error.startswith(NO_ANSWER):
        raise CannotRun(f"torch {here.torch.version} gives {here.torch.error}: {BUSY}")
    if here.torch.error:
        mends = get_torch.instead_of_a_broken_one(here.torch.error, jetpack)
        raise CannotRun(
            f"torch {here.torch.version} cannot be imported ({here.torch.error}); what mends it "
            f"here: {mends}"
        )
    return here.torch


def _release(here: Situation, specifier: str) -> tuple[Choice, bool]:
    """The release of mamba-ssm, and whether that is the one that is there, which stays.

    ``then`` is what was asked for where no release is known that it allows; it is obeyed.
    """
    found = here.packages.get("mamba-ssm")

    def chosen(then: str | None, why: str, stays: bool = False) -> tuple[Choice, bool]:
        return Choice("mamba-ssm", found, then, why), stays

    if not specifier and found is not None:
        strange = found not in together.MAMBA_SSM
        if here.works:
            return chosen(found, "is there, and runs a block of each kind", True)
        if strange:
            return chosen(found, "is there, and is no release that is known: it stays", True)
        if _cannot(here, found) is None and _beside_triton(here, found) is None:
            return chosen(found, "is there and fails: built anew")
    asked = [each for each in together.MAMBA_SSM if allows(specifier, each)]
    if not asked:
        return chosen(specifier, "is asked for")
    able = [each for each in asked if _cannot(here, each) is None]
    if not able:
        other = together.newest(here.python, here.packages.get("triton"))
        raise CannotRun(
            f"mamba-ssm{specifier} cannot work here: {_cannot(here, asked[-1])}; this can: "
            f"jetson-mamba install mamba-ssm=={other}"
        )
    best = _best(able, here)
    against = _beside_triton(here, best)
    if against:
        return chosen(best, f"is asked for; {against}: its Triton kernels are not used")
    newest = asked[-1]
    if best == newest:
        return chosen(best, "the newest" if not specifier else "is asked for")
    return chosen(best, f"not {newest}: {_cannot(here, newest) or _beside_triton(here, newest)}")


def _best(releases: list[str], here: Situation) -> str:
    together_with = [each for each in releases if _beside_triton(here, each) is None]
    return max(together_with or releases, key=key)


def _cannot(here: Situation, release: str) -> str | None:
    """Why a release cannot be installed or imported here."""
    return together.cannot_be_imported(release, here.python)


def _beside_triton(here: Situation, release: str) -> str | None:
    """Why a release does not go with the Triton that is installed."""
    triton = here.packages.get("triton")
    if not triton or together.goes_with_triton(release, triton):
        return None
    oldest = together.oldest_triton_for(release)
    if oldest and not at_least(triton, *oldest):
        needs = ".".join(map(str, oldest))
        return f"{release} needs Triton {needs} or later, and {triton} is here"
    return f"the kernels of {release} are for Triton 2, and {triton} is here"


class _Chooser:
    """Collects the choices, and what they come to."""

    def __init__(self, here: Situation, torch: Torch, release: str) -> None:
        self.here, self.torch, self.release = here, torch, release
        self.choices: list[Choice] = []
        self.bring: list[str] = []
        self.optional: list[str] = []
        self.notes: list[str] = []
        self._changed: set[str] = set()

    def choose(self, choice: Choice) -> None:
        """Add a row, after one for torch."""
        self.choices.append(
            Choice("torch", self.torch.version or "unknown", None, self._about_torch())
        )
        self.choices.append(choice)

    def for_the_build(self) -> None:
        """What building a source distribution imports."""
        bounds = together.setuptools_for(self.release, self.torch.version)
        self._need("setuptools", bounds, f"builds mamba-ssm {self.release}")
        for name in ("wheel", "packaging"):
            self._need(name, "", "builds mamba-ssm")

    def what_is_imported(self) -> None:
        """What mamba_ssm imports besides."""
        self._need("einops", "", "mamba_ssm imports it")
        tool = self.here.tool
        pip = tool.version if tool is not None and tool.kind == "pip" else None
        old = needed.old_pip(pip, self.here.architecture)
        bound = together.transformers_for(self.torch.version)
        why = "mamba_ssm generates text with it"
        if bound:
            why += f"; others switch torch {self.torch.version} off"
        found = self.here.packages.get("transformers")
        if found is None or (found and not allows(bound, found)):
            brought, *with_it = needed.requirements("transformers", self.torch.version, old)
            self._need("transformers", brought[len("transformers") :], why)
            for hub in with_it:
                self._need("huggingface-hub", hub[len("huggingface-hub") :], "later ones compile")
            # What it brings: not named here, since it knows which it needs.
            if "numpy" not in self.here.packages:
                numpy = together.numpy_for(self.torch.version)
                if numpy:
                    self._need("numpy", numpy, f"torch {self.torch.version} was built for it")
        else:
            self._need("huggingface-hub", "", "mamba_ssm imports it")
        self._need("packaging", "", "mamba_ssm imports it")

    def triton(self) -> None:
        """The Triton that torch was made beside, where it has a GPU to serve."""
        found = self.here.packages.get("triton")
        if found is not None:
            self.choices.append(Choice("triton", found or "unknown", None, "is there"))
            return
        wanted = self.torch.triton or together.triton_for(self.torch.version)
        if not self.torch.cuda:
            why, wanted = "torch has no CUDA, and this package's operations need none", None
        elif not wanted:
            why = "none is known for this torch; this package's operations serve"
        else:
            why = "torch was built beside it; without one this package's operations serve"
        if wanted:
            self.optional.append(f"triton=={wanted}")
        self.choices.append(
            Choice("triton", None, f"{wanted}, if there is one" if wanted else None, why)
        )

    def held(self) -> list[str]:
        """The requirements that keep what is there."""
        kept = [("torch", self.torch.version)] if self.torch.recorded else []
        kept += [(name, self.here.packages.get(name, "")) for name in HELD]
        return [f"{name}=={version}" for name, version in kept if version]

    def _about_torch(self) -> str:
        jetpack = self.here.board.jetpack if self.here.board else None
        if not jetpack or self.torch.gpu:
            return "stays as it is"
        what = "sees no GPU" if self.torch.cuda else "is built without CUDA"
        self.notes.append(
            f"This torch {what}, so everything runs on the CPU. The one for this board: "
            f"{get_torch.command(jetpack, again=True)}"
        )
        return f"stays as it is; it {what}"

    def _need(self, name: str, bound: str, why: str) -> bool:
        """Bring a package that is not there or not within a bound; whether that is so."""
        found = self.here.packages.get(name)
        if name in self._changed or (found is not None and (not found or allows(bound, found))):
            return False
        self._changed.add(name)
        self.bring.append(f"{name}{bound}")
        then = bound or "the newest that fits"
        self.choices.append(Choice(name, found, then, why))
        return True


def typed(command: tuple[str, ...], environment: dict[str, str]) -> str:
    """A command as it can be typed."""
    variables = [f"{name}={value}" for name, value in environment.items()]
    return " ".join([*variables, *map(shlex.quote, command)])
