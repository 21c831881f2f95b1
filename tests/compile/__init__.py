"""Tests of the ops in graphs.

Those of torch.compile and torch.export, of blocks of real releases as well.
"""
