"""A module that cannot be imported, for modules of mamba_ssm that can do without Triton.

Such a module catches an ImportError of Triton. A folder named ``triton`` would raise none, and a
broken Triton may raise anything; importing this module always raises an ImportError.
"""

raise ModuleNotFoundError("No module named 'triton'", name="triton")
