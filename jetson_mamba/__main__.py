"""``python -m jetson_mamba`` is the command ``jetson-mamba``."""

import sys

from jetson_mamba.cli import main

sys.exit(main())
