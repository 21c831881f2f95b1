"""Which releases go together: facts about published packages, each with where it is from.

Checked against the published distributions in November 2026.
"""

from __future__ import annotations

from jetson_mamba.releases.versions import at_least, key

# Every release on PyPI, and those of them that were published with files missing.
MAMBA_SSM = (
    *("1.0.1", "1.1.0", "1.1.1", "1.1.2", "1.1.3.post1", "1.1.4"),
    *("1.2.0", "1.2.0.post1", "1.2.1", "1.2.2"),
    *("2.0.0", "2.0.1", "2.0.2", "2.0.3", "2.0.4", "2.1.0", "2.2.0", "2.2.1", "2.2.2"),
    *("2.2.3.post2", "2.2.4", "2.2.5", "2.2.6.post3", "2.3.0", "2.3.1", "2.3.2.post1"),
)
INCOMPLETE = ("2.0.0", "2.0.1", "2.0.2")
NEWEST = MAMBA_SSM[-1]

# The Requires-Dist of each torch for x86_64, which its other builds were made beside.
TRITON_OF_TORCH = {
    (2, 0): "2.0.0",
    (2, 1): "2.1.0",
    (2, 2): "2.2.0",
    (2, 3): "2.3.1",
    (2, 4): "3.0.0",
    (2, 5): "3.1.0",
    (2, 6): "3.2.0",
    (2, 7): "3.3.1",
    (2, 8): "3.4.0",
    (2, 9): "3.5.1",
    (2, 10): "3.6.0",
    (2, 11): "3.6.0",
    (2, 12): "3.7.0",
    (2, 13): "3.7.1",
    (2, 14): "3.8.0",
    (2, 15): "3.9.0",
}

# huggingface-hub requires hf-xet from 0.32 on, which is in Rust and whose wheels for aarch64 are
# manylinux_2_28: a tag that pip does not know before 20.3. These do without.
HUB_WITHOUT_XET = "<0.32"
TRANSFORMERS_WITHOUT_XET = "<4.47"


def python_for(release: str) -> tuple[int, int]:
    """The oldest Python that a release of mamba-ssm takes: Requires-Python of its metadata.

    2.3.2 says 3.9 and fails there as it is imported: ``ops/triton/mamba3/angle_dt.py`` has
    annotations with ``|`` that Python evaluates.
    """
    if at_least(release, 2, 3, 2):
        return (3, 10)
    return (3, 9) if at_least(release, 2, 2, 3) else (3, 8)


def oldest_triton_for(release: str) -> tuple[int, ...] | None:
    """The oldest Triton whose kernels a release of mamba-ssm can be imported with.

    2.3.2 calls ``triton.set_allocator`` as it is imported, which fails without a GPU before
    Triton 3.4; Mamba-1 alone has no use for Triton (see ``ops/triton`` of each release).
    """
    if at_least(release, 2, 3, 2):
        return (3, 4)
    return (2, 0) if at_least(release, 2, 0) else None


def goes_with_triton(release: str, triton: str) -> bool:
    """Whether upstream's kernels in a release compile with a Triton.

    Those of 2.0 use ``tl.math.log1p``, which Triton 3 no longer has.
    """
    oldest = oldest_triton_for(release)
    if oldest is None:
        return True
    before_3 = at_least(release, 2, 0) and not at_least(release, 2, 1)
    return at_least(triton, *oldest) and not (before_3 and at_least(triton, 3))


def cannot_be_imported(release: str, python: tuple[int, int]) -> str | None:
    """Why nobody can import a release in a Python, whatever else is there."""
    if release in INCOMPLETE:
        return f"{release} was published with files missing"
    oldest = python_for(release)
    if python < oldest:
        needs, has = (".".join(map(str, each)) for each in (oldest, python))
        return f"{release} needs Python {needs}, and this is {has}"
    return None


def newest(python: tuple[int, int], triton: str | None) -> str:
    """The newest release that can work in a Python, beside a Triton where one is known."""
    able = [each for each in MAMBA_SSM if cannot_be_imported(each, python) is None]
    beside = [each for each in able if not triton or goes_with_triton(each, triton)]
    return (beside or able)[-1]


def triton_for(torch: str) -> str | None:
    """The Triton that a torch was built beside; None for one that is newer than this table."""
    numbers = (*key(torch)[0], 0)[:2]
    return TRITON_OF_TORCH.get((numbers[0], numbers[1]))


def transformers_for(torch: str) -> str:
    """The bound on transformers that a torch sets, as a specifier.

    transformers switches off what needs torch, with ``PyTorch >= … is required``, below 2.1 from
    4.50 on and below 2.6 in 5 (``is_torch_available`` in its ``utils/import_utils.py``).
    """
    if not at_least(torch, 2, 1):
        return "<4.50"
    return "" if at_least(torch, 2, 6) else "<5"


def setuptools_for(release: str, torch: str) -> str:
    """The bounds on setuptools that building a release beside a torch sets, as a specifier.

    From mamba-ssm 2.2.3 on the name stands in pyproject.toml's ``[project]``, which setuptools
    reads from 61 on. ``torch.utils.cpp_extension``, which the build imports, takes packaging from
    ``pkg_resources`` before torch 2.2; setuptools 70 no longer has it there.
    """
    bounds = [">=61"] if at_least(release, 2, 2, 3) else []
    if not at_least(torch, 2, 2):
        bounds.append("<70")
    return ",".join(bounds)


def numpy_for(torch: str) -> str:
    """The bound on numpy that a torch sets, as a specifier.

    PyTorch was built for numpy 2 from 2.3 on, NVIDIA's builds (``+…nv24.08``) not before 2.6.
    """
    vendors = "nv" in torch.partition("+")[2]
    return "" if at_least(torch, 2, 6) or (at_least(torch, 2, 3) and not vendors) else "<2"
