"""The facts about published packages, as their metadata has them."""

from __future__ import annotations

from itertools import groupby

import pytest

from jetson_mamba.releases import together

PYTHONS = [(3, minor) for minor in range(8, 16)]
# Of each release, in the order of the table: the oldest Python and the oldest Triton.
OLDEST = [
    ("1.0.1", "1.2.2", (3, 8), None),
    ("2.0.0", "2.2.2", (3, 8), (2, 0)),
    ("2.2.3.post2", "2.3.1", (3, 9), (2, 0)),
    ("2.3.2.post1", "2.3.2.post1", (3, 10), (3, 4)),
]


def test_each_release_has_its_oldest_python_and_triton() -> None:
    found = []
    pairs = (
        (together.python_for(each), together.oldest_triton_for(each), each)
        for each in together.MAMBA_SSM
    )
    for (python, triton), group in groupby(pairs, key=lambda pair: pair[:2]):
        releases = [release for _, _, release in group]
        found.append((releases[0], releases[-1], python, triton))
    assert found == OLDEST


@pytest.mark.parametrize(
    ("torch", "triton"),
    [
        *[("2.0.1", "2.0.0"), ("2.1.2", "2.1.0"), ("2.2.2", "2.2.0"), ("2.3.1", "2.3.1")],
        *[("2.4.0", "3.0.0"), ("2.5.0a0+872d972e41.nv24.08", "3.1.0"), ("2.6", "3.2.0")],
        *[("2.7.1+cu128", "3.3.1"), ("2.8.0", "3.4.0"), ("2.9.1", "3.5.1"), ("2.10.0", "3.6.0")],
        *[("2.11.0", "3.6.0"), ("2.12.0", "3.7.0"), ("2.13.0", "3.7.1"), ("2.14.0", "3.8.0")],
        *[("2.15.0", "3.9.0"), ("2.16.0", None), ("1.13.1", None), ("3", None)],
    ],
)
def test_the_triton_of_a_torch_is_the_one_that_it_was_built_beside(
    torch: str, triton: str | None
) -> None:
    assert together.triton_for(torch) == triton
    assert len(together.TRITON_OF_TORCH) == 16


@pytest.mark.parametrize(
    ("release", "goes", "not_with"),
    [
        ("1.2.2", ["1.0", "2.1.0", "3.7.0"], []),
        ("2.0.4", ["2.0.0", "2.3.1"], ["1.1", "3.0.0", "3.7.0"]),
        ("2.1.0", ["2.0.0", "3.0.0", "3.7.0"], ["1.1"]),
        ("2.2.4", ["2.0", "3.3.1"], ["1.9.9"]),
        ("2.3.2.post1", ["3.4.0", "3.7.1", "4.0"], ["2.3.1", "3.3.1"]),
    ],
)
def test_a_release_goes_with_the_tritons_that_its_kernels_compile_with(
    release: str, goes: list[str], not_with: list[str]
) -> None:
    assert all(together.goes_with_triton(release, each) for each in goes)
    assert not any(together.goes_with_triton(release, each) for each in not_with)


@pytest.mark.parametrize("release", together.MAMBA_SSM)
@pytest.mark.parametrize("python", PYTHONS)
def test_what_cannot_be_imported_says_why(release: str, python: tuple[int, int]) -> None:
    found = together.cannot_be_imported(release, python)
    oldest = together.python_for(release)
    if release in ("2.0.0", "2.0.1", "2.0.2"):
        assert found == f"{release} was published with files missing"
    elif python < oldest:
        needs = f"{release} needs Python 3.{oldest[1]}, and this is 3.{python[1]}"
        assert found == needs
    else:
        assert found is None


@pytest.mark.parametrize(
    ("python", "triton", "release"),
    [
        ((3, 8), None, "2.2.2"),
        ((3, 9), None, "2.3.1"),
        ((3, 10), None, "2.3.2.post1"),
        ((3, 10), "3.4.0", "2.3.2.post1"),
        ((3, 10), "3.3.1", "2.3.1"),
        ((3, 8), "2.0.0", "2.2.2"),
        ((3, 12), "1.0", "1.2.2"),
        ((3, 12), "", "2.3.2.post1"),
    ],
)
def test_the_newest_release_is_one_that_can_work(
    python: tuple[int, int], triton: str | None, release: str
) -> None:
    assert together.newest(python, triton) == release


@pytest.mark.parametrize(
    ("torch", "transformers", "setuptools", "numpy"),
    [
        ("2.0.1", "<4.50", ">=61,<70", "<2"),
        ("2.1.0", "<5", ">=61,<70", "<2"),
        ("2.2.0", "<5", ">=61", "<2"),
        ("2.3.0", "<5", ">=61", ""),
        ("2.3.0+nv24.05", "<5", ">=61", "<2"),
        ("2.5.0a0+872d972e41.nv24.08", "<5", ">=61", "<2"),
        ("2.6.0", "", ">=61", ""),
        ("2.6.0a0+ecf3bae40a.nv25.01", "", ">=61", ""),
        ("2.13.0", "", ">=61", ""),
    ],
)
def test_what_a_torch_bounds(torch: str, transformers: str, setuptools: str, numpy: str) -> None:
    assert together.transformers_for(torch) == transformers
    assert together.setuptools_for("2.2.4", torch) == setuptools
    assert together.setuptools_for("2.2.2", torch) == setuptools.replace(">=61", "").lstrip(",")
    assert together.numpy_for(torch) == numpy
