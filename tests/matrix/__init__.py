"""Every release of mamba-ssm with every release of causal-conv1d.

Before and after. ``python -m tests.matrix`` runs all of it and writes ``docs/matrix.json`` and
``docs/matrix.png``; the part of it that meets each text and each form of call runs with the other
tests.
"""
