"""mamba_ssm where there is no Triton, or one that cannot serve it."""
