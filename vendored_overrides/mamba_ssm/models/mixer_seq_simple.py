"""A whole model, which multiplies the last state of a token by its vocabulary."""

from jetson_mamba.rewrite import Expression, ImportBeside, Override

OVERRIDE = Override(
    target="mamba_ssm.models.mixer_seq_simple",
    edits=(
        ImportBeside(beside="torch", module="jetson_mamba.ops"),
        Expression(
            of="self.lm_head(hidden_states)",
            becomes="jetson_mamba.ops.vocabulary(self.lm_head, hidden_states)",
            parameter="self",
        ),
    ),
    required=False,
)
