"""The local cluster's own tool: `cluster.py --help`. Role local_cluster calls it; it is of use by hand too."""

from __future__ import annotations

import sys

from local_cluster.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
