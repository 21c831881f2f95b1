"""Compares the machine code of the CUDA kernels with that of their sources in an earlier commit.

``python -m tools.machine_code [COMMIT]`` compiles what the tests of compilation compile, twice
where the source or a header has changed, and prints what differs: where nothing does, no GPU is
needed to know that a change is right. It needs NVRTC. With ``EVERY_KERNEL=1`` the tests compile
all variants, not a part of them.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import multiprocessing
import re
import struct
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, NamedTuple, Tuple

import pytest

from jetson_mamba.kernels import compiler

TESTS = Path("tests/kernels")
KERNELS = "jetson_mamba/kernels"
# Bytes of an instruction, and the bits of its first two that tell its kind, from sm_70 on.
INSTRUCTION, KIND = 16, 0xFFF

Texts = Dict[str, bytes]
# Source, entry, definitions and architecture.
Program = Tuple[str, str, Tuple[Tuple[str, str], ...], str]


class Asking:
    """A plugin of pytest that learns what tests compile; nothing is compiled."""

    def __init__(self) -> None:
        self.programs: dict[Program, None] = {}

    @pytest.fixture(autouse=True)
    def nothing_is_compiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stand in for the compiler."""

        def compile_source(*program: Any) -> compiler.Compiled:
            self.programs[program] = None
            return compiler.Compiled(b"\x7fELF", 0, 0, 0, "")

        monkeypatch.setattr(compiler, "compile_source", compile_source)
        monkeypatch.setattr(compiler, "resources", lambda log, entry: (0, 0, 0))


class Code(NamedTuple):
    """What came of a program."""

    digest: str
    instructions: int
    registers: int
    spilled: int
    shared: int
    kinds: tuple[tuple[int, int], ...]


@lru_cache(maxsize=None)
def at(commit: str, name: str) -> Texts:
    """A source and its headers as a commit has them; none where it has no such source."""
    texts: Texts = {}
    pending = [name]
    while pending:
        name = pending.pop()
        if name in texts:
            continue
        shown = subprocess.run(
            ["git", "show", f"{commit}:{KERNELS}/{name}"], capture_output=True, check=False
        )
        if shown.returncode:
            return {}
        texts[name] = shown.stdout
        pending += re.findall(r'^\s*#\s*include\s+"([^"]+)"', shown.stdout.decode(), re.MULTILINE)
    return texts


def without_comments(texts: Texts) -> str:
    """What the compiler sees of it."""
    whole = b"\n".join(texts[name] for name in sorted(texts)).decode()
    return re.sub(r"\s+", " ", re.sub(r"//.*", "", whole))


def sections(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of what an ELF file has of code and constants."""
    (start,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<3H", cubin, 58)
    headers = [struct.unpack_from("<2I4Q", cubin, start + size * each) for each in range(count)]
    texts = headers[names][4]
    for place, _, _, _, offset, length in headers:
        name = cubin[texts + place : cubin.index(b"\0", texts + place)].decode()
        if name.startswith((".text.", ".nv.constant")):
            yield name, cubin[offset : offset + length]


def code_of(task: tuple[Program, Texts]) -> Code:
    """Compile a program of these texts: the code is that of all its kernels."""
    program, texts = task
    vars(compiler)["sources"] = lambda name: dict(texts)
    compiled = compiler.compile_source(*program)
    digest, kinds = hashlib.sha256(), collections.Counter[int]()
    for name, content in sections(compiled.cubin):
        digest.update(name.encode() + b"\0" + content)
        if name.startswith(".text."):
            words = struct.unpack(f"<{len(content) // 2}H", content)
            kinds.update(word & KIND for word in words[:: INSTRUCTION // 2])
    return Code(
        digest.hexdigest(),
        sum(kinds.values()),
        *(compiled.registers, compiled.spill_bytes, compiled.static_shared_bytes),
        tuple(sorted(kinds.items())),
    )


def difference(before: Code, after: Code) -> str:
    """In words; nothing where the code is the same."""
    if before.digest == after.digest:
        return ""
    changed = [
        f"{name} {old} -> {new}"
        for name, old, new in zip(Code._fields[1:-1], before[1:-1], after[1:-1])
        if old != new
    ]
    if before.kinds == after.kinds:
        changed.append("the same instructions in another order or of other registers")
    return ", ".join(changed) or "other instructions, as many"


def tasks(programs: Iterable[Program], commit: str) -> Iterator[tuple[Program, Texts, Texts]]:
    """Programs whose texts have changed, with both; of those that come out alike the first."""
    seen = set()
    for source, entry, defines, architecture in programs:
        before, after = at(commit, source), compiler.sources(source)
        text = without_comments(after)
        if not before or without_comments(before) == text:
            continue
        named = set(re.findall(r"\w+", text + without_comments(before)))
        used = tuple(each for each in defines if each[0] in named)
        if (source, entry, used, architecture) not in seen:
            seen.add((source, entry, used, architecture))
            yield (source, entry, used, architecture), before, after


def main() -> int:
    """Compare; exit code 1 where something differs."""
    parser = argparse.ArgumentParser(prog="python -m tools.machine_code", description=__doc__)
    parser.add_argument("commit", nargs="?", default="HEAD")
    parser.add_argument("--of", default="", help="only of these in 'ssd_pass.cu sm_87'")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    asking = Asking()
    tests = sorted(map(str, TESTS.glob("test_compile_*.py")))
    if pytest.main(["-qq", "-p", "no:cacheprovider", *tests], [asking]):
        return 2
    programs = (each for each in asking.programs if options.of in f"{each[0]} {each[3]}")
    changed = list(tasks(programs, options.commit))
    both = [(program, texts) for program, *two in changed for texts in two]
    differing = 0
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        codes = pool.imap(code_of, both)
        for program, _, _ in changed:
            words = difference(next(codes), next(codes))
            if words:
                differing += 1
                _, entry, defines, architecture = program
                given = " ".join("=".join(each) for each in defines)
                print(f"{entry} {architecture} {given}: {words}", flush=True)
    print(f"{len(changed)} programs have another source, {differing} other code")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
