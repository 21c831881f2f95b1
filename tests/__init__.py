"""The tests of the package.

What several of them share lies in `references`, `emulated` and `releases`.
"""
