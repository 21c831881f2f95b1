"""Tests of what `import mamba_ssm` imports besides.

Where that is missing, the error says what to install.
"""
