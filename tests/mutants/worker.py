"""Runs one mutant. It lies in a tree of links, and each situation has a process."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests import emulated, forks
from tests.emulated import version
from tests.matrix.cell import give_transformers_its_old_names
from tests.mutants import probes
from tests.mutants.registry import Mutant
from tests.mutants.texts import INTERFACE, KERNELS, TARGETS, Text, parameters
from tests.mutants.verdicts import WITHOUT_TRITON, Finding, Run, Verdict, judge
from tools.releases import release_path

OWN = "by itself"
# With the hook: nothing compiled; extensions that fit; a CPU that Triton has no kernels for.
SITUATIONS = ("nothing compiled", "extensions", WITHOUT_TRITON)


def run(request: Any) -> Any:
    """The verdict of a mutant, its detail and the target that it concerns."""
    mutant = Mutant(*request)
    with tempfile.TemporaryDirectory() as folder:
        make_tree(mutant, Path(folder))
        findings = [(target, _judged(mutant, target, folder)) for target in targets_of(mutant)]
    order = list(Verdict)
    _, finding = max(findings, key=lambda each: order.index(each[1].verdict))
    return finding.verdict.name, finding.detail


def targets_of(mutant: Mutant) -> list[str]:
    """The paths of the targets whose meaning the file that was changed decides."""
    if mutant.kind == "kernels" and mutant.path in KERNELS:
        return [KERNELS[mutant.path], *({mutant.path} & set(TARGETS))]
    return [mutant.path]


def module_of(target: str) -> str:
    """The module that a path inside ``mamba_ssm`` is."""
    return f"mamba_ssm.{target[:-3].replace('/', '.')}"


def make_tree(mutant: Mutant, folder: Path) -> None:
    """The release as links, without what its ``__init__`` imports, and the files of the mutant."""
    package = folder / "mamba_ssm"
    for root, folders, names in os.walk(release_path(mutant.release) / "mamba_ssm"):
        here = package / os.path.relpath(root, release_path(mutant.release) / "mamba_ssm")
        here.mkdir(exist_ok=True)
        folders[:] = [each for each in folders if each != "__pycache__"]
        for name in names:
            (here / name).symlink_to(os.path.join(root, name))
        cached = Path(root) / "__pycache__"
        if cached.is_dir():
            (here / "__pycache__").mkdir()
            for each in cached.iterdir():
                (here / "__pycache__" / each.name).symlink_to(each)
    for path, source in {"__init__.py": '"""A fork."""\n', **mutant.files}.items():
        file = folder / path[1:] if path.startswith("/") else package / path
        for stale in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            stale.unlink()
        file.unlink(missing_ok=True)
        file.write_bytes(source.encode())


def _judged(mutant: Mutant, path: str, folder: str) -> Finding:
    target = module_of(path)
    text = Text(
        mutant.release,
        path,
        (release_path(mutant.release) / "mamba_ssm" / path).read_text(encoding="utf-8"),
    )
    known = {
        name: [each.name for each in parameters(text, text.function(name))] for name in text.public
    }

    def found(situation: str) -> Run:
        answers, warned, refused = forks.in_a_fork(
            lambda: _in(situation, mutant, target, known, folder),
            lambda status: ({}, [f"the process ended with status {status}"], {}),
        )
        return Run({name: probes.Answer(*each) for name, each in answers.items()}, warned, refused)

    own = found(OWN)
    # Extensions are met by what calls them, in whatever way.
    met = path == INTERFACE or mutant.kind in ("imports", "names", "calls")
    hooked = {each: found(each) for each in SITUATIONS if met or each != "extensions"}
    return judge(own, hooked, target, text.public, mutant.refusable)


def _in(
    situation: str, mutant: Mutant, target: str, known: dict[str, list[str]], folder: str
) -> Any:
    """The process of one situation."""
    import jetson_mamba

    probes.listen()
    sys.path.insert(0, folder)
    os.environ["TRITON_INTERPRET"] = "0" if situation == WITHOUT_TRITON else "1"
    if situation == OWN:
        jetson_mamba.deactivate()
        give_transformers_its_old_names()
        _give_torch_its_events()
    if situation in (OWN, "extensions"):
        release = extension_of(mutant.release)
        sys.path.insert(0, str(release_path(release, "causal-conv1d")))
        emulated.install(release, selective_scan=True)
    try:
        answers = probes.probe(target, known, mutant.renamed, mutant.extra)
    except Exception as error:
        answers = {
            "import": probes.Answer(None, f"{type(error).__name__}: {error}", len(probes.said))
        }
    outcomes = jetson_mamba._finder.outcomes
    refused = {
        name: outcome
        for name, outcome in outcomes.items()
        if isinstance(outcome, str) and outcome != "it needs no change"
    }
    return answers, probes.said, refused


def extension_of(release: str) -> str:
    """A release of causal-conv1d whose calls are those of this release of mamba-ssm."""
    numbers = version(release)
    for before, fitting in (((1, 1), "1.0.2"), ((1, 2), "1.1.3.post1"), ((2, 1), "1.2.2.post1")):
        if numbers < before:
            return fitting
    return "1.5.0.post8" if numbers < (2, 2, 5) else "1.7.0"


def _give_torch_its_events() -> None:
    """``decode`` makes two events of a GPU whether they are used or not."""
    import torch

    torch.cuda.Event = lambda **_: None  # type: ignore[assignment, misc]
    torch.cuda.synchronize = lambda *_: None


if __name__ == "__main__":
    forks.serve(run, lambda status: (Verdict.NOT_RUN.name, f"ended with status {status}"))
