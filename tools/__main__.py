"""`python -m occamdb.tools` is the command line."""

import sys

from occamdb.tools.cli import main

sys.exit(main())
