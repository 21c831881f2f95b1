"""The text that the models learn: the standard library's own sources, or a file of the user's.

Python's sources lie on every machine that runs this, are large enough to learn from, and anyone
can tell at a glance whether a sample looks like them.
"""

from __future__ import annotations

import math
import re
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from jetson_mamba.errors import CannotRun

# Several times what the default number of training steps reads.
LIBRARY_CHARACTERS = 3_000_000
# A text of Chinese has thousands of characters; the rarest of a longer list teach nothing.
LARGEST_ALPHABET = 4096
LEAST_CHARACTERS = 10_000
HELD_OUT_SHARE = 20
LEAST_PROMPT, LONGEST_PROMPT = 24, 72
# A level of indentation becomes one character, or a small model learns to write spaces.
INDENTATION = re.compile(r"^(?: {4})+", re.MULTILINE)
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class Text(NamedTuple):
    """A text in two parts: one to learn from, one to be tested on."""

    name: str
    training: str
    held_out: str
    alphabet: str

    def unigram_entropy(self) -> float:
        """Nats per character of the best model that ignores what comes before a character."""
        counts = Counter(self.training)
        total = len(self.training)
        return -sum(count / total * math.log(count / total) for count in counts.values())

    def prompt(self) -> str:
        """The first line of the held-out part that is long enough, and not indented."""
        lines = self.held_out.splitlines()[1:]
        starts = (line for line in lines if len(line) >= LEAST_PROMPT and line[0].isalnum())
        return next(starts, self.held_out)[:LONGEST_PROMPT]


def standard_library() -> Text:
    """The modules at the top of the standard library, by name, until there is enough text."""
    folder = Path(sysconfig.get_path("stdlib"))
    pieces: list[str] = []
    length = 0
    for path in sorted(folder.glob("*.py")):
        if length >= LIBRARY_CHARACTERS:
            break
        try:
            piece = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        piece = INDENTATION.sub(lambda spaces: "\t" * (len(spaces[0]) // 4), piece)
        pieces.append(piece)
        length += len(piece)
    version = ".".join(map(str, sys.version_info[:2]))
    name = f"{len(pieces)} modules of Python {version}'s standard library"
    if length < LEAST_CHARACTERS:
        raise CannotRun(
            f"{folder}: found {length} characters of Python source, expected the standard "
            "library; give a text of your own with --text FILE"
        )
    return split(name, "".join(pieces))


def from_file(path: Path) -> Text:
    """The text of one file, in UTF-8."""
    try:
        characters = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise CannotRun(
            f"--text {path}: byte {error.start} is not UTF-8; expected a text file in UTF-8"
        ) from error
    except OSError as error:
        raise CannotRun(
            f"--text {path}: {error.strerror}; expected a file that can be read"
        ) from error
    if len(characters) < LEAST_CHARACTERS:
        raise CannotRun(
            f"--text {path}: found {len(characters)} characters, expected at least "
            f"{LEAST_CHARACTERS}; give a longer text"
        )
    return split(path.name, characters)


def split(name: str, characters: str) -> Text:
    """Hold out the end of a text, and give it an alphabet of bounded size."""
    counts = Counter(characters)
    if len(counts) > LARGEST_ALPHABET:
        kept = {character for character, _ in counts.most_common(LARGEST_ALPHABET - 1)}
        characters = "".join(each if each in kept else UNKNOWN for each in characters)
    middle = len(characters) - len(characters) // HELD_OUT_SHARE
    return Text(name, characters[:middle], characters[middle:], "".join(sorted(set(characters))))
