"""`python -m occamdb` is the command line."""

import sys

from occamdb.tools.entry import main

sys.exit(main())
