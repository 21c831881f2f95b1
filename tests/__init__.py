"""Tests; what several of them share lies in `references`, `emulated` and `releases`."""
