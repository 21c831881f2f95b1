"""CUDA C++ kernels, compiled for the GPU at hand at their first use.

The extensions of mamba-ssm and causal-conv1d need nvcc, a host compiler and hours on a Jetson,
and are bound to one torch. These sources need NVRTC alone, a library that pip installs; see
``compiler.py`` for how they are compiled and launched, ``docs/notes-kernels.md`` for how each
works.
"""
