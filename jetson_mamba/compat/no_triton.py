"""What cannot be imported: for imports of Triton that a module of mamba_ssm has an answer to.

A folder that is called triton would be imported in its place, and a broken one raise anything.
"""

raise ModuleNotFoundError("No module named 'triton'", name="triton")
