"""A class that is imported at its first use does what the real one does, on every Python."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests.hook import pythons
from tests.imports import fakes

IMPORTED = """
import sys
from jetson_mamba.compat.transformers_generation import (
    GenerateDecoderOnlyOutput, GreedySearchDecoderOnlyOutput, SampleDecoderOnlyOutput, TextStreamer
)
"""
# What leaves the package alone: annotations, and whoever looks through the names of a module.
IDLE = """
import inspect, typing
from jetson_mamba.compat import transformers_generation, transformers_utils

def decode(streamer: typing.Optional[TextStreamer] = None, *, more: "TextStreamer" = None): ...

class Cell(typing.NamedTuple):
    streamer: typing.List[TextStreamer]

if sys.version_info >= (3, 10):
    assert (TextStreamer | None) == typing.Optional[TextStreamer]
assert typing.get_type_hints(decode)["streamer"] == typing.Optional[TextStreamer]
assert inspect.isclass(TextStreamer) and isinstance(TextStreamer, type)
for module in (transformers_generation, transformers_utils):
    for name, value in inspect.getmembers(module):
        inspect.unwrap(value) if callable(value) else value
        repr(value), value == 1, getattr(value, "__test__", None)
assert {TextStreamer: 1}[TextStreamer]
assert TextStreamer.__name__ == TextStreamer.__qualname__ == "TextStreamer"
assert transformers_utils.cached_file.__name__ == "cached_file"
assert transformers_utils.CONFIG_NAME + transformers_utils.WEIGHTS_NAME
assert "transformers" not in sys.modules and "torch" not in sys.modules
"""
USED = """
import abc, pickle
made = TextStreamer("t", skip=True)
import transformers.generation as real
assert type(made) is real.TextStreamer and (made.tokenizer, made.skip) == ("t", True)
assert isinstance(made, TextStreamer) and not isinstance(1, TextStreamer)
assert issubclass(real.TextStreamer, TextStreamer) and not issubclass(int, TextStreamer)
assert issubclass(TextStreamer, TextStreamer)
assert TextStreamer.put is real.TextStreamer.put and not hasattr(TextStreamer, "absent")
assert "put" in dir(TextStreamer) and str(TextStreamer) == str(real.TextStreamer)

class Own(TextStreamer):
    def put(self, value):
        return super().put(value) + 1

class Abstract(abc.ABC, TextStreamer):
    @abc.abstractmethod
    def more(self): ...

assert Own.__mro__ == (Own, real.TextStreamer, object) and type(Own) is type
assert Own("t").put(1) == 2 and isinstance(Own("t"), TextStreamer)
assert Abstract.__mro__[-2] is real.TextStreamer and Abstract.__abstractmethods__ == {"more"}
assert pickle.loads(pickle.dumps(TextStreamer)) is real.TextStreamer
assert pickle._loads(pickle._dumps(TextStreamer)) is real.TextStreamer
assert type(pickle.loads(pickle.dumps(made))) is real.TextStreamer
TextStreamer.put = len
assert real.TextStreamer.put is len
del TextStreamer.put
assert not hasattr(real.TextStreamer, "put")
for kind in (GenerateDecoderOnlyOutput, GreedySearchDecoderOnlyOutput, SampleDecoderOnlyOutput):
    output = kind(sequences=1)
    assert type(output) is real.GenerateDecoderOnlyOutput and isinstance(output, kind)
    assert pickle.loads(pickle.dumps(output)) == {"sequences": 1}
from jetson_mamba.compat.transformers_utils import cached_file
assert cached_file("model", "file", revision=1) == (("model", "file"), {"revision": 1})
"""


@pytest.mark.parametrize("python", pythons.oldest_own_newest())
def test_it_is_imported_when_it_is_used_and_not_before(python: str, tmp_path: Path) -> None:
    assert fakes.run(IMPORTED + IDLE + USED, fakes.transformers(tmp_path), python=python) == ""


def test_the_classes_that_transformers_removed_are_its_own_where_it_has_them(
    tmp_path: Path,
) -> None:
    own = fakes.GENERATION + "class GreedySearchDecoderOnlyOutput(dict): pass\n"
    code = "print(type(GreedySearchDecoderOnlyOutput()), type(SampleDecoderOnlyOutput()))"
    printed = fakes.run(IMPORTED + code, fakes.transformers(tmp_path, own))
    assert "GreedySearchDecoderOnlyOutput" in printed.split(" <")[0]
    assert "GenerateDecoderOnlyOutput" in printed.split(" <")[1]


USES = {
    "call": "TextStreamer('t')",
    "attribute": "TextStreamer.put",
    "instance": "isinstance(1, TextStreamer)",
    "subclass": "type('Own', (TextStreamer,), {})",
    "output": "GreedySearchDecoderOnlyOutput()",
    "hub": "import jetson_mamba.compat.transformers_utils as u; u.cached_file('a', 'b')",
}
RAISES = """
try:
    {use}
except ImportError as error:
    assert error.name == "transformers", error.name
    assert error.__cause__ is not None
    print(type(error).__name__, error)
"""


def test_printing_it_without_the_package_is_no_use_of_it(tmp_path: Path) -> None:
    printed = fakes.run(IMPORTED + "print(TextStreamer)", tmp_path)
    assert printed == "<class 'transformers.generation.TextStreamer'>"


PIP = f"{shlex.quote(sys.executable)} -m pip install"


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_use_without_the_package_says_what_to_install(use: str, tmp_path: Path) -> None:
    purpose = "to find a pretrained model" if "cached_file" in use else "to generate text"
    assert fakes.run(IMPORTED + RAISES.format(use=use), tmp_path) == (
        f"ModuleNotFoundError mamba_ssm needs transformers {purpose}, and there is none: "
        f"{PIP} transformers"
    )


@pytest.mark.parametrize(
    ("generation", "torch", "version", "told"),
    [
        (None, True, "4.1.0", f"has no {{name}}: {PIP} --upgrade transformers"),
        ("", True, "4.9.0", f"has no {{name}}: {PIP} --upgrade transformers"),
        (
            "",
            False,
            "5.0.1",
            "has no {name}, since it does not take torch 2.4.0: install a newer torch, or "
            f"{PIP} 'transformers<5'",
        ),
        (
            "",
            False,
            "4.57.0",
            "has no {name}, since it does not take torch 2.4.0: install a newer torch",
        ),
        ("1 / 0", True, "5.0.1", "cannot be imported (ZeroDivisionError: division by zero): "),
        ("import sys; sys.absent", True, "5.0.1", "cannot be imported (AttributeError: "),
        ("import absent", True, "5.0.1", "cannot be imported (ModuleNotFoundError: No module"),
    ],
)
@pytest.mark.parametrize("name", ["GenerateDecoderOnlyOutput", "SampleDecoderOnlyOutput"])
def test_a_use_beside_one_that_lacks_it_says_why(
    generation: str | None, torch: bool, version: str, told: str, name: str, tmp_path: Path
) -> None:
    folder = fakes.transformers(tmp_path, generation, torch, version)
    printed = fakes.run(IMPORTED + RAISES.format(use=f"{name}()"), folder)
    told = told.format(name=f"transformers.generation.{name}")
    start = f"ImportError mamba_ssm needs transformers to generate text, and transformers {version}"
    # Of an error in it the words of Python follow.
    broken = "cannot be imported" in told
    assert printed.startswith(f"{start} {told}") if broken else printed == f"{start} {told}"
    assert printed.count("\n") == 0
