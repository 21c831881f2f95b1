"""``jetson-mamba doctor``: what is on this machine, what is wrong with it, what fixes it."""

import io
from typing import Iterator, Optional, Tuple

import typer
from rich.console import Console

import jetson_mamba
from jetson_mamba import advice
from jetson_mamba.cli import output, tables
from jetson_mamba.report.doctor import Report, examine
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings import Finding
from jetson_mamba.report.machine import Machine
from jetson_mamba.report.packages import Package
from jetson_mamba.report.private import without_home

REPORT_COLUMNS = 100


def doctor(
    as_report: bool = typer.Option(
        False, "--report", help="Print what to paste into a report, home folders left out."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Examine this machine, run a block of mamba_ssm, and say what is wrong and what fixes it.

    The exit code is 1 if something is wrong that the overrides do not work around.
    """
    report = examine()
    if as_json:
        found = report.as_json()
        for finding in found["findings"]:
            for key in ("command", "option"):
                finding[key] = advice.reachable(finding[key])
        output.document("doctor", without_home(found) if as_report else found)
    elif as_report:
        text = io.StringIO()
        _show(output.console(file=text, width=REPORT_COLUMNS, no_color=True), report)
        print(f"```text\njetson-mamba {jetson_mamba.__version__} doctor\n")
        print("\n".join(map(str.rstrip, without_home(text.getvalue()).strip().splitlines())))
        print("```")
    else:
        console = output.console()
        _show(console, report)
        report_it = advice.reachable("jetson-mamba doctor --report")
        output.say(console, f"To paste into a report: {report_it}", style="dim")
    if any(not finding.cured for finding in report.findings):
        raise typer.Exit(1)


def _show(console: Console, report: Report) -> None:
    output.described(console, _lines(report.facts))
    if report.facts.backends or report.facts.selections:
        console.print()
        tables.backends(report.facts.backends, report.facts.selections).show(console)
    console.print()
    if not report.findings:
        console.print("[green]Nothing is wrong.[/]")
    for finding in sorted(report.findings, key=lambda each: each.cured):
        if finding.cured:
            output.say(console, f"cured  {finding.what}", 7, "yellow|")
        else:
            output.say(console, f"wrong  {finding.what}", 7, "bold red|")
        output.say(console, f"seen   {finding.message}", 7, "|dim")
        output.say(console, f"why    {finding.why}", 7)
        _do(console, _what_to_do(finding))
    if report.upstream_faults:
        console.print("[bold]What this mamba-ssm has wrong itself, and is left as it is:[/]\n")
    for fault in report.upstream_faults:
        output.say(console, f"{fault.what} ({fault.module})")
        output.say(console, f"seen   {fault.seen}", 7, "|dim")
        output.say(console, f"do     {fault.instead}\n", 7)
        console.print()


def _do(console: Console, what: str) -> None:
    """A command stands on a line of its own, however long: what is copied must be whole."""
    console.print(f"do     {what}\n", soft_wrap=True, markup=False, style="bold")


def _what_to_do(finding: Finding) -> str:
    if finding.command:
        return advice.reachable(finding.command)
    if not finding.option:
        return "nothing"
    gain = "compiles CUDA, for minutes to hours" if finding.compiles else "removes the cause"
    return f"nothing; if you like, this {gain}: {advice.reachable(finding.option)}"


def _lines(facts: Facts) -> Iterator[Tuple[str, str]]:
    machine, python, torch, hook = facts.machine, facts.python, facts.torch, facts.hook
    yield "machine", f"{machine.board or 'no Jetson board'}, {machine.architecture}"
    if machine.l4t:
        yield "JetPack", f"{machine.jetpack or 'unknown'} (L4T {machine.l4t})"
    if machine.board or machine.l4t:
        yield "power mode", machine.power_mode or "unknown"
    yield "memory", _memory(machine)
    for gpu in machine.gpus:
        yield (
            "GPU",
            f"{gpu.name}, compute capability {gpu.capability or 'unknown'} ({gpu.told_by})",
        )
    if not machine.gpus:
        yield "GPU", "none"
    toolkit = f"{machine.cuda_toolkit} ({machine.nvcc})" if machine.nvcc else "no nvcc"
    yield "CUDA", toolkit
    compiler = facts.compiler
    if compiler and (machine.board or (torch and torch.cuda)):
        yield "NVRTC", compiler.nvrtc or "not installed"
        yield "cuda-core", compiler.cuda_core or "not installed"
        if compiler.error and compiler.nvrtc and compiler.cuda_core:
            yield "kernels", f"cannot be compiled: {compiler.error}"
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
        yield "mamba-ssm", advice.reachable("not installed; `jetson-mamba install` does that")
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
        yield "startup file", f"{file.path}{'' if file.packaged else ', not the packaged one'}"
    yield "finders", ", ".join(name.rpartition(".")[2] for name in hook.finders)
    for target in hook.targets:
        name = target.name.partition(".")[2]
        yield "targets", f"{name}: {target.copy or target.reason}"
        for way in target.left_out:
            yield "targets", f"{name}: without {way.what}: {way.reason}"


def _memory(machine: Machine) -> str:
    text = f"{_gib(machine.memory_bytes)}, {_gib(machine.available_bytes)} available"
    if not machine.swap_bytes:
        return text + "; no swap"
    return f"{text}; swap {_gib(machine.swap_bytes)}, {_gib(machine.swap_free_bytes)} free"


def _gib(size: Optional[int]) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"


def _package(package: Package) -> str:
    if package.path is None:
        return f"{package.version}, its files are gone" if package.version else "not installed"
    return package.version or f"unknown version ({package.path})"
