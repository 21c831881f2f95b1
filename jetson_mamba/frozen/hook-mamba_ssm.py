"""Has PyInstaller take mamba_ssm as source, of which copies are made."""

module_collection_mode = "py"
