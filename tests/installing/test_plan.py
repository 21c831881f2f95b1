"""What is chosen in each situation: a pure function, over every situation that there may be."""

from __future__ import annotations

import itertools
import shlex
from dataclasses import replace

import pytest

from jetson_mamba import advice
from jetson_mamba.errors import CannotRun
from jetson_mamba.installing.plan import Plan, plan
from jetson_mamba.installing.situation import Situation, Torch
from jetson_mamba.installing.tools import Tool
from jetson_mamba.releases import get_torch, together
from jetson_mamba.releases.versions import allows, at_least
from jetson_mamba.report.machine import Machine

PIP = Tool("pip", "24.0", ("python3", "-m", "pip", "install"))
PC = Situation(
    (3, 12), "x86_64", Torch("2.11.0", cuda="13.0", gpu=True, triton="3.6.0"), {}, tool=PIP
)
BUILD = {"setuptools": "80.0", "wheel": "0.45", "packaging": "25.0"}
REST = {"einops": "0.8", "transformers": "5.24.0", "huggingface-hub": "1.3", "numpy": "2.2.0"}


def board(jetpack: str, model: str = "NVIDIA Jetson AGX Orin Developer Kit") -> Machine:
    return Machine("Linux", "aarch64", model, "36.4.3", jetpack, None, (), None, None)


JETPACK_5 = Situation(
    (3, 8),
    "aarch64",
    Torch("2.1.0a0+41361538.nv23.06", cuda="11.4", gpu=True),
    {"numpy": "1.17.4", "setuptools": "45.2.0"},
    tool=Tool("pip", "20.0.2", PIP.command),
    board=board("5.1.2"),
)
JETPACK_6 = Situation(
    (3, 10),
    "aarch64",
    Torch("2.4.0a0+07cecf4168.nv24.05", cuda="12.2", gpu=True),
    {"setuptools": "59.6.0"},
    tool=Tool("pip", "22.0.2", PIP.command),
    board=board("6.0"),
)


def then(found: Plan, package: str) -> str | None:
    (row,) = (choice for choice in found.choices if choice.package == package)
    return row.then


def test_a_pc_with_nothing_beside_torch_gets_the_newest_of_everything() -> None:
    found = plan(PC)
    assert found.mamba == f"mamba-ssm=={together.NEWEST}"
    assert found.bring == ("setuptools>=61", "wheel", "packaging", "einops", "transformers")
    assert found.optional == ("triton==3.6.0",)
    assert found.held == ("torch==2.11.0",)


def test_what_is_there_and_fits_is_held() -> None:
    found = plan(replace(PC, packages={**BUILD, **REST, "pydantic": "2.11", "triton": "3.6.0"}))
    assert found.bring == () and found.optional == ()
    assert found.held == ("torch==2.11.0", "numpy==2.2.0", "pydantic==2.11", "triton==3.6.0")


def test_a_mamba_ssm_that_works_stays() -> None:
    here = replace(PC, packages={**REST, "mamba-ssm": "2.2.4", "triton": "3.6.0"}, works=True)
    found = plan(here)
    assert found.mamba is None and found.bring == ("packaging",)
    assert plan(here, "mamba-ssm==2.3.1").mamba == "mamba-ssm==2.3.1"


@pytest.mark.parametrize(
    ("version", "built"),
    [("2.2.4", "2.2.4"), ("2.0.0", together.NEWEST), ("2.0.4", together.NEWEST)],
)
def test_a_mamba_ssm_that_fails_is_built_again_or_replaced_by_one_that_can_work(
    version: str, built: str
) -> None:
    here = replace(PC, packages={**BUILD, **REST, "mamba-ssm": version, "triton": "3.6.0"})
    assert plan(here).mamba == f"mamba-ssm=={built}"


def test_a_fork_is_not_replaced_unasked() -> None:
    here = replace(PC, packages={**BUILD, **REST, "mamba-ssm": "1.0.1+vim", "triton": "3.6.0"})
    assert plan(here).mamba is None


def test_jetpack_5_gets_the_newest_release_that_python_3_8_takes() -> None:
    found = plan(JETPACK_5)
    assert found.mamba == "mamba-ssm==2.2.2"
    # Its pip would compile what later ones of them require.
    assert {"transformers<4.47", "huggingface-hub<0.32"} <= set(found.bring)
    newer = replace(JETPACK_5, tool=replace(PIP, version="20.3.4"))
    assert "transformers<5" in plan(newer).bring
    assert not any(each.startswith(("setuptools", "numpy")) for each in found.bring)
    assert found.held == ("torch==2.1.0a0+41361538.nv23.06", "numpy==1.17.4")


