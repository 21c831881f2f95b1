"""Each answer that the doctor asks for stands in its place."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from jetson_mamba.report import doctor
from jetson_mamba.report.extensions import NAMES
from jetson_mamba.report.facts import Compiler, Facts, Unserved
from jetson_mamba.report.packages import Package
from jetson_mamba.report.status import Backend, PassedOver, Selected
from jetson_mamba.report.upstream import UpstreamFault
from tests.doctor.facts import MAMBA, ORIN, TORCH, of_a_healthy_machine

OPS: dict[str, Any] = {
    "backends": [
        {
            "op": "ssd",
            "case": {"device": "cpu"},
            "backend": "pytorch",
            "passed_over": [{"backend": "cuda", "reason": "no GPU"}],
        }
    ],
    "error": "RuntimeError: no op",
    "triton_launch": "no kernel",
    "selections": [{"op": "ssd", "backend": "cuda", "asked_by": "JETSON_MAMBA_BACKEND"}],
    "unserved": [{"op": "ssd", "device": "cpu", "reason": "no GPU"}],
    "ignored": "cudaa",
}
PROBED: dict[str, Any] = {
    "ops": OPS,
    "triton": {"error": "ImportError: no driver"},
    "trial": {"error": "the block fails"},
    "compiler": {"nvrtc": "12.6", "cuda_core": "0.3", "reason": None},
    NAMES[0]: {"error": "ImportError: no scan"},
}
UNSERVED = Unserved("ssd", "cpu", "no GPU")
FAULT = UpstreamFault(*["x"] * len(dataclasses.fields(UpstreamFault)))


@pytest.fixture
def examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The report where these packages are, and what was asked for on the way."""
    facts = of_a_healthy_machine(tmp_path)
    asked: dict[str, Any] = {}

    def found(
        *packages: str,
        extensions: tuple[str, ...] = (),
        torch_error: str | None = None,
        gpus: Any = (),
        probed: Any = PROBED,
    ) -> Facts:
        asked.clear()

        def probe(path: list[str], tried: list[str]) -> Any:
            asked.update(path=path, tried=tried)
            return probed

        def torch_and_gpus(path: str, version: str | None, answers: Any) -> Any:
            asked.update(torch=(path, version, answers))
            return dataclasses.replace(TORCH, error=torch_error), gpus

        def extension(name: str, path: list[str], answer: Any) -> Any:
            return (name, path, answer)

        def package(name: str, path: list[str]) -> Package:
            here = name in packages
            return Package(name, "1.0" if here else None, f"/p/{name}" if here else None, ())

        mambas = (MAMBA,) * ("mamba_ssm" in packages)
        for name, given in (
            ("installed.search_path", lambda: ["/p"]),
            ("machine", lambda root: dataclasses.replace(facts.machine, nvcc=root)),
            ("python", lambda: facts.python),
            ("packages.mamba_ssm", lambda path: mambas if path == ["/p"] else None),
            ("packages.package", package),
            ("compiled.path_of", lambda name, path: name in extensions and path == ["/p"]),
            ("compiled.extension", extension),
            ("probe", probe),
            ("torch_and_gpus", torch_and_gpus),
            ("hook", lambda path: ("hook", path)),
            ("faults", lambda path: (FAULT,) if path == MAMBA.path else None),
            ("findings", lambda facts: (facts,)),
        ):
            monkeypatch.setattr(f"jetson_mamba.report.doctor.{name}", given)
        report = doctor.examine("/root")
        assert report.findings == (report.facts,)  # type: ignore[comparison-overlap]
        assert report.upstream_faults == (FAULT,) * len(mambas)
        assert report.facts.machine.nvcc == "/root" and report.facts.python == facts.python
        assert report.facts.path == ("/p",)
        return report.facts

    found.asked = asked  # type: ignore[attr-defined]
    return found


