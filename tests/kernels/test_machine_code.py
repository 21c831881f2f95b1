"""A change of a kernel's machine code is told in words."""

from __future__ import annotations

import pytest

from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler
from tools import machine_code

PROGRAM = ("adds.cu", "adds", (("COUNT", "2"),), "sm_80")
TEXT = """// Adds.
#include "more.cuh"
extern "C" __global__ void adds(float* to) { to[threadIdx.x] += more(COUNT); }
"""
MORE = "__device__ float more(int count) { return 2.0f * count; }  // Twice.\n"


def code(text: str, monkeypatch: pytest.MonkeyPatch) -> machine_code.Code:
    # Its own restores nothing: it runs in a process of its own.
    monkeypatch.setattr(compiler, "sources", compiler.sources)
    try:
        texts = {"adds.cu": text.encode(), "more.cuh": MORE.encode()}
        return machine_code.code_of((PROGRAM, texts))
    except Unavailable as reason:
        pytest.skip(str(reason))


def test_what_differs_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code(TEXT, monkeypatch)
    assert before.instructions > 0 and before.registers > 0
    same = code(TEXT.replace("// Adds.", "// Adds twice the count."), monkeypatch)
    assert machine_code.difference(before, same) == ""
    more = code(TEXT.replace("+=", "*= to[0]; to[1] +="), monkeypatch)
    assert machine_code.difference(before, more)
    assert "spilled 0 -> 4" in machine_code.difference(before, more._replace(spilled=4))
    moved = before._replace(digest="another")
    assert "the same instructions" in machine_code.difference(before, moved)


def test_a_program_is_compiled_twice_where_its_text_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = (PROGRAM[0], PROGRAM[1], (*PROGRAM[2], ("OTHER", "1")), PROGRAM[3])
    now = {"adds.cu": TEXT.encode(), "more.cuh": MORE.encode()}
    monkeypatch.setattr(compiler, "sources", lambda name: now)
    for word, count in (("Twice", 0), ("2.0f", 1)):
        before = {**now, "more.cuh": MORE.replace(word, "3.0f").encode()}
        monkeypatch.setattr(machine_code, "at", lambda commit, name, before=before: before)
        # What no text names makes no other program.
        found = list(machine_code.tasks([PROGRAM, other], "HEAD"))
        assert [(each[0], each[2]) for each in found] == [(PROGRAM, now)] * count
