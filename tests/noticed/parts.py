"""For each file of the package, the tests that are to notice a change of it.

A folder's or file's own tests come first, by the names below, or those that are called as it is;
then what else runs its code.
"""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent

# All else is the hook's.
PARTS = {
    "hook": "",
    "rewrite": "rewrite",
    "ops": "ops dispatch replay kernels export",
    "report": "report cli demo installer installing",
}

# By the beginning of a path in the package; the longest that fits counts, and then its part's.
OWN = {
    "hook/copies": "rewrite/test_kept.py rewrite/test_placeholder.py hook/test_rewrite.py "
    "hook/test_import.py cli/test_diff.py faults/test_cache.py releases/test_copies.py",
    "hook/stand_in": "hook/test_stand_in*.py hook/test_doors*.py",
    "hook/snapshot": "cli/test_status.py doctor/test_symptoms_of_the_hook.py",
    "hook/runner": "cli/test_runner.py cli/test_run.py",
    "hook/unserved": "hook/test_package.py hook/test_unserved.py",
    "hook/loader": "hook/test_specs.py hook/test_loader*.py hook/test_create_module.py "
    "hook/test_package.py hook/test_import.py hook/test_joining.py",
    "finder": "hook/test_specs.py hook/test_once.py hook/test_import.py "
    "hook/test_other_packages.py hook/test_joining.py",
    "rewrite": "rewrite hook/test_rewrite.py",
    "texts": "rewrite/test_closure.py hook/test_package.py hook/test_names_beside.py",
    "cache": "hook/test_cache_folder.py faults/test_cache.py",
    "forks": "ops/test_forks.py",
    "advice": "hook/test_origin.py hook/test_advice.py",
    "startup": "hook/test_startup_files.py hook/test_package.py cli/test_enable.py "
    "faults/test_start.py hook/test_activation.py",
    "__init__": "hook/test_package.py hook/test_once.py hook/test_import.py",
    "overrides": "hook/test_package.py rewrite/test_kept.py",
    "kernel_packages": "without_triton ops/test_triton_runs.py",
    "compat": "compat imports without_triton",
    "triton_there": "without_triton ops/test_triton_runs.py",
    "ops/causal_conv1d": "ops/test_causal_conv1d*.py compile/test_operators.py",
    "ops/causal_conv1d/cuda": "kernels/test_refusals.py kernels/test_emulated_causal_conv1d.py "
    "kernels/test_compile_causal_conv1d.py ops/test_causal_conv1d*.py",
    "ops/selective_scan/cuda": "kernels/test_refusals.py kernels/test_emulated_selective_scan.py "
    "kernels/test_compile_selective_scan.py ops/test_selective_scan*.py",
    "ops/selective_scan/plans": "kernels/test_emulated_selective_scan.py "
    "kernels/test_compile_selective_scan.py export/test_plugins.py",
    "ops/ssd/triton": "ops/test_ssd_upstream.py ops/test_ssd_ways.py ops/test_past_triton.py",
    "ops/ssd/gated_norm": "kernels/test_emulated_ops.py ops/test_ssd_mixer.py",
    "ops/ssd/cuda": "kernels/test_refusals.py kernels/test_emulated_ssd.py "
    "kernels/test_compile_ssd.py ops/test_ssd.py",
    "ops/norms/cuda": "kernels/test_refusals.py kernels/test_emulated_norms.py "
    "kernels/test_emulated_ops.py kernels/test_compile_norms.py "
    "ops/test_norms.py",
    "ops/decoding/cuda": "kernels/test_refusals.py kernels/test_emulated_state_update.py "
    "kernels/test_emulated_steps.py "
    "kernels/test_compile_steps.py ops/test_selective_state_update.py",
    "ops/decoding/layers": "ops/test_layers.py kernels/test_emulated_steps.py",
    "ops/decoding/products": "kernels/test_emulated_steps.py kernels/test_compile_steps.py",
    "ops/selective_scan": "ops/test_selective_scan*.py compile/test_operators.py",
    "ops/ssd": "ops/test_ssd.py ops/test_ssd_steps.py ops/test_ssd_errors.py "
    "ops/test_ssd_sequences.py ops/test_ssd_mixer.py ops/test_ssd_ways.py "
    "ops/test_ssd_transforms.py compile/test_ssd.py",
    "ops/norms": "ops/test_norms.py kernels/test_emulated_ops.py kernels/test_emulated_norms.py",
    "ops/norm": "ops/test_norms.py",
    "ops/decoding": "ops/test_selective_state_update.py kernels/test_emulated_ops.py",
    "ops/decoding/op": "ops/test_selective_state_update.py kernels/test_emulated_ops.py "
    "ops/test_traces.py",
    "ops/decoding/layers_cpu": "ops/test_layers_cpu.py",
    "ops/decoding/layers_cuda": "kernels/test_emulated_steps.py",
    "ops/decoding/mixers": "ops/test_mixers.py",
    "ops/decoding/pieces": "modules/test_prefill.py",
    "ops/decoding/several_tokens": "ops/test_several_tokens.py ops/test_whole_steps.py "
    "modules/test_prefill.py",
    "ops/swiglu": "ops/test_swiglu.py kernels/test_emulated_swiglu.py",
    "ops/mamba_inner": "ops/test_mamba_inner.py ops/test_blocks*.py",
    "ops/mamba3": "ops/test_mamba3.py",
    "export": "export",
    "ops/any_form": "ops/test_any_form.py",
    "ops/attention": "ops/test_attention.py",
    "call_forms": "ops/test_any_form.py rewrite/test_extents.py",
    "dispatch/arguments": "ops/test_arguments.py ops/test_causal_conv1d*.py "
    "ops/test_ssd_errors.py ops/test_mamba3.py",
    "dispatch/computation": "ops/test_twice.py ops/test_ssd_mixer.py ops/test_norms.py",
    "dispatch/fields": "ops/test_fields.py compile/test_operators.py",
    "dispatch/launchers": "ops/test_handed_over.py ops/test_past_triton.py",
    "dispatch/apart": "ops/test_forks.py ops/test_backends*.py",
    "dispatch/paths": "ops/test_transforms.py ops/test_traces.py",
    "dispatch/tracing": "ops/test_traces.py",
    "dispatch/passing": "ops/test_twice.py ops/test_ssd_transforms.py",
    "dispatch/in_place": "ops/test_written.py",
    "dispatch/triton_dispatch": "ops/test_on_a_gpu.py ops/test_past_triton.py",
    "dispatch/environment": "ops/test_environment.py",
    "dispatch/memo": "ops/test_memo.py ops/test_environment.py",
    "dispatch/selection": "ops/test_selection.py ops/test_backends*.py",
    "dispatch/backends": "ops/test_backends*.py ops/test_selection.py",
    "dispatch/operators": "ops/test_mapped_operators.py ops/test_lacking_torch.py "
    "compile/test_operators.py ops/test_imported_again.py",
    "dispatch/twice": "ops/test_twice.py compile/test_operators.py",
    "dispatch/unchecked": "ops/test_unchecked.py",
    "dispatch/projections": "ops/test_projections.py ops/test_blocks*.py modules",
    "dispatch/autocast": "ops/test_older_torch.py ops/test_lacking_torch.py "
    "ops/test_blocks.py ops/test_captured.py",
    "dispatch/block_modules": "ops/test_blocks*.py modules",
    "report/doctor": "doctor/test_examine.py cli/test_doctor.py",
    "report/hook": "doctor/test_the_hook.py doctor/test_symptoms_of_the_hook.py",
    "report/packages": "doctor/test_packages.py doctor/test_installed.py doctor/test_symptoms.py",
    "report/keys": "cli/test_documents.py",
    "report/schema": "cli/test_documents.py",
    "report/sources": "doctor/test_sources.py doctor/test_symptoms.py",
    "replay/captured": "ops/test_captured*.py ops/test_environment.py",
    "replay/blocks": "ops/test_blocks*.py",
    "replay/cuda_graph": "ops/test_cuda_graph.py",
    "kernels": "kernels/test_compiler.py kernels/test_through*.py ops/test_backends*.py",
    "kernels/chains": "kernels/test_chains.py",
    "report": "doctor cli/test_doctor.py",
    "report/findings": "doctor/test_said.py doctor/test_findings.py doctor/test_advised*.py "
    "doctor/test_too_early.py doctor/test_commands.py",
    "report/changes": "cli/test_diff.py",
    "report/kept_copies": "cli/test_kept_copies.py cli/test_copies.py",
    "report/machine": "doctor/test_machine.py doctor/test_installed.py "
    "doctor/test_symptoms_of_torch.py",
    "report/folders": "cli/test_kept_copies.py faults/test_cache.py",
    "report/verify": "cli/test_verify_rows.py cli/test_verify.py",
    "cli/verify": "cli/test_verify_shows.py cli/test_verify.py",
    "cli/status": "cli/test_verify_shows.py cli/test_status*.py",
    "report/bench": "cli/test_bench.py",
    "report/timing": "cli/test_bench.py",
    "report/recurrences": "cli/test_bench.py cli/test_verify.py",
    "report/status": "cli/test_status*.py",
    "report/installed": "doctor/test_installed.py doctor/test_packages.py doctor/test_symptoms.py",
    "report/extensions": "doctor/test_installed.py doctor/test_symptoms.py",
    "report/probe": "doctor/test_probe*.py doctor/test_installed.py "
    "doctor/test_symptoms.py cli/test_doctor.py",
    "cli/install": "cli/test_install*.py",
    "cli/doctor": "doctor/test_shown.py cli/test_doctor.py",
    "cli/export": "cli/test_export_*.py export/test_files.py",
    "installing": "installing cli/test_install.py",
    "releases": "installing hook/test_origin.py hook/test_advice.py hook/test_package.py",
    "cli/output": "cli/test_paragraphs.py cli/test_widths.py",
    "cli/run": "cli/test_paragraphs.py cli/test_run.py",
    "demo": "cli/test_training.py cli/test_pictures.py cli/test_demo.py",
    "report/bench_plot": "cli/test_pictures.py cli/test_bench.py",
}
# What is held of all commands: their options, how these are completed and what the page says.
OF_COMMANDS = "cli/test_completion.py cli/test_bad_input.py docs/test_reference.py"
ALL = {
    "hook": "hook faults imports rewrite without_triton cli/test_status*.py cli/test_diff.py "
    "doctor/test_the_hook.py releases/test_bundle.py releases/test_copies.py "
    "releases/test_blocks.py",
    "rewrite": "rewrite hook/test_rewrite.py hook/test_names_beside.py hook/test_unserved.py "
    "releases/test_copies.py rewrite/test_kept.py mutants releases/test_unknown_texts.py",
    "ops": "ops export emulated kernels compile modules "
    "releases/test_blocks.py releases/test_past_targets.py releases/test_decoding.py",
    "report": "cli doctor docs installing",
}


