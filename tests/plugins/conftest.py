"""The tests of plug-ins run with the real frameworks: `make test-plugins`. Elsewhere they are not collected."""

import os

collect_ignore_glob = [] if os.environ.get("OCCAMDB_TEST_PLUGINS") else ["test_*.py"]
