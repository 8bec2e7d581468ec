"""How long tests wait for an event before they say that it never comes."""

from __future__ import annotations

# Far more than any of them takes on a machine with a part of one core: it ends a test that hangs, and measures nothing.
HANG_SECONDS = 120.0