def files(part: str) -> list[Path]:
    """The modules of a part, from the repository's root."""
    found = (REPOSITORY / "jetson_mamba").rglob("*.py")
    return sorted(each for path in found if _part(each := path.relative_to(REPOSITORY)) == part)


def _part(file: Path) -> str:
    room = file.parts[1].partition(".")[0]
    return next((part for part, rooms in PARTS.items() if room in rooms.split()), "hook")


def _called(name: str) -> list[str]:
    """The tests of a module's name. Those that need a GPU are none of an ordinary machine."""
    folder = REPOSITORY / "tests"
    found = (path.relative_to(folder) for path in folder.rglob(f"test_{name}.py"))
    return sorted(path.as_posix() for path in found if path.parts[0] != "gpu")


def tests(part: str, file: Path) -> tuple[list[str], list[str]]:
    """The files of what should notice a change: its own tests, and then the rest of its part's."""
    name = "/".join(file.parts[1:])
    own = max((each for each in OWN if name.startswith(each)), key=len, default="")
    like = " ".join(_called(file.stem)) if not own else OWN[own]
    first = _files(f"{like} {OF_COMMANDS}" if name.startswith("cli/") else like)
    return first, [each for each in _files(ALL[part]) if each not in first]


def _files(names: str) -> list[str]:
    folder = REPOSITORY / "tests"
    found: list[Path] = []
    for name in names.split():
        path = folder / name
        found += sorted(path.rglob("test_*.py") if path.is_dir() else folder.glob(name))
    return [each.relative_to(REPOSITORY).as_posix() for each in dict.fromkeys(found)]
