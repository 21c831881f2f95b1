"""The published releases of mamba-ssm. What the tests of the copies need of them is here."""
