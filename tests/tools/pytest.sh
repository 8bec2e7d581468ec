#!/usr/bin/env bash
# Runs pytest; what failed is run once more, in a process of its own, and what passes only then is named in the last
# lines. Such a test has to do with the load of the machine or with chance, and is to be mended.
set -uo pipefail
pytest=$1
shift

# What pytest remembers as failed, a test a line.
failed() {
  sed -n 's/^ *"\(.*\)": true,\{0,1\}$/\1/p' .pytest_cache/v/cache/lastfailed | sort
}

"$pytest" "$@"
status=$?
# 1 says that tests failed; anything else (no tests, wrong usage, interrupted) is no matter of chance.
if [ "$status" -ne 1 ]; then
  exit "$status"
fi
first=$(failed)
echo "==> Once more, what failed" >&2
"$pytest" "$@" --last-failed --last-failed-no-failures none
status=$?
if [ "$status" -le 1 ]; then
  passed=$(comm -23 <(echo "$first") <(failed))
  if [ -n "$passed" ]; then
    echo "==> PASSED ONLY ON THE SECOND ATTEMPT, and to be mended ($(echo "$passed" | wc -l)):" >&2
    echo "$passed" | sed 's/^/==>   /' >&2
  fi
fi
exit "$status"
