"""Imitations of boards, in which the first steps of the documentation are carried out as written.

``make boards`` runs them all and writes ``docs/boards.md``: a user space of the board's kind, its
files, its pip and a torch of its version. What only a board has, its GPU, is not there.
"""
