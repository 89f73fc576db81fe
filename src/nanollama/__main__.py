"""``python -m nanollama``: the command line."""

import sys

from nanollama.cli.main import main

sys.exit(main())
