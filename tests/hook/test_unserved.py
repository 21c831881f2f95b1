"""A text that is refused and an extension that is missing end in one message that says both."""

from __future__ import annotations

import os

import pytest

from tests.hook.pythons import oldest_own_newest
from tests.hook.sandbox import Sandbox

TARGET = "mamba_ssm.ops.selective_scan_interface"
# A call form that no override knows, so that the text is refused.
REFUSED = """

def unknown(x):
    return causal_conv1d_cuda.causal_conv1d_fwd(x, x, x, None, None, None, None, None, True)
"""
GUARDED = (
    """
try:
    from causal_conv1d import causal_conv1d_fn as fn
    import causal_conv1d_cuda
except ImportError:
    fn, causal_conv1d_cuda = None, None
try:
    import selective_scan_cuda as scan
except ImportError:
    scan = None


def decorated(function):
    import functools

    @functools.wraps(function)
    def inner(*args):
        return function(*args)

    return inner


class Function:
    @staticmethod
    @decorated
    def forward(x):
        assert causal_conv1d_cuda is not None, "the extension is needed"
        return x

    @classmethod
    def backward(cls, x):
        return causal_conv1d_cuda.causal_conv1d_bwd(
            x,
            x,
        )

    def scan(self, x):
        return (lambda: scan.fwd(x))()


def called(x):
    return fn(x, x)


def told(x):
    if scan is None:
        raise RuntimeError("selective_scan_cuda is not installed; scan is None")
    return x


def falls_back(x):
    if fn is None:
        return "reference"
    return fn(x)


def its_own(x):
    if fn is None and x is None:
        raise TypeError("'NoneType' object is not what it takes")
    assert x != 1, "its own"
    return None if x is None else x.missing


def own_none(x):
    nothing, _ = None, fn
    return nothing(x)


alias = called
"""
    + REFUSED
)
SAYS = (
    "cannot be imported here",
    f"{TARGET} stays as it is installed: ",
    " positional arguments, a form that is not known",
    "What to do: ",
)
OFF = {"JETSON_MAMBA_STAND_IN": "off"}


def outcome(sandbox: Sandbox, call: str, text: str, python: str | None = None) -> str:
    """The class of the error that a call ends in, and its message."""
    sandbox.interface.write_text(text)
    any_form = sandbox.site / "ops" / "any_form"
    any_form.mkdir(parents=True, exist_ok=True)
    for name in ("__init__", "selective_scan_cuda", "causal_conv1d_cuda"):
        (any_form / f"{name}.py").touch()
    done = sandbox.run(
        f"""
        import inspect, pickle, warnings
        warnings.simplefilter("ignore")
        sys.modules["jetson_mamba.ops"].__path__ = [{str(sandbox.site / "ops")!r}]
        import {TARGET} as module
        try:
            print("returned", {call})
        except Exception as error:
            print(type(error).__name__, isinstance(error, RuntimeError), error)
            print(type(error.__cause__).__name__)
        """,
        environment=OFF,
        **({"python": python} if python else {}),  # type: ignore[arg-type]
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("python", oldest_own_newest(), ids=os.path.basename)
@pytest.mark.parametrize(
    ("call", "cause", "name"),
    [
        ("module.called(1)", "TypeError", "fn"),
        ("module.alias(1)", "TypeError", "fn"),
        ("module.Function.forward(1)", "AssertionError", "causal_conv1d_cuda"),
        ("module.Function.backward(1)", "AttributeError", "causal_conv1d_cuda"),
        ("module.Function().scan(1)", "AttributeError", "scan"),
        ("module.told(1)", "RuntimeError", "scan"),
        ("module.unknown(1)", "AttributeError", "causal_conv1d_cuda"),
    ],
)
def test_a_call_that_needs_the_extension_says_both(
    sandbox: Sandbox, call: str, cause: str, name: str, python: str
) -> None:
    first, last = outcome(sandbox, call, GUARDED, python).splitlines()
    assert first.startswith(f"MissingExtension True {name} ")
    assert last == cause
    for each in SAYS:
        assert each in first


@pytest.mark.parametrize("python", oldest_own_newest(), ids=os.path.basename)
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("module.falls_back(1)", "returned reference"),
        ("module.fn is None and module.scan is None", "returned True"),
        ("module.its_own(1)", "AssertionError False its own"),
        ("module.its_own(None)", "TypeError False 'NoneType' object is not what it takes"),
        ("module.its_own(2)", "AttributeError False 'int' object has no attribute 'missing'"),
        ("module.own_none(1)", "TypeError False 'NoneType' object is not callable"),
        ("module.alias is module.called", "returned True"),
        ("inspect.signature(module.called)", "returned (x)"),
        ("pickle.loads(pickle.dumps(module.called)) is module.called", "returned True"),
    ],
)
def test_what_does_without_it_or_fails_of_itself_is_left_alone(
    sandbox: Sandbox, call: str, expected: str, python: str
) -> None:
    assert outcome(sandbox, call, GUARDED, python).splitlines()[0] == expected


@pytest.mark.parametrize(
    ("statement", "kind", "reason"),
    [
        ("import selective_scan_cuda", "ModuleNotFoundError", "No module named"),
        ("from causal_conv1d import causal_conv1d_fn", "ModuleNotFoundError", "No module named"),
        ("import broken_cuda", "ImportError", "undefined symbol: _ZN3c10"),
    ],
)
def test_an_unguarded_import_says_both_in_its_own_class(
    sandbox: Sandbox, statement: str, kind: str, reason: str
) -> None:
    if "broken" in statement:
        (sandbox.site / "selective_scan_cuda.py").write_text(
            "raise ImportError('x.so: undefined symbol: _ZN3c10', name='selective_scan_cuda')\n"
        )
        statement = "import selective_scan_cuda"
    sandbox.interface.write_text(f"import causal_conv1d_cuda\n{statement}\n{REFUSED}")
    (sandbox.site / "causal_conv1d_cuda.py").touch()
    done = sandbox.run(
        f"""
        import warnings
        warnings.simplefilter("ignore")
        try:
            import {TARGET}
        except ImportError as error:
            print(type(error).__name__, error.name, error)
        """,
        environment=OFF,
    )
    assert done.stdout.startswith(f"{kind} ")
    for each in (*SAYS[1:], reason):
        assert each in done.stdout


