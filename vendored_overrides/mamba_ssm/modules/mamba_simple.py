"""The block of Mamba-1."""

from jetson_mamba.rewrite import Override

from ...blocks import IMPORT, by_graph

OVERRIDE = Override(
    target="mamba_ssm.modules.mamba_simple",
    edits=(IMPORT, *by_graph("Mamba", ("hidden_states", "inference_params"))),
    required=False,
)
