"""A sample of mutants of each kind, the same one every time; ``make mutants`` runs them all."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Iterator

import pytest

from tests import interpreters
from tests.forks import Workers
from tests.mutants.__main__ import run, sample, workers
from tests.mutants.probes import SUBJECTS
from tests.mutants.registry import KINDS, Mutant, mutants
from tests.mutants.texts import TARGETS
from tests.mutants.verdicts import FORBIDDEN, Verdict
from tests.mutants.worker import module_of, targets_of

SEED = 1
# One of them of those whose functions Triton's interpreter takes seconds for.
OF_EACH_KIND = 6
LEAST = 1000


def is_slow(mutant: Mutant) -> bool:
    """Whether a function that it has a part in is called less often, for the time it takes."""
    return any(
        subject.slow and not subject.label
        for target in targets_of(mutant)
        for subject in SUBJECTS[module_of(target)]
    )


@lru_cache(maxsize=None)
def all_mutants() -> tuple[Mutant, ...]:
    return tuple(mutants(SEED))


def test_every_kind_makes_mutants_of_its_texts_and_no_two_are_the_same() -> None:
    made = all_mutants()
    assert len(made) >= LEAST
    assert set(Counter(mutant.kind for mutant in made)) == set(KINDS)
    assert {mutant.path for mutant in made} >= set(TARGETS)
    assert [name for name, count in Counter(each.name for each in made).items() if count > 1] == []
    assert list(made) == mutants(SEED)


def chosen(of_a_kind: list[Mutant]) -> list[Mutant]:
    """A sample, the slow one of a mutation that no other is of."""
    others = sample([each for each in of_a_kind if not is_slow(each)], OF_EACH_KIND - 1, SEED)
    met = {each.mutation for each in others}
    slow = [each for each in of_a_kind if is_slow(each)]
    return [*others, *sample([each for each in slow if each.mutation not in met] or slow, 1, SEED)]


@pytest.fixture(scope="module")
def started() -> Iterator[Workers]:
    with workers(1, interpreters.copies()) as started:
        yield started


@pytest.mark.parametrize("kind", KINDS)
def test_none_is_silently_different_refused_or_worse_off(kind: str, started: Workers) -> None:
    of_this_kind = [mutant for mutant in all_mutants() if mutant.kind == kind]
    found = run(chosen(of_this_kind), started)
    assert {mutant.name: finding for mutant, finding in found if finding.verdict in FORBIDDEN} == {}
    counts = Counter(finding.verdict for _, finding in found)
    assert len(found) == OF_EACH_KIND
    assert counts[Verdict.SERVED] > 0
    # What does not run by itself says nothing: a sample of such would be no test.
    assert counts[Verdict.NOT_RUN] <= OF_EACH_KIND // 3