@pytest.mark.parametrize("version", ["2.3.0", "2.4.1", "2.5.0a0+872d972e41.nv24.08", "2.5.1"])
def test_beside_a_torch_before_2_6_transformers_stays_below_5(version: str) -> None:
    """Row 1: transformers 5 switches such a torch off."""
    here = replace(JETPACK_6, torch=Torch(version, cuda="12.6", gpu=True))
    assert "transformers<5" in plan(here).bring
    (row,) = [each for each in plan(here).choices if each.package == "transformers"]
    assert row.why.startswith(
        f"mamba_ssm generates text with it; others switch torch {version} off"
    )
    for installed in ("5.0.0", "5.24.0"):
        there = replace(here, packages={**BUILD, **REST, "transformers": installed})
        assert plan(there).bring == ("transformers<5",)
    kept = replace(here, packages={**BUILD, **REST, "transformers": "4.57.6"})
    assert plan(kept).bring == ()


def test_a_setuptools_that_reads_no_names_is_lifted_for_releases_that_have_theirs_there() -> None:
    """JetPack 6's 59.6 builds mamba-ssm 2.2.3 and later as UNKNOWN-0.0.0."""
    assert "setuptools>=61" in plan(JETPACK_6).bring
    assert "setuptools>=61" not in plan(JETPACK_6, "mamba-ssm==2.2.2").bring


def test_a_setuptools_without_what_an_old_torch_imports_is_lowered() -> None:
    here = replace(JETPACK_6, torch=Torch("2.1.2", cuda="12.1", gpu=True), packages=BUILD)
    assert "setuptools>=61,<70" in plan(here).bring


@pytest.mark.parametrize(
    ("version", "numpy"),
    [
        ("2.2.2", "<2"),
        ("2.3.0", None),
        ("2.5.0a0+872d972e41.nv24.08", "<2"),
        ("2.4.1", None),
        ("2.8.0", None),
    ],
)
def test_a_numpy_that_comes_along_is_one_that_torch_was_built_for(
    version: str, numpy: str | None
) -> None:
    found = plan(replace(JETPACK_6, torch=Torch(version, cuda="12.6", gpu=True)))
    assert ("numpy<2" in found.bring) == (numpy is not None)


@pytest.mark.parametrize(
    ("torch", "wanted"),
    [
        (Torch("2.5.1", cuda="12.4", gpu=True), "3.1.0"),
        (Torch("2.8.0", cuda="12.6", gpu=True), "3.4.0"),
        (Torch("2.9.1+cu130", cuda="13.0", gpu=True), "3.5.1"),
        (Torch("2.11.0", cuda="13.0", gpu=True, triton="3.6.0"), "3.6.0"),
        (Torch("2.9.1", cuda=None), None),
        (Torch("9.0", cuda="13.0", gpu=True), None),
    ],
)
def test_triton_is_the_one_that_torch_was_built_beside_or_none(
    torch: Torch, wanted: str | None
) -> None:
    """Row 3: never a newer one, and never one without which nothing can be installed."""
    found = plan(replace(JETPACK_6, torch=torch))
    assert found.optional == ((f"triton=={wanted}",) if wanted else ())
    assert not any(each.startswith("triton") for each in found.bring)


@pytest.mark.parametrize(
    ("triton", "release"),
    [
        ("3.0.0", "2.3.1"),
        ("3.3.1", "2.3.1"),
        ("3.4.0", together.NEWEST),
        ("3.9.0", together.NEWEST),
    ],
)
def test_a_release_is_chosen_that_goes_with_the_triton_that_is_there(
    triton: str, release: str
) -> None:
    """Row 6."""
    found = plan(replace(PC, packages={**REST, "triton": triton}))
    assert found.mamba == f"mamba-ssm=={release}"
    assert f"triton=={triton}" in found.held


def test_one_that_does_not_is_obeyed_with_a_word() -> None:
    found = plan(replace(PC, packages={**REST, "triton": "3.1.0"}), "mamba-ssm==2.3.2.post1")
    assert found.mamba == "mamba-ssm==2.3.2.post1"
    (row,) = (choice for choice in found.choices if choice.package == "mamba-ssm")
    assert "needs Triton 3.4 or later, and 3.1.0 is here" in row.why


@pytest.mark.parametrize(
    ("here", "asked", "reason", "instead"),
    [
        (JETPACK_5, "mamba-ssm==2.2.4", "2.2.4 needs Python 3.9, and this is 3.8", "2.2.2"),
        (JETPACK_5, "mamba-ssm>=2.2.5", "needs Python 3.10", "2.2.2"),
        (PC, "mamba-ssm==2.0.1", "was published with files missing", together.NEWEST),
    ],
)
def test_what_cannot_work_is_refused_with_one_that_can(
    here: Situation, asked: str, reason: str, instead: str
) -> None:
    with pytest.raises(CannotRun) as caught:
        plan(here, asked)
    message = str(caught.value)
    assert reason in message and "\n" not in message
    command = message[message.index("jetson-mamba install") :].split()
    assert plan(here, command[-1]).mamba == f"mamba-ssm=={instead}"


@pytest.mark.parametrize("asked", ["mamba-ssm==7.0", "mamba-ssm>=7"])
def test_a_release_that_nobody_knows_yet_is_obeyed(asked: str) -> None:
    for packages in ({}, {"mamba-ssm": "2.3.1"}):
        found = plan(replace(PC, packages=packages, works=bool(packages)), asked)
        assert found.mamba == asked
        assert then(found, "mamba-ssm") == asked[len("mamba-ssm") :]


