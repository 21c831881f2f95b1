"""mamba_ssm as source: copies are made of it, and Triton reads it."""

module_collection_mode = "py"
