"""What `import mamba_ssm` imports besides, and what it says where that is missing."""
