"""What happens to a user's program when something goes wrong, one test for each thing.

``python -m tests.faults`` writes the table ``docs/faults.md`` from the declarations.
"""
