"""Each kind of difference that the hook makes to a row has a verdict of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from tests.joints.declared import ALL, Joint
from tests.joints.measures import loss
from tests.joints.verdicts import Judged, Verdict, judge
from tests.joints.workers import Outcome

OURS, THEIRS = "Mamba2", "transformers Mamba2"
ONE = {"out": torch.ones(3)}
OFF = {"out": torch.tensor([1.0, 1.0, 1.01])}


def outcome(results: dict[str, Any] | None = None, error: str = "", *said: str) -> Outcome:
    kind, _, message = error.partition(": ")
    return Outcome(results or {}, kind or None, message, said, 0.0)


def judged(
    hooked: Outcome,
    without: Outcome,
    subject: str = THEIRS,
    exact: Outcome | None = None,
    plain: Outcome | None = None,
    may_refuse: bool = False,
) -> Judged:
    joint = Joint("a joint", "area", lambda _: {}, ALL, exact is not None, may_refuse, None, False)
    return judge(joint, subject, hooked, without, exact, plain or outcome(ONE))


def test_the_same_numbers_are_right_and_others_are_not() -> None:
    assert judged(outcome(ONE), outcome(ONE)).verdict is Verdict.RIGHT
    assert judged(outcome(OFF), outcome(ONE)).verdict is Verdict.SILENT
    assert judged(outcome(OFF, "", "UserWarning: jetson_mamba says so"), outcome(ONE)).verdict is (
        Verdict.WORSE
    )


@pytest.mark.parametrize("subject", [OURS, THEIRS])
def test_an_error_is_worse_than_numbers(subject: str) -> None:
    assert judged(outcome(None, "TypeError: no"), outcome(ONE), subject).verdict is Verdict.WORSE


def test_errors_are_compared_by_their_kind() -> None:
    failing = outcome(None, "TypeError: no")
    assert judged(failing, outcome(None, "TypeError: other")).verdict is Verdict.SAME_ERROR
    assert judged(failing, outcome(None, "ValueError: no")).verdict is Verdict.WORSE
    # A twin says that it cannot be done, not by which error.
    assert judged(failing, outcome(None, "ValueError: no"), OURS).verdict is Verdict.SAME_ERROR
    clear = outcome(None, "ValueError: x: expected three dimensions, found two")
    assert judged(clear, outcome(None, "RuntimeError: no")).verdict is Verdict.REFUSED


def test_a_package_that_is_missing_in_both_is_no_verdict() -> None:
    lacking = outcome(None, "ModuleNotFoundError: No module named 'peft'")
    for subject in (OURS, THEIRS):
        verdict = judged(lacking, lacking, subject).verdict
        assert verdict is Verdict.ABSENT
        assert not verdict.passes
    assert judged(lacking, outcome(ONE)).verdict is Verdict.WORSE


def test_a_wrong_result_is_never_excused_by_an_error_without_the_hook() -> None:
    wrong = outcome(None, "Wrong: off by 1.0")
    assert judged(wrong, outcome(None, "RuntimeError: no"), OURS).verdict is Verdict.SILENT
    assert judged(wrong, outcome(ONE)).verdict is Verdict.SILENT


def test_a_refusal_passes_only_where_nothing_runs_without_the_hook() -> None:
    refused = outcome(None, "RuntimeError: jetson_mamba cannot; do this")
    assert judged(refused, outcome(ONE), OURS, may_refuse=True).verdict is Verdict.REFUSED
    assert judged(refused, outcome(ONE), OURS).verdict is Verdict.WORSE
    assert judged(refused, outcome(ONE), THEIRS, may_refuse=True).verdict is Verdict.WORSE


def test_what_works_with_the_hook_alone_is_held_to_a_plain_step_of_training() -> None:
    failing = outcome(None, "RuntimeError: no")
    assert judged(outcome(ONE), failing).verdict is Verdict.RIGHT
    assert judged(outcome(OFF), failing).verdict is Verdict.SILENT


def test_other_names_dtypes_and_facts_do_not_pass() -> None:
    more = outcome({**ONE, "gradient": torch.ones(2)})
    assert judged(outcome(ONE), more).verdict is Verdict.WORSE
    wide = {"out": ONE["out"].double()}
    assert judged(outcome(wide), outcome(ONE)).verdict is Verdict.SILENT
    assert judged(outcome({"left": 1}), outcome({"left": 0})).verdict is Verdict.SILENT
    assert judged(outcome({"left": True}), outcome({"left": 1})).verdict is Verdict.SILENT


def test_what_is_not_a_number_must_be_so_in_both() -> None:
    holed = {"out": torch.tensor([1.0, float("nan"), float("inf")])}
    assert judged(outcome(holed), outcome(holed)).verdict is Verdict.RIGHT
    assert judged(outcome(ONE), outcome(holed)).verdict is Verdict.SILENT
    assert judged(outcome(holed), outcome(ONE)).verdict is Verdict.SILENT


def test_what_rounding_leaves_of_a_zero_is_zero() -> None:
    large = {"out": torch.full((3,), 100.0)}
    one, other = ({**large, "gradient": torch.full((3,), tiny)} for tiny in (1e-7, -3e-7))
    assert judged(outcome(one), outcome(other)).verdict is Verdict.RIGHT
    more = {**large, "gradient": torch.full((3,), 0.1)}
    assert judged(outcome(more), outcome(other)).verdict is Verdict.SILENT


def test_rounded_results_are_judged_by_their_distance_from_exact_ones() -> None:
    rounded = outcome({"out": torch.full((3,), 1.02)})
    other = outcome({"out": torch.full((3,), 0.98)})
    far = outcome({"out": torch.full((3,), 1.2)})
    assert judged(rounded, other, exact=outcome(ONE)).verdict is Verdict.RIGHT
    assert judged(far, other, exact=outcome(ONE)).verdict is Verdict.SILENT
    assert judged(rounded, other).verdict is Verdict.SILENT


def test_a_new_warning_is_worse_unless_it_is_the_projects_own() -> None:
    warned = outcome(ONE, "", "UserWarning: something")
    assert judged(warned, outcome(ONE)).verdict is Verdict.WORSE
    assert judged(warned, warned).verdict is Verdict.RIGHT
    own = outcome(ONE, "", "RuntimeWarning: jetson_mamba: slow")
    assert judged(own, outcome(ONE)).verdict is Verdict.RIGHT


def test_a_result_that_nothing_was_held_against_is_not_right() -> None:
    failing, alone = outcome(None, "RuntimeError: no"), {"last": torch.ones(3)}
    assert judged(outcome(alone), failing).verdict is Verdict.WORSE
    assert judged(outcome(alone)._replace(checked=1), failing).verdict is Verdict.RIGHT
    assert judged(outcome(ONE), failing).verdict is Verdict.RIGHT


def test_the_name_of_a_file_in_a_traceback_is_no_advice() -> None:
    said = "RuntimeError: split_with_sizes expects 11\\n/site-packages/jetson_mamba/tracing.py(47)"
    found = judged(outcome(None, said), outcome(None, "Wrong: no"), OURS, may_refuse=True)
    assert found.verdict is Verdict.WORSE


def test_what_is_rounded_is_so_without_another_measure_too() -> None:
    failing = outcome(None, "RuntimeError: no")
    off = {"out": torch.tensor([1.0, 1.0, 1.02])}
    assert judged(outcome(off), failing, exact=failing).verdict is Verdict.RIGHT
    assert judged(outcome(off), failing).verdict is Verdict.SILENT


def test_of_several_draws_the_median_counts_and_each_is_a_number() -> None:
    near, far, no_number = torch.full((3,), 1.01), torch.full((3,), 1.5), torch.full((3,), 2.0)
    no_number[0] = float("nan")
    ones = outcome({"out": [torch.ones(3)] * 3})
    for draws, verdict in (
        ([near, far, near], Verdict.RIGHT),
        ([far, far, near], Verdict.SILENT),
        ([near, near, no_number], Verdict.SILENT),
        ([near, near], Verdict.SILENT),
    ):
        assert judged(outcome({"out": draws}), ones, exact=ones).verdict is verdict


@pytest.mark.filterwarnings("ignore")  # torch imports what it has deprecated.
def test_what_is_measured_may_be_transformed_and_traced() -> None:
    """Else a row would raise the same error with the hook and without, and show nothing."""
    x = torch.randn(3, 2)
    factors = torch.func.grad(loss)(x)
    assert len(factors.unique()) == x.numel()
    assert torch.equal(torch.func.vmap(torch.func.grad(loss))(x[None])[0], factors)
    assert torch.equal(torch.func.hessian(loss)(x), torch.zeros(3, 2, 3, 2))
    assert torch.equal(make_fx(torch.func.grad(loss))(x)(x), factors)
