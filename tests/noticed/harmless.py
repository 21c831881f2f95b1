"""Changes that have no effect, so that no test can notice them, each with the reason.

``make mutate`` prints a survivor in the form that stands here. A line of the package that is
changed later is no longer the one that is meant: :func:`test_every_one_is_of_a_line_that_is_there`
says so.
"""

from __future__ import annotations

from typing import NamedTuple


class Harmless(NamedTuple):
    """A line of a file, what it becomes, and why nothing comes of that."""

    file: str
    before: str
    after: str
    reason: str


HARMLESS = (
    Harmless(
        "jetson_mamba/report/probe.py",
        "os._exit(0)",
        "os._exit(1)",
        "the answer is written by then, and how the fork ends is asked where there is none",
    ),
    Harmless(
        "jetson_mamba/rewrite/draft.py",
        'for token in tokenize.generate_tokens(io.StringIO(text, newline="").readline)',
        "for token in tokenize.generate_tokens(io.StringIO(text, newline=None).readline)",
        "the ends of lines differ, and of a token only its place and a name's text are asked for",
    ),
    Harmless(
        "jetson_mamba/cache.py",
        'descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))',
        'descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 1))',
        "every system on which torch and CUDA run has the flag",
    ),
    Harmless(
        "jetson_mamba/installing/work.py",
        "packages += _told(tool, (*plan.optional, *plan.held), plan)",
        "packages = _told(tool, (*plan.optional, *plan.held), plan)",
        "it is the first that is told, of a list that is empty",
    ),
    Harmless(
        "jetson_mamba/ops/ssd/steps.py",
        "return not (scan.dt_softplus and least <= 0 and most == math.inf)",
        "return not (scan.dt_softplus and least < 0 and most == math.inf)",
        "what softplus gives is left as it is by a limit of 0",
    ),
    Harmless(
        "jetson_mamba/installing/plan.py",
        'specifier = match["specifier"].strip() if match else ""',
        'specifier = match["specifier"].strip() if match else "XXXX"',
        "without a match it is refused whatever it is",
    ),
    Harmless(
        "jetson_mamba/replay/captured.py",
        "self._full_until = now + IDLE_CALLS // 64",
        "self._full_until = now + IDLE_CALLS // 65",
        "it is looked at again a little sooner",
    ),
    Harmless(
        "jetson_mamba/ops/selective_scan/decomposed.py",
        "spare = 0 if isinstance(steps, int) else BLOCK",
        "spare = 0 if (isinstance(steps, int)) and False else BLOCK",
        "more steps are added at the end, which are cut off again",
    ),
    Harmless(
        "jetson_mamba/rewrite/closure.py",
        "if place in written:",
        "if False:",
        "what is written once more is the same, and so is what it refers to",
    ),
    Harmless(
        "jetson_mamba/rewrite/closure.py",
        'yield (each, 0), _Written("not there", frozenset(), False)',
        'yield (each,), _Written("not there", frozenset(), False)',
        "of a name without a statement there is nothing to tell a first one from",
    ),
    Harmless(
        "jetson_mamba/dispatch/unchecked.py",
        "return inspect.signature(lambda *arguments, **keywords: None).parameters",
        "return inspect.signature(lambda *arguments, **keywords: 0).parameters",
        "of the function only its parameters are asked for",
    ),
)
