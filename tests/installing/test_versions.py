"""The comparison of versions is packaging's, for what the table of releases needs of it."""

from __future__ import annotations

import itertools

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from jetson_mamba.releases.together import MAMBA_SSM
from jetson_mamba.releases.versions import allows, at_least, is_specifier, key

SPECIFIERS = [
    *(f"{comparison}{version}" for comparison in ("==", "===", "!=", "<=", ">=", "<", ">", "~=")
      for version in ("1.1.3", "1.2.0.post1", "2.0.0", "2.2.3", "2.2.6.post3", "2.3.2")),
    *("==2.*", "==2.2.*", "!=2.2.*", ">=2.1,<2.3", ">=2.2.5, !=2.3.0", "~=2.2", "==2.2", ""),
]  # fmt: skip


@pytest.mark.parametrize("specifier", SPECIFIERS)
def test_a_specifier_allows_what_packaging_says_it_allows(specifier: str) -> None:
    assert is_specifier(specifier)
    found = [each for each in MAMBA_SSM if allows(specifier, each)]
    assert found == [each for each in MAMBA_SSM if Version(each) in SpecifierSet(specifier)]


def test_releases_are_ordered_as_packaging_orders_them() -> None:
    for one, other in itertools.combinations(MAMBA_SSM, 2):
        assert (key(one) < key(other)) == (Version(one) < Version(other))


@pytest.mark.parametrize(
    "version",
    ["2.4.0a0+07cecf4168.nv24.5", "2.4.0", "2.4.1+cu124", "2.4", "2.4.0.nv24.05", "2.4.0rc1"],
)
def test_a_vendors_mark_does_not_make_a_torch_older(version: str) -> None:
    assert at_least(version, 2, 4) and not at_least(version, 2, 5)


@pytest.mark.parametrize("text", ["2.2.4", "==", ">= two", "==2.2.4;python_version>'3'", "=2.2"])
def test_what_is_no_specifier_is_told(text: str) -> None:
    assert not is_specifier(text)
    with pytest.raises(ValueError, match="expected a comparison and a version"):
        allows(text, "2.2.4")


def test_what_has_no_number_is_older_than_what_has() -> None:
    assert key("unknown") == key("0") == key("0.0") < key("0.1")
    assert allows("===2.2.*", "2.2.4") and not allows("===2.2.*", "2.3.0")
