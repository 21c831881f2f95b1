"""Which test types each command that the code of this package advises.

By file and function. A command that no test can type, since it changes the system or wants an index
or a board, says so, with what holds it in place of that.
"""

from __future__ import annotations

CURES = "tests/doctor/test_cures.py::test_what_is_advised_mends_what_was_found"
INSTALLS = (
    "tests/cli/test_install.py::test_it_installs_builds_without_compiling_and_verifies_the_import"
)
DOCTOR = "tests/docs/test_commands.py::test_a_command_can_be_typed_as_it_stands"
ENVIRONMENT = "tests/hook/test_advice.py::test_a_new_environment_is_made_by_a_command_that_works"
VARIABLE = "tests/doctor/test_cures.py::test_a_variable_leaves_out_a_backend_that_ends_the_process"
APT = "changes the system; where each name is from stands beside it"
INDEX = "wants an index: pip's grammar is held by tests/doctor/sandbox.py, the names by hand"

TYPED = {
    "advice.py:extra": "wants an index: `make docs-check` installs the extras",
    "advice.py:again": "tests/hook/test_advice.py::"
    "test_a_checkout_is_checked_out_again_by_a_command_that_works",
    "advice.py:apt": APT,
    "advice.py:pip": ENVIRONMENT,
    "advice.py:environment": ENVIRONMENT,
    "advice.py:uninstall": CURES,
    "advice.py:bring_pip": "tests/cli/test_install.py::"
    "test_an_environment_without_pip_gets_the_one_that_python_brings",
    "cli/device.py:device": DOCTOR,
    "cli/doctor.py:doctor": DOCTOR,
    "cli/doctor.py:_lines": CURES,
    "cli/install.py:_do": DOCTOR,
    "cli/status.py:status": CURES,
    "compat/absent.py:NoKernel.__str__": INDEX,
    "compat/later.py:Name._missing": CURES,
    "compat/later.py:Name._absent": CURES,
    "demo/models.py:mamba_ssm": CURES,
    "demo/models.py:require": CURES,
    "dispatch/backends.py:Op._warn": DOCTOR,
    "dispatch/selection.py:read_variable": VARIABLE,
    "hook/copies.py:look": INSTALLS,
    "installing/environments.py:commands": INDEX,
    "installing/environments.py:make": "`make boards` types it, in the steps of JetPack 7",
    "installing/plan.py:_release": INSTALLS,
    "installing/work.py:work": INDEX,
    "kernel_packages.py:_warn": INDEX,
    "releases/get_torch.py:command": "wants the vendors' servers: "
    "tests/installing/test_get_torch.py holds which Python is called, and what for",
    "releases/instead.py:for_a_text": INSTALLS,
    "releases/libraries.py:command": INDEX,
    "releases/needed.py:command": CURES,
    "report/changes.py:changes": CURES,
    "report/findings/commands.py:install": CURES,
    "report/findings/commands.py:release": CURES,
    "report/findings/commands.py:without": INSTALLS,
    "report/findings/commands.py:aside": CURES,
    "report/findings/kernels.py:_backends_broken": VARIABLE,
    "report/findings/kernels.py:_backend_named": VARIABLE,
    "report/findings/packages.py:_no_nvcc": CURES,
    "report/findings/packages.py:_incomplete_release": CURES,
    "report/findings/packages.py:_no_dependency": CURES,
    "report/findings/packages.py:_no_mamba_ssm": CURES,
    "report/findings/registry.py:findings": CURES,
    "report/findings/the_hook.py:_copy_refused": INSTALLS,
    "report/findings/the_hook.py:_bypassed": "tests/cli/test_run.py::"
    "test_the_end_of_a_script_is_that_under_python",
    "report/findings/the_program.py:_a_name_that_moved": CURES,
    "report/findings/the_trial.py:_the_block_fails": CURES,
    "report/findings/with_triton.py:_no_triton": "tests/cli/test_install.py::"
    "test_the_triton_that_goes_with_torch_comes_along_where_there_is_one",
    "report/findings/with_triton.py:_an_old_triton": INSTALLS,
    "report/findings/with_triton.py:_a_triton_that_launches_nothing": "tests/doctor/"
    "test_symptoms_of_triton.py::test_a_triton_that_does_not_know_thor",
    "triton_there.py:advice": DOCTOR,
}
