"""Which Triton an installed torch asks for here.

Its metadata has markers, and aarch64 no wheel. Wheels of torch for aarch64 on PyPI carry the
metadata of those for x86-64.
"""

from __future__ import annotations

import platform
import sys

import pytest
from packaging.markers import Marker

from jetson_mamba.report import installed
from jetson_mamba.report.installed import Distribution

# As torch's releases have written them, from 2.0 to 2.13.
X86_64 = 'platform_system == "Linux" and platform_machine == "x86_64"'
MARKERS = (
    X86_64,
    f'{X86_64} and python_version < "3.13"',
    f'{X86_64} and python_version >= "3.9"',
    'platform_system == "Linux"',
    'platform_machine != "aarch64"',
    'sys_platform == "linux" and python_version <= "3.10"',
    'python_version > "3.9" and platform_system != "Windows"',
    "",
)
MACHINES = (
    ("aarch64", "Linux", "linux", "3.8.10"),
    ("aarch64", "Linux", "linux", "3.13.1"),
    ("x86_64", "Linux", "linux", "3.9.18"),
    ("x86_64", "Linux", "linux", "3.14.0"),
    ("AMD64", "Windows", "win32", "3.10.2"),
)


def on(monkeypatch: pytest.MonkeyPatch, machine: tuple[str, str, str, str]) -> dict[str, str]:
    """Be that machine; what its markers are held against."""
    architecture, system, sys_platform, version = machine
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "python_version_tuple", lambda: tuple(version.split(".")))
    monkeypatch.setattr(sys, "platform", sys_platform)
    return {
        "platform_machine": architecture,
        "platform_system": system,
        "sys_platform": sys_platform,
        "python_version": ".".join(version.split(".")[:2]),
    }


def torch(*requires: str) -> list[Distribution]:
    return [Distribution("torch", "2.5.1", (), "/site", ("filelock", *requires))]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("marker", MARKERS)
def test_a_marker_holds_where_packaging_says_so(
    marker: str, machine: tuple[str, str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = on(monkeypatch, machine)
    expected = not marker or Marker(marker).evaluate(environment=dict(here))
    requirement = "triton==3.1.0" + (f" ; {marker}" if marker else "")
    found = installed.triton_requirement(torch(requirement))
    assert found == ("3.1.0" if expected else None)


def test_a_torch_for_aarch64_with_the_metadata_of_x86_64_asks_for_no_triton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asks = torch(f'triton==3.1.0; {X86_64} and python_version < "3.13"')
    on(monkeypatch, ("aarch64", "Linux", "linux", "3.10.12"))
    assert installed.triton_requirement(asks) is None
    on(monkeypatch, ("x86_64", "Linux", "linux", "3.10.12"))
    assert installed.triton_requirement(asks) == "3.1.0"


@pytest.mark.parametrize("requirement", ["triton~=3.9.0", "triton (~=3.9.0)", "triton ~= 3.9.0"])
def test_of_several_releases_that_a_torch_takes_it_is_the_first(requirement: str) -> None:
    """As the records of torch 2.14 and 2.15 have it."""
    assert installed.triton_requirement(torch(requirement)) == "3.9.0"


@pytest.mark.parametrize(
    "requirement",
    [
        'triton==3.1.0; implementation_name == "cpython" or extra == "x"',
        'triton==3.1.0; platform_release > "5"',
        "triton>=3.0",
        "pytorch-triton==3.1.0",
    ],
)
def test_what_is_not_understood_asks_for_none(requirement: str) -> None:
    assert installed.triton_requirement(torch(requirement)) is None
