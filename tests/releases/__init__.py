"""The published releases of mamba-ssm, and what the tests of the copies need of them."""
