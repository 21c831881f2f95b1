"""What each command prints, with the styles: ``python -m tests.cli.printed`` writes it down.

In ``printed.txt`` a change of what people are shown is read as a change. Nothing of this machine
is looked at: what a command has found is given.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterator
from unittest.mock import patch

import typer
from rich.panel import Panel
from rich.text import Text

from jetson_mamba.cli import tables
from jetson_mamba.demo.result import Trained
from jetson_mamba.installing.plan import Choice, Plan
from jetson_mamba.installing.situation import Torch
from jetson_mamba.installing.work import Step, Work
from jetson_mamba.report import documents, keys
from jetson_mamba.report.changes import Change
from jetson_mamba.report.documents import TimedBackend, TimedRow, Timings
from jetson_mamba.report.kept_copies import KeptCopy
from jetson_mamba.report.status import Backend, LeftOut, PassedOver, Selected, Status, Target
from jetson_mamba.startup.files import StartupFile

PRINTED = Path(__file__).with_name("printed.txt")
CLI = "jetson_mamba.cli"
TARGETS = (
    Target("mamba_ssm.ops.one", "modified", "cached", "/copy/one.py", 2, None),
    Target(
        *("mamba_ssm.ops.two", "original", None, None, 0, "its text is not known"),
        left_out=(LeftOut("a way past", "it is another"),),
    ),
)
BACKENDS = (
    Backend("ssd", {"device": "cpu"}, "pytorch", (PassedOver("cuda", "no GPU"),)),
    Backend("conv", {"device": "cpu"}, "pytorch", ()),
)
SELECTIONS = (Selected("conv", "pytorch", "a name"), Selected("scan", "cuda", "a variable"))
FILES = (StartupFile("/site/a.pth", True), StartupFile("/site/b.pth", False))
STATUS = Status("0.1", True, "import", "on", FILES, TARGETS, "ssd=pytorch", SELECTIONS, BACKENDS)


def described(thing: Any) -> str:
    """What is printed, with its styles."""
    if isinstance(thing, Text):
        spans = [f"{each.start}-{each.end} {each.style}" for each in thing.spans]
        return f"{thing.plain!r} {thing.style or 'plain'} {', '.join(spans)}".rstrip()
    if isinstance(thing, Panel):
        return f"panel {thing.title!r} {thing.title_align}: {described(thing.renderable)}"
    if isinstance(thing, tables.Records):
        names = [
            f"{each}{' wraps' * (each in thing._wraps)}{' right' * (each in thing._right)}"
            for each in thing._labels
        ]
        rows = [
            " | ".join(f"{cell.plain}{f' ({cell.style})' if cell.style else ''}" for cell in row)
            for row in thing._rows
        ]
        return "\n    ".join((f"table {thing._title!r}: {', '.join(names)}", *rows))
    return repr(thing)


class Console:
    """Notes what is printed on it."""

    def __init__(self, lines: list[str], **options: Any) -> None:
        self.lines, self.width, self.is_terminal = lines, 100, False
        self.note("console", options)

    def note(self, what: str, options: dict[str, Any]) -> None:
        """Note what is done with which options."""
        words = "".join(f" {name}={value!r}" for name, value in sorted(options.items()))
        self.lines.append(f"  {what}{words}")

    def print(self, *things: Any, **options: Any) -> None:
        """Note what is printed."""
        self.note(" ".join(map(described, things)), options)

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Note what is said while something takes long."""
        self.note(f"while {text!r}", {})
        yield


