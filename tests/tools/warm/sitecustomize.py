"""Read by each Python that starts below `python -m tests.tools.warm`: Ansible's own Python becomes the client there."""

import os
import sys

if sys.prefix == os.environ.get("HEADRACE_WARM_PREFIX") and "".join(sys.orig_argv[1:2]).endswith("/ansible-playbook"):
    sys.executable = os.environ["HEADRACE_WARM_PYTHON"]
