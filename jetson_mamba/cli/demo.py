"""``jetson-mamba demo`` trains two small models, then says what they ran on."""

import math
import time
from pathlib import Path
from typing import Any, List, Optional

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text as Styled

import jetson_mamba
from jetson_mamba import advice
from jetson_mamba.cli import output as written
from jetson_mamba.cli import tables
from jetson_mamba.cli.device import torch_here
from jetson_mamba.demo import models, text
from jetson_mamba.demo.result import Trained
from jetson_mamba.errors import CannotRun
from jetson_mamba.report.folders import unwritable


def demo(
    text_file: Optional[Path] = typer.Option(
        None,
        "--text",
        metavar="FILE",
        help="The text to learn, in UTF-8. Default: the sources of Python's standard library.",
        show_default=False,
    ),
    steps: int = typer.Option(500, min=2, help="Training steps of each model."),
    sample: int = typer.Option(320, min=0, help="Characters that each model then writes."),
    seed: int = typer.Option(0, min=0, help="Where everything random comes from."),
    output: Path = typer.Option(
        Path("demo-output"), metavar="FOLDER", help="Where the loss curves go."
    ),
) -> None:
    """Train two small language models, of Mamba and of Mamba-2 blocks, on real text."""
    console = written.console()
    corpus = text.from_file(text_file) if text_file else text.standard_library()
    error = unwritable(str(output))
    if error:
        raise CannotRun(
            f"--output {output}: {error.strerror}; expected a folder that can be written"
        ) from error
    with console.status("importing torch and mamba_ssm"):
        torch = torch_here()
        models.require("matplotlib", f"{advice.pip()} install matplotlib")
        package = models.mamba_ssm()

    from jetson_mamba.demo import training

    device = training.device()
    runs_on = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    entropy = corpus.unigram_entropy()
    console.print(
        f"[bold]mamba-ssm {package.__version__}[/] on {runs_on}, torch {torch.__version__}, "
        f"jetson-mamba {jetson_mamba.__version__}"
    )
    console.print(
        f"The text: {corpus.name}, {len(corpus.training):,} characters to learn from. "
        f"Knowing only how often each occurs gives a loss of {entropy:.2f} nats per character.\n"
    )

    kinds = models.kinds(package)
    for kind in models.KINDS:
        if kind not in kinds:
            console.print(f"This release has no {kind}: it came with mamba-ssm 2.0.")
    trained = [
        _train(console, package, kind, corpus, device, steps, sample, seed) for kind in kinds
    ]
    for each in trained if sample else ():
        console.print(
            Panel(
                Styled.assemble((corpus.prompt(), "dim"), each.sample, tab_size=4),
                title=f"{each.kind} continues a line it has not seen",
                title_align="left",
            )
        )
    _results(trained).show(console)
    status = jetson_mamba.status()
    tables.targets(status.targets).show(console)
    tables.backends(status.backends, status.selections).show(console)

    from jetson_mamba.demo.plot import loss_curves

    picture = output / "loss.png"
    try:
        output.mkdir(parents=True, exist_ok=True)
        loss_curves(
            trained,
            entropy,
            f"Learning {corpus.name}\nmamba-ssm {package.__version__} on {runs_on}",
            picture,
        )
    except OSError as error:
        raise CannotRun(
            f"{picture}: {error.strerror or error}; expected a file that can be written"
        ) from error
    console.print(f"Loss curves: {picture}", soft_wrap=True)

    for each in trained:
        if each.last() >= each.first():
            console.print(f"[red]{each.kind}: the loss has not fallen.[/]")
            raise typer.Exit(1)


def _train(
    console: Console,
    package: Any,
    kind: str,
    corpus: text.Text,
    device: Any,
    steps: int,
    sample: int,
    seed: int,
) -> Trained:
    import torch

    from jetson_mamba.demo import training

    torch.manual_seed(seed)
    model = models.build(package, kind, len(corpus.alphabet), device)
    losses: List[float] = []
    start = time.perf_counter()
    with written.progress(console, lasting=True, loss=True) as progress:
        bar = progress.add_task(kind, total=steps, loss="\u2013")
        for loss in training.train(model, corpus, steps, seed):
            losses.append(loss)
            progress.update(bar, advance=1, loss=f"{loss:.2f}")
            if not math.isfinite(loss):
                break
    if not math.isfinite(losses[-1]):
        console.print(f"[red]{kind}: at step {len(losses)} the loss is {losses[-1]}.[/]")
        raise typer.Exit(1)
    return Trained(
        kind,
        sum(parameter.numel() for parameter in model.parameters()),
        losses,
        training.test(model, corpus),
        time.perf_counter() - start,
        training.sample(model, corpus, corpus.prompt(), sample, seed),
    )


def _results(trained: List[Trained]) -> tables.Records:
    columns = ("parameters", "loss at first", "at last", "on unseen text", "time")
    table = tables.Records("model", *columns, right=columns)
    for each in trained:
        table.add(
            each.kind,
            f"{each.parameters:,}",
            f"{each.first():.2f}",
            f"{each.last():.2f}",
            f"{each.held_out:.2f}",
            f"{each.seconds:.0f} s",
        )
    return table
