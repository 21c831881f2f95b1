"""Two small language models, trained with the mamba-ssm that is installed, on real text.

``text`` reads, ``models`` builds, ``training`` trains and writes, ``plot`` draws; the command
``jetson-mamba demo`` shows what they do.
"""
