"""The tests of mamba-ssm and causal-conv1d themselves, run against the hook and the stand-in."""