class Bar:
    """A progress bar that notes what it is told."""

    def __init__(self, console: Console, **options: Any) -> None:
        self.console = console
        console.note("bar", options)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing."""

    def add_task(self, name: str, **options: Any) -> int:
        """Note it."""
        self.console.note(f"task {name!r}", options)
        return 0

    def update(self, task: int, **options: Any) -> None:
        """Note it."""
        self.console.note("update", options)


def row(direction: str, **others: Any) -> TimedRow:
    """A row of times."""
    given: dict[str, Any] = {
        **{"op": "scan", "direction": direction, "batch": 1, "dim": 64, "seqlen": 100},
        **{"dtype": "bfloat16", "layout": "BDL", "floor_microseconds": 2.04},
        **{"microseconds": {"cuda": 3.06, "pytorch": 1234.5}, "failures": {}, "of_floor": 0.667},
    }
    return TimedRow(**{**given, **others})


TIMINGS = Timings(
    *("cuda", "Orin", "0.1", "2.9", "12.6", "580", 1234e2),
    (
        TimedBackend("scan", "cuda", "jetson-mamba 0.1", {}),
        TimedBackend("scan", "pytorch", "torch 2.9", {"float32": "no such"}),
        TimedBackend("scan", "extension", "mamba-ssm", {"float32": "not here", "x": "not here"}),
        TimedBackend("scan", "package", "", {"float32": "not here", "x": "another"}),
        TimedBackend("conv", "other", "", {}),
    ),
    (
        row("forward"),
        row("backward", failures={"extension": "out of memory"}, microseconds={}, of_floor=None),
    ),
)
BARE = dataclasses.replace(TIMINGS, cuda=None, driver=None, backends=(), rows=())


def verified(function: str, **others: Any) -> documents.VerifiedRow:
    """A row that was compared."""
    given: dict[str, Any] = {
        **{"size": "batch 2, dim 32, seqlen 35", "dtype": "float32", "forward": 1.2e-6},
        **{"backward": 2.5e-6, "worst": "A", "tolerance": 1e-5, "passed": True},
        **{"failure": None, "unsupported": False},
    }
    return documents.VerifiedRow(function=function, **{**given, **others})


ROWS = (
    verified("one"),
    verified("two", passed=False, failure="RuntimeError: no", backward=None, worst=None),
    verified("two", passed=False, failure="x", unsupported=True, forward=None),
)
CHOICES = (
    Choice("torch", "2.9.0", "2.9.0", "it works"),
    Choice("einops", None, "0.8.2", "mamba-ssm asks for it"),
    Choice("causal-conv1d", "1.4.0", None, "it is not needed"),
    Choice("triton", None, None, "there is none"),
)
PLAN = Plan("mamba-ssm==2.3.1", Torch("2.9.0"), CHOICES, (), (), (), None, ("Torch [stays].",))
WORK = Work(PLAN, (Step(("pip", "install", "mamba-ssm[x]")),), ("einops 0.8.2", "ninja"))
NOTHING = Work(dataclasses.replace(PLAN, choices=(), notes=()), (), ())
KEPT = (
    KeptCopy("mamba_ssm.ops.one", "bundled", "/b/one.py", 2048, True),
    KeptCopy("vim.two", "cached", "/c/two.py", 1500, False),
)
EXPORTED = SimpleNamespace(
    path=Path("model.onnx"),
    nodes=12,
    forms={"scan": "loop", "ssd": "blocks"},
    error=1.2e-6,
    tolerance=1e-4,
    times=SimpleNamespace(runtime=0.00123, eager=0.0045),
    plugins=Path("plugins.py"),
    compared=[SimpleNamespace(sizes={"batch": size, "seqlen": 70}) for size in (1, 3, 3)],
)
PLAIN = SimpleNamespace(
    **{**vars(EXPORTED), "forms": {}, "plugins": None, "compared": [SimpleNamespace(sizes={})]}
)


def status(**changes: Any) -> Callable[[], None]:
    """``status`` of a process that differs from the usual one, by who activates programs."""

    def command() -> None:
        by = changes.pop("by", "startup file")
        found = dataclasses.replace(STATUS, **changes)
        with patch("jetson_mamba.report.status.status", lambda look_ahead: found), patch(
            "jetson_mamba.startup.files.activates", lambda: by
        ):
            import_module(f"{CLI}.status").status(as_json=False)

    return command


def verify(*rows: documents.VerifiedRow, passed: bool) -> Callable[[], None]:
    """``verify`` that has found these rows."""

    def command() -> None:
        module: Any = import_module(f"{CLI}.verify")
        found = documents.Verification(
            *("cpu", "2.9.0", "2.3.1", passed, rows), TARGETS[:1], (), BACKENDS[:1]
        )
        module._show(module.output.console(), found)

    return command


def verifying() -> None:
    """``verify``, row by row."""
    found: Any = import_module(f"{CLI}.verify")
    report = "jetson_mamba.report.verify"
    state = SimpleNamespace(targets=(), selections=(), backends=())
    with ExitStack() as stack:
        for name, value in (
            (f"{CLI}.verify.torch_device", lambda name: name),
            (f"{CLI}.verify.mamba_ssm", lambda: SimpleNamespace(__version__="2.3.1")),
            (f"{CLI}.verify.jetson_mamba.status", lambda: state),
            ("torch.__version__", "2.9.0"),
            (f"{report}.functions", lambda: "some"),
            (f"{report}.row_count", len),
            (f"{report}.rows", lambda device, functions: iter(ROWS)),
        ):
            stack.enter_context(patch(name, value))
        found.verify(device="cpu", as_json=False)


class Run:
    """A run of ``bench``, of two cases."""

    def __init__(self, device: Any, ops: Any, dtypes: Any, rep: int) -> None:
        self.given = (device.type, ops, dtypes, rep)
        sizes = ((1, 64, 100), (2, 64, 100))
        self.cases = [SimpleNamespace(op="scan", size=size) for size in sizes]

    def rows(self, case: Any) -> list[TimedRow]:
        """One that lacks memory."""
        return [row("forward", batch=case.size[0], failures={"cuda": "out of memory"})]

    def result(self, rows: list[TimedRow]) -> Timings:
        """With what it was asked for in the place of a name."""
        return dataclasses.replace(BARE, name=repr(self.given), rows=tuple(rows))


def benching(device: str | None, dtype: str | None) -> Callable[[], None]:
    """``bench``, case by case."""

    def command() -> None:
        with patch(f"{CLI}.bench.torch_device", lambda name: SimpleNamespace(type="cpu")), patch(
            "jetson_mamba.report.bench.Run", Run
        ):
            import_module(f"{CLI}.bench").bench(
                op=None, dtype=dtype, device=device, rep=7, plot=None, as_json=False
            )

    return command


def bench(found: Timings) -> Callable[[], None]:
    """``bench`` that has measured this."""

    def command() -> None:
        module: Any = import_module(f"{CLI}.bench")
        module._show(module.output.console(), found)

    return command


def install(
    work: Work, reason: str | None = None, failure: str | None = None, **options: Any
) -> Callable[[], None]:
    """``install`` of this, of which a step or the trial may fail."""

    def command() -> None:
        given = {"yes": True, "dry_run": False, "verbose": False, "as_json": False, **options}
        module, tried = f"{CLI}.install", (None, failure) if failure else ("2.3.1", None)
        for name, value in (
            ("situation", lambda: SimpleNamespace(tool="pip")),
            ("plans.plan", lambda here, requirement: work.plan),
            ("works.work", lambda plan, tool: work),
            ("works.carry_out", lambda step: reason),
            ("works.try_it", lambda plan: tried),
        ):
            stack.enter_context(patch(f"{module}.{name}", value))
        import_module(module).install(requirement="mamba-ssm", **given)

    stack = ExitStack()

    def closed() -> None:
        with stack:
            command()

    return closed


def copies(clear: bool, *kept: KeptCopy, why: str | None = None) -> Callable[[], None]:
    """``copies`` where these are kept."""

    def command() -> None:
        module = "jetson_mamba.report.kept_copies"
        with ExitStack() as stack:
            for name, value in (
                ("clear", lambda: ("/a", "/b")),
                ("bundled_folder", lambda: "/bundled"),
                ("cached_folder", lambda: "/cached"),
                ("not_writable", lambda: why),
                ("kept", lambda: kept),
            ):
                stack.enter_context(patch(f"{module}.{name}", value))
            import_module(f"{CLI}.copies").copies(clear=clear, as_json=False)

    return command


def diff() -> None:
    """``diff`` on a terminal."""
    lines = "--- a\n+++ b\n@@ 1 @@\n-x\n+y\n z\n"
    change = Change("mamba_ssm.x", "/x.py", lines, None, False, ())
    with patch("sys.stdout.isatty", lambda: True):
        import_module(f"{CLI}.copies")._show(change)


def startup(name: str, changed: list[str], effective: bool, there: Any) -> Callable[[], None]:
    """``enable`` or ``disable`` that has changed these files."""

    def command() -> None:
        module = "jetson_mamba.startup.files"
        with patch(f"{module}.{name}", lambda: changed), patch(
            f"{module}.takes_effect", lambda: effective
        ), patch(f"{module}.installed", lambda: there):
            getattr(import_module(f"{CLI}.startup"), name)(as_json=False)

    return command


def schema() -> None:
    """``schema --table`` of one command."""
    with patch.object(keys, "ENVELOPE", {"schema": "which it is"}):
        import_module(f"{CLI}.schema").schema(command="enable", as_table=True)


def trained() -> None:
    """The table of ``demo``."""
    demo: Any = import_module(f"{CLI}.demo")
    models = [Trained(kind, 12345, [3.0, 2.0, 1.0], 1.5, 1.26, "") for kind in ("Mamba", "Mamba2")]
    demo.written.console().print(demo._results(models))


def training(*losses: float) -> Callable[[], None]:
    """The training of a model in ``demo``, of which these are the losses."""

    def command() -> None:
        demo: Any = import_module(f"{CLI}.demo")
        corpus = SimpleNamespace(alphabet="ab", prompt=lambda: "a prompt")
        model = SimpleNamespace(parameters=lambda: (SimpleNamespace(numel=lambda: 7),) * 2)
        made: list[Any] = []

        def build(*given: Any) -> Any:
            made.append(given)
            return model

        with ExitStack() as stack:
            for name, value in (
                (f"{CLI}.demo.models.build", build),
                ("jetson_mamba.demo.training.train", lambda *given: iter(losses)),
                ("jetson_mamba.demo.training.test", lambda *given: 1.5),
                ("jetson_mamba.demo.training.sample", lambda *given: repr(given[2:])),
                ("torch.manual_seed", made.append),
                ("time.perf_counter", iter((1.0, 3.5)).__next__),
            ):
                stack.enter_context(patch(name, value))
            console = demo.written.console()
            found = demo._train(console, "package", "Mamba", corpus, "cpu", 9, 12, 3)
        console.print(repr(found), repr(made))

    return command


def export(*files: Any) -> Callable[[], None]:
    """``export`` that has written these files."""

    def command() -> None:
        module = f"{CLI}.export"
        with patch(f"{module}.mamba_ssm", lambda: None), patch(
            f"{module}._model", lambda name: name
        ), patch("jetson_mamba.export.step", lambda *_, **__: files):
            import_module(module).export("m:f", Path("model.onnx"), None, None, None, True, None)

    return command


COMMANDS: dict[str, Callable[[], None]] = {
    "status": status(),
    "status of a process without anything": status(
        backend_variable=None, selections=(), backends=(), startup_files=(), by=None
    ),
    "status that is switched off": status(mode="off", active=False, by=None),
    "verify": verify(*ROWS[:1], passed=True),
    "verify that fails": verify(*ROWS, passed=False),
    "verify, as it goes": verifying,
    "bench, as it goes": benching(None, "bf16"),
    "bench of a device and a dtype": benching("cpu", "float32"),
    "bench": bench(TIMINGS),
    "bench of nothing": bench(BARE),
    "install": install(WORK),
    "install of nothing": install(NOTHING),
    "install that is not done": install(WORK, dry_run=True),
    "install of which a step fails": install(WORK, reason="no [network]"),
    "install that does not work": install(WORK, failure="no [x]"),
    "copies": copies(False, *KEPT),
    "copies, cleared": copies(True, why="no space"),
    "diff": diff,
    "enable": startup("enable", ["/site/a.pth"], True, FILES),
    "enable again": startup("enable", [], False, FILES),
    "disable": startup("disable", ["/a", "/b"], False, ()),
    "disable again": startup("disable", [], True, ()),
    "schema": schema,
    "demo": trained,
    "demo, as it goes": training(2.0, 1.25),
    "demo that fails": training(2.0, float("nan"), 1.0),
    "export": export(EXPORTED, PLAIN),
    "export of one size": export(PLAIN),
}


def everything() -> str:
    """What all of them print."""
    lines: list[str] = []
    with ExitStack() as stack:
        for name, value in {
            f"{CLI}.output.console": lambda **options: Console(lines, **options),
            f"{CLI}.output.progress": Bar,
            "jetson_mamba.advice.reachable": lambda text: f"<{text}>",
        }.items():
            stack.enter_context(patch(name, value))
        for name, command in COMMANDS.items():
            lines.append(f"\n{name}")
            with suppress(typer.Exit):
                command()
                continue
            lines.append("  exit")
    return "\n".join(lines).lstrip() + "\n"


if __name__ == "__main__":
    PRINTED.write_text(everything(), encoding="utf-8")