def test_every_answer_stands_in_its_place(examined: Any) -> None:
    facts = examined("torch", "triton", "transformers", "einops", "causal_conv1d", "mamba_ssm")
    assert facts.torch == TORCH and facts.mamba_ssm == (MAMBA,)
    for name in ("triton", "transformers", "einops", "causal_conv1d"):
        assert getattr(facts, name).path == f"/p/{name}"
    assert facts.extensions == tuple((name, ["/p"], PROBED.get(name)) for name in NAMES)
    assert facts.hook == ("hook", MAMBA.path)
    passed_over = (PassedOver("cuda", "no GPU"),)
    assert facts.backends == (Backend("ssd", {"device": "cpu"}, "pytorch", passed_over),)
    assert facts.backends_error == "RuntimeError: no op"
    assert facts.selections == (Selected("ssd", "cuda", "JETSON_MAMBA_BACKEND"),)
    assert facts.unserved == (UNSERVED,)
    assert facts.selection_ignored == "cudaa"
    assert facts.triton_error == "ImportError: no driver"
    assert facts.triton_launch_error == "no kernel"
    assert facts.trial_error == "the block fails"
    assert facts.compiler == Compiler("12.6", "0.3", None)
    assert examined.asked["torch"] == ("/p/torch", "1.0", PROBED)


@pytest.mark.parametrize(
    ("packages", "extensions", "tried"),
    [
        ((), (), None),
        (("mamba_ssm", "triton"), (), None),
        (("torch",), (), ["compiler"]),
        (("torch", "triton"), (), ["triton", "compiler"]),
        (("torch", "mamba_ssm"), (), ["compiler", "trial"]),
        ((), NAMES[:1], [*NAMES[:1]]),
        (("triton",), NAMES, [*NAMES, "triton"]),
        (("torch", "triton", "mamba_ssm"), NAMES, [*NAMES, "triton", "compiler", "trial"]),
    ],
)
def test_what_is_there_is_tried_in_a_process_of_its_own(
    packages: tuple[str, ...], extensions: tuple[str, ...], tried: Any, examined: Any
) -> None:
    facts = examined(*packages, extensions=extensions)
    assert examined.asked.get("tried") == tried
    assert examined.asked.get("path") == (None if tried is None else ["/p"])
    assert ("torch" in examined.asked) is ("torch" in packages) is (facts.torch is not None)
    assert facts.hook == ("hook", MAMBA.path if "mamba_ssm" in packages else None)
    assert (facts.compiler is not None) is (tried is not None)


def test_where_nothing_is_told_nothing_is_known(examined: Any) -> None:
    facts = examined("torch", probed={})
    assert (facts.backends, facts.selections, facts.unserved) == ((), (), ())
    for name in ("backends_error", "triton_error", "triton_launch_error", "trial_error"):
        assert getattr(facts, name) is None
    assert facts.selection_ignored is None and facts.compiler is None


@pytest.mark.parametrize("packages", [("torch",), ()])
def test_that_the_ops_fail_is_no_matter_where_torch_does(
    packages: tuple[str, ...], examined: Any
) -> None:
    assert examined(*packages, extensions=NAMES, torch_error="no torch").backends_error is None


def test_the_gpus_are_those_that_torch_sees_else_those_of_the_machine(examined: Any) -> None:
    other = dataclasses.replace(ORIN, name="other")
    assert examined("torch", gpus=(other,)).machine.gpus == (other,)
    assert examined("torch").machine.gpus == (ORIN,)


@pytest.mark.parametrize(
    ("told", "compiler"),
    [
        ({"nvrtc": "12.6"}, Compiler("12.6", None, None)),
        ({"cuda_core": "0.3"}, Compiler(None, "0.3", None)),
        ({"error": "it failed"}, Compiler(None, None, "it failed")),
        ({"reason": "no driver", "error": "it failed"}, Compiler(None, None, "no driver")),
    ],
)
def test_why_nothing_is_compiled_is_the_reason_else_the_error(
    told: Any, compiler: Compiler, examined: Any
) -> None:
    assert examined("torch", probed={"compiler": told}).compiler == compiler


def test_a_document_has_all_of_it_but_what_a_text_asks_for(tmp_path: Path) -> None:
    facts = of_a_healthy_machine(tmp_path)
    document = doctor.Report(facts, (), (FAULT,)).as_json()
    assert document["schema"] == "jetson-mamba/doctor/1"
    assert document["findings"] == [] and document["upstream_faults"] == [vars(FAULT)]
    (mamba,) = document["mamba_ssm"]
    assert "asks" not in mamba and mamba["path"] == MAMBA.path
    assert document["torch"]["version"] == TORCH.version
