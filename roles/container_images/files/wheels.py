"""Print pip's flags, one a line, that take wheels for the image's Python, not for its own: wheels.py PYTHON MACHINE.

PYTHON is the image's, such as 3.11; MACHINE is what `uname -m` says.
"""

from __future__ import annotations

import sys

# The C library that wheels may ask for is at most Debian 12's, 2.36; official Python images have that or a newer one.
OLDEST_GLIBC_MINOR, GLIBC_MINOR = 17, 36


def flags(python: str, machine: str) -> list[str]:
    """The flags of `pip download`. Given one platform, pip takes no older ones: all are named, the newest first."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC_MINOR, OLDEST_GLIBC_MINOR - 1, -1)]
    # These bring their older siblings (manylinux2010, manylinux1) with them.
    platforms += [f"manylinux2014_{machine}", *([f"manylinux_2_{minor}_{machine}" for minor in (12, 5)])]
    target = ["--python-version", python, "--implementation", "cp", "--abi", f"cp{python.replace('.', '')}"]
    return [*target, *(word for platform in platforms for word in ("--platform", platform))]


if __name__ == "__main__":
    sys.stdout.write("".join(f"{flag}\n" for flag in flags(sys.argv[1], sys.argv[2])))
