"""Variants of every text of every release, each held to what it means by itself.

A *mutant* is a file of a published ``mamba_ssm`` with one change, as a fork, a later release or a
user makes it: a parameter more, a scaled operand, another import. It is run without the hook beside
extensions that are emulated, which says what it means, and with the hook in each *situation*.
What comes of it is one :class:`~tests.mutants.verdicts.Verdict`; none may be forbidden.

``python -m tests.mutants`` runs all of them and prints the counts; a sample of each kind runs with
the other tests. One mutation is one function with :func:`~tests.mutants.registry.mutation` on it.
"""
