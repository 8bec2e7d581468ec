#!/usr/bin/env bash
# Runs pytest; what failed is run once more, in a process of its own, and named. A test that passes only then has to do
# with the load of the machine or with chance, and is to be mended.
set -uo pipefail
pytest=$1
shift
"$pytest" "$@"
status=$?
# 1 says that tests failed; anything else (no tests, wrong usage, interrupted) is no matter of chance.
if [ "$status" -ne 1 ]; then
  exit "$status"
fi
echo "==> Once more, what failed (mend a test that passes only now)" >&2
exec "$pytest" "$@" --last-failed --last-failed-no-failures none