def test_a_range_comes_to_the_newest_in_it_that_can_work() -> None:
    assert plan(PC, "mamba-ssm>=2.2.5").mamba == f"mamba-ssm=={together.NEWEST}"
    assert plan(PC, "mamba-ssm<2.1").mamba == "mamba-ssm==2.0.4"
    assert plan(JETPACK_5, "mamba-ssm>=1.2").mamba == "mamba-ssm==2.2.2"
    assert plan(PC, "mamba_ssm ~= 2.2.3").mamba == "mamba-ssm==2.2.6.post3"


@pytest.mark.parametrize("jetpack", ["5.1.2", "6.2", "7.0", None])
def test_without_torch_the_one_for_this_machine_is_named(jetpack: str | None) -> None:
    """Row 5: PyPI's is the wrong one on a board."""
    here = replace(PC, torch=None, board=board(jetpack) if jetpack else None)
    with pytest.raises(CannotRun) as caught:
        plan(here)
    assert str(caught.value).endswith(get_torch.command(jetpack))
    assert ("--index-url" in str(caught.value)) == (jetpack in ("6.2", "7.0"))


def test_a_torch_on_a_board_that_sees_no_gpu_is_told_of_and_kept() -> None:
    here = replace(JETPACK_6, torch=Torch("2.8.0", cuda=None))
    found = plan(here)
    (note,) = found.notes
    assert "built without CUDA" in note and "--force-reinstall" in note
    assert found.held[0] == "torch==2.8.0" and found.optional == ()


def test_a_torch_that_cannot_be_imported_is_told_of_first() -> None:
    with pytest.raises(CannotRun, match="cannot be imported \\(ImportError: libcudnn"):
        plan(replace(PC, torch=Torch("2.8.0", error="ImportError: libcudnn.so.9")))
    # A slow machine needs no other torch.
    with pytest.raises(CannotRun, match="gives no answer within 300 s: ") as caught:
        plan(replace(PC, torch=Torch("2.8.0", error="no answer within 300 s")))
    assert "install" not in str(caught.value)


def test_where_the_systems_packages_are_not_to_be_touched_an_environment_is_named() -> None:
    """Row 7."""
    here = replace(PC, managed="/usr/lib/python3.12/EXTERNALLY-MANAGED")
    with pytest.raises(CannotRun, match="-m venv --system-site-packages ~/mamba"):
        plan(here)
    works = replace(
        here, works=True, packages={**BUILD, **REST, "triton": "3.6.0", "mamba-ssm": "2.3.1"}
    )
    assert plan(works).mamba is None


def test_without_anything_that_installs_it_says_what_brings_it() -> None:
    with pytest.raises(CannotRun, match="has no pip, and there is no uv: ") as caught:
        plan(replace(PC, tool=None))
    assert str(caught.value).endswith(advice.bring_pip())


TORCHES = [
    Torch(version, cuda=cuda, gpu=cuda is not None, triton=triton)
    for version in (
        "2.0.1",
        "2.1.0a0+41361538.nv23.06",
        "2.2.2",
        "2.4.1",
        "2.6.0",
        "2.9.1",
        "2.13.0",
    )
    for cuda, triton in ((None, None), ("12.6", None), ("12.6", "3.1.0"))
]
PYTHONS = [(3, minor) for minor in range(8, 16)]
BESIDE: list[dict[str, str]] = [
    {},
    BUILD,
    {**BUILD, **REST},
    {"transformers": "4.30.0", "setuptools": "45.2.0", "numpy": "1.17.4"},
    {**BUILD, **REST, "triton": "2.1.0"},
    {**BUILD, **REST, "triton": "3.1.0", "mamba-ssm": "2.0.4"},
    {**BUILD, **REST, "triton": "3.6.0", "mamba-ssm": "2.3.2.post1", "pydantic": "2.0"},
]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_situation_has_a_plan_that_keeps_to_the_facts(python: tuple[int, int]) -> None:
    requirements = ("mamba-ssm", "mamba-ssm==1.1.4", "mamba-ssm>=2", "mamba-ssm==2.2.2")
    for torch, packages, asked in itertools.product(TORCHES, BESIDE, requirements):
        here = Situation(python, "aarch64", torch, packages, tool=PIP)
        found = plan(here, asked)
        if found.mamba:
            release = found.mamba.partition("==")[2]
            assert together.python_for(release) <= python
            assert release not in together.INCOMPLETE
        assert f"torch=={torch.version}" in found.held
        assert not any(each.startswith("torch") for each in (*found.bring, *found.optional))
        for each in found.bring:
            assert shlex.quote(each).strip("'") == each
        for name in ("numpy", "pydantic", "triton"):
            assert (name in packages) == any(each.startswith(f"{name}==") for each in found.held)
            assert not (name in packages and any(each.startswith(name) for each in found.bring))
        result = {**packages, **{each.partition("<")[0]: "<5" for each in found.bring}}
        transformers = result.get("transformers", "")
        if not at_least(torch.version, 2, 6) and transformers != "<5":
            assert allows("<5", transformers)
