"""What is said of a mutant, for each thing that can come of one."""

from __future__ import annotations

import pytest

from tests.mutants.probes import Answer
from tests.mutants.verdicts import WITHOUT_TRITON, Run, Verdict, judge

TARGET = "mamba_ssm.ops.own"
CALL = "scan by name, inference"
MEANT = Answer([([2], [1.0, 2.0])], None, 0)
OTHER = [([2], [1.0, 2.1])]


def verdict(
    found: Answer, *said: str, situation: str = "", reason: str = "", refusable: str = ""
) -> Verdict:
    run = Run({CALL: found}, list(said), {TARGET: reason} if reason else {})
    own = Run({CALL: MEANT, "scan required, inference": Answer(None, "Own", 0)}, [], {})
    return judge(own, {situation: run}, TARGET, ("scan", "inner"), refusable or None).verdict


def test_equal_numbers_are_served_or_left_with_a_word() -> None:
    assert verdict(MEANT) is Verdict.SERVED
    assert verdict(MEANT._replace(numbers=[([2], [1.0, 2.0001])])) is Verdict.SERVED
    assert verdict(MEANT._replace(warned=1), "scan: it is none that was checked") is Verdict.LEFT


@pytest.mark.parametrize(
    "numbers",
    [OTHER, [([1, 2], [1.0, 2.0])], [([2], [float("nan"), 2.0])], [([2], [1.0, float("inf")])]],
)
def test_other_numbers_need_a_word_before_them(
    numbers: list[tuple[list[int], list[float]]],
) -> None:
    found = Answer(numbers, None, 1)
    assert verdict(found) is Verdict.SILENT
    assert verdict(found, "scan is computed by an op") is Verdict.LEFT
    assert verdict(found, f"{TARGET} stays as it is installed") is Verdict.LEFT
    for of_others in ("inner is computed by an op", f"{TARGET}.inner stays", f"{TARGET}2 stays"):
        assert verdict(found, of_others) is Verdict.SILENT
    assert verdict(found._replace(warned=0), "scan is computed by an op") is Verdict.SILENT


def test_what_raises_is_worse_off_but_where_its_own_code_cannot_run_and_it_is_named() -> None:
    found = Answer(None, "TypeError: scan: own_extra is not known", 1)
    assert verdict(found, situation=WITHOUT_TRITON) is Verdict.LEFT
    assert verdict(found) is Verdict.WORSE
    by_op = found._replace(raised="ValueError: headdim: expected at least 1, found None")
    assert verdict(by_op, situation=WITHOUT_TRITON) is Verdict.WORSE
    assert verdict(by_op, "scan: the op serves", situation=WITHOUT_TRITON) is Verdict.LEFT
    nameless = found._replace(raised="TypeError: '<' not supported")
    assert verdict(nameless, situation=WITHOUT_TRITON) is Verdict.WORSE


def test_a_target_that_is_refused_needs_a_reason_and_a_word() -> None:
    found = Answer(None, "TypeError: 'NoneType' object is not callable", 1)
    word = f"{TARGET} stays as it is installed"
    assert verdict(found, word, reason="an unknown form") is Verdict.REFUSED
    assert verdict(found, word, reason="an unknown form", refusable="a string") is Verdict.LEFT
    assert verdict(found, reason="an unknown form", refusable="a string") is Verdict.REFUSED
    missing = found._replace(raised="ModuleNotFoundError: No module named 'selective_scan_cuda'")
    assert verdict(missing) is Verdict.WORSE
    assert verdict(missing, refusable="they stand elsewhere") is Verdict.LEFT


def test_calls_that_the_mutant_itself_cannot_make_say_nothing() -> None:
    own = Run({CALL: Answer(None, "Own", 0)}, [], {})
    run = Run({CALL: MEANT}, [], {})
    assert judge(own, {"": run}, TARGET, ("scan",), None).verdict is Verdict.NOT_RUN
    assert judge(Run({CALL: MEANT}, [], {}), {"": Run({}, [], {})}, TARGET, (), None).verdict is (
        Verdict.WORSE
    )