def test_any_other_import_error_passes_as_it_is(sandbox: Sandbox) -> None:
    sandbox.interface.write_text(f"import causal_conv1d_cuda, not_there\n{REFUSED}")
    (sandbox.site / "causal_conv1d_cuda.py").touch()
    done = sandbox.run(f"import {TARGET}", environment=OFF)
    assert done.stderr.strip().endswith("ModuleNotFoundError: No module named 'not_there'")


def test_a_module_without_a_source_that_can_be_read(sandbox: Sandbox) -> None:
    """A compiled file alone, whose names are those that upstream binds."""
    import py_compile

    sandbox.interface.write_text(GUARDED.replace(" as fn", "").replace("fn,", "causal_conv1d_fn,"))
    py_compile.compile(
        str(sandbox.interface), str(sandbox.interface.with_suffix(".pyc")), doraise=True
    )
    sandbox.interface.unlink()
    done = sandbox.run(f"from {TARGET} import Function\nFunction.forward(1)", environment=OFF)
    last = done.stderr.strip().splitlines()[-1]
    assert "MissingExtension: causal_conv1d_cuda cannot be imported here" in last
    assert "SourcelessFileLoader, does not read a plain .py file" in last


def test_with_the_stand_ins_a_refused_text_runs(sandbox: Sandbox) -> None:
    """Its calls go to what stands in for the extensions; there is nothing to say but the word."""
    sandbox.interface.write_text(GUARDED)
    done = sandbox.run(f"import {TARGET} as module\nprint(module.scan is None)")
    assert done.stderr.count("RuntimeWarning") == 1


STARS = (
    """
try:
    from causal_conv1d import *
    from causal_conv1d.cpp_functions import *
except ImportError:
    causal_conv1d_fn = None
import selective_scan_cuda
def called(x):
    return causal_conv1d_fn(x, x)
def served(x):
    return selective_scan_cuda
""",
    """
import contextlib, selective_scan_cuda
with contextlib.suppress(ImportError):
    from causal_conv1d import *
def called(x):
    return causal_conv1d_fn(x, x)
def served(x):
    return selective_scan_cuda
""",
    """
import selective_scan_cuda
causal_conv1d_update_function = None
try:
    from causal_conv1d.cpp_functions import *
except ImportError:
    pass
class called:
    def __init__(self, x):
        causal_conv1d_update_function(x)
def served(x):
    return selective_scan_cuda
""",
)


@pytest.mark.parametrize("text", STARS)
def test_in_a_copy_a_star_that_brings_nothing_says_both(sandbox: Sandbox, text: str) -> None:
    """The rest of the text is served."""
    said = outcome(sandbox, "module.called(1)", text).splitlines()[0]
    assert said.startswith("MissingExtension True causal_conv1d_")
    assert f"the modified copy of {TARGET} leaves as it is: the import of causal_conv1d on" in said
    assert "nothing of jetson_mamba stands for *" in said and "What to do: " in said
    assert outcome(sandbox, "module.served(1)", text).startswith("returned <module 'jetson_mamba.")


FOUND = """
import {0}
if {1}:
    import selective_scan_cuda as scan
else:
    scan = None
def called(x):
    return scan
"""


@pytest.mark.parametrize(
    ("imports", "condition"),
    [
        ("importlib.util", 'importlib.util.find_spec("selective_scan_cuda")'),
        ("importlib.util", 'importlib.util.find_spec("selective_scan_cuda") is not None'),
        ("importlib.util as u", "not u.find_spec('selective_scan_cuda') is None"),
        ("sys; from importlib.util import find_spec", 'find_spec("selective_scan_cuda")'),
        ("sys; from importlib import util", 'util.find_spec(\n    "selective_scan_cuda"  # it\n)'),
        ("importlib as i", 'i.import_module("selective_scan_cuda")'),
    ],
)
def test_what_is_asked_for_by_its_name_is_found(
    sandbox: Sandbox, imports: str, condition: str
) -> None:
    """Also without stand-ins: what the copy imports is there."""
    text = FOUND.format(imports, condition)
    assert outcome(sandbox, "module.called(1)", text).startswith(
        "returned <module 'jetson_mamba.ops.any_form.selective_scan_cuda'"
    )


def test_what_a_star_imports_is_found_only_where_it_is(sandbox: Sandbox) -> None:
    text = """
import importlib.util, selective_scan_cuda
if importlib.util.find_spec("causal_conv1d"):
    from causal_conv1d import *
"""
    assert outcome(sandbox, "1", text) == "returned 1"


def test_an_import_by_another_way_says_both(sandbox: Sandbox) -> None:
    text = """
import selective_scan_cuda
try:
    own = __import__("causal_conv1d_cuda")
except ImportError:
    own = None
def called(x):
    return own.causal_conv1d_fwd(x)
"""
    said = outcome(sandbox, "module.called(1)", text).splitlines()[0]
    assert said.startswith("MissingExtension True own cannot be imported here, and")
    assert "causal_conv1d_cuda in a string on line 4 (it is no import)" in said
