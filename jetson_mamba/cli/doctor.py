"""``jetson-mamba doctor``: what is on this machine, what is wrong with it, what mends it."""

import json
from typing import Iterator, Tuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jetson_mamba.cli import tables
from jetson_mamba.report.doctor import Report, examine
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings import Finding
from jetson_mamba.report.packages import Package


def doctor(
    as_json: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Examine this machine, run a block of mamba_ssm, and say what is wrong and what mends it.

    The exit code is 1 if something is wrong that the overrides do not get around.
    """
    report = examine()
    if as_json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        _show(report)
    if any(not finding.cured for finding in report.findings):
        raise typer.Exit(1)


def _show(report: Report) -> None:
    console = Console(highlight=False)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in _lines(report.facts):
        grid.add_row(f"[bold]{name}[/]", escape(text))
    console.print(grid)
    if report.facts.backends or report.facts.selections:
        console.print()
        console.print(tables.backends(report.facts.backends, report.facts.selections))
    console.print()
    if not report.findings:
        console.print("[green]Nothing is wrong.[/]")
    for finding in sorted(report.findings, key=lambda each: each.cured):
        mark = "[yellow]cured[/]" if finding.cured else "[bold red]wrong[/]"
        console.print(f"{mark}  {escape(finding.what)}", soft_wrap=True)
        console.print(f"seen   [dim]{escape(finding.message)}[/]", soft_wrap=True)
        console.print(f"why    {escape(finding.why)}", soft_wrap=True)
        console.print(f"do     {_what_to_do(finding)}\n", soft_wrap=True)
    if report.upstream_faults:
        console.print("[bold]What this mamba-ssm has wrong itself, and is left as it is:[/]\n")
    for fault in report.upstream_faults:
        console.print(f"{escape(fault.what)} [dim]({fault.module})[/]", soft_wrap=True)
        console.print(f"seen   [dim]{escape(fault.seen)}[/]", soft_wrap=True)
        console.print(f"do     {escape(fault.instead)}\n", soft_wrap=True)


def _what_to_do(finding: Finding) -> str:
    if finding.command:
        return f"[bold]{escape(finding.command)}[/]"
    if not finding.option:
        return "nothing"
    gain = "compiles CUDA, for minutes to hours" if finding.compiles else "removes the cause"
    return f"nothing; if you like, this {gain}: {escape(finding.option)}"


def _lines(facts: Facts) -> Iterator[Tuple[str, str]]:
    machine, python, torch, hook = facts.machine, facts.python, facts.torch, facts.hook
    yield "machine", f"{machine.board or 'no Jetson board'}, {machine.architecture}"
    if machine.l4t:
        yield "JetPack", f"{machine.jetpack or 'unknown'} (L4T {machine.l4t})"
    for gpu in machine.gpus:
        yield (
            "GPU",
            f"{gpu.name}, compute capability {gpu.capability or 'unknown'} ({gpu.told_by})",
        )
    if not machine.gpus:
        yield "GPU", "none"
    toolkit = f"{machine.cuda_toolkit} ({machine.nvcc})" if machine.nvcc else "no nvcc"
    yield "CUDA", toolkit
    yield "Python", f"{python.version} ({python.executable})"
    if torch is None:
        yield "torch", "not installed"
    elif torch.error:
        yield "torch", f"{torch.version}: {torch.error}"
    else:
        built = f"for CUDA {torch.cuda}" if torch.cuda else "without CUDA"
        kernels = f", {' '.join(torch.architectures)}" if torch.architectures else ""
        sees = "sees a GPU" if torch.cuda_available else "sees no GPU"
        yield "torch", f"{torch.version}, built {built}{kernels}, {sees}"
    for mamba in facts.mamba_ssm:
        kind = f" fork, with {', '.join(mamba.fork_parameters)}" * bool(mamba.fork_parameters)
        wins = "" if mamba.wins else ", hidden by the one before"
        yield "mamba-ssm", f"{mamba.version or 'no version'}{kind} ({mamba.path}){wins}"
    if not facts.mamba_ssm:
        yield "mamba-ssm", "not installed; `jetson-mamba install` does that"
    yield "causal-conv1d", _package(facts.causal_conv1d)
    yield "Triton", _package(facts.triton) + (f": {facts.triton_error}" * bool(facts.triton_error))
    yield "transformers", _package(facts.transformers)
    for extension in facts.extensions:
        if extension.path:
            yield extension.name, "loads" if extension.loads else str(extension.error)
        else:
            yield extension.name, "; ".join(extension.misfits) or "not installed"
    if facts.mamba and torch and not torch.error:
        yield "a block", facts.trial_error or "runs, forward and backward"
    through = "active from" if hook.active else "not active at"
    yield "hook", f"{through} interpreter start (JETSON_MAMBA={hook.mode})"
    for file in hook.startup_files:
        yield "", f"{file.path}{'' if file.packaged else ', not the packaged one'}"
    yield "finders", ", ".join(name.rpartition(".")[2] for name in hook.finders)
    for target in hook.targets:
        name = target.name.partition(".")[2]
        yield "", f"{name}: {target.copy or target.reason}"
        for way in target.left_out:
            yield "", f"{name}: without {way.what}: {way.reason}"


def _package(package: Package) -> str:
    if package.path is None:
        return f"{package.version}, its files are gone" if package.version else "not installed"
    return package.version or f"unknown version ({package.path})"
