#!/usr/bin/env bash
# Two commands beside each other: beside.sh COMMAND -- COMMAND
# What the second one prints is shown as it comes; what the first one prints, from its beginning, once the second has
# ended. Fails where one of them fails. Where it is interrupted, it interrupts the first one and waits for its end.
set -euo pipefail
first=()
while [[ $1 != -- ]]; do first+=("$1"); shift; done
shift

log=$(mktemp)
set -m # The first command gets a process group of its own: one signal reaches all of it.
# What begins in the background of a script ignores SIGINT, and so would all that it starts.
env --default-signal=INT "${first[@]}" >"$log" 2>&1 </dev/null &
set +m
finish() {
  kill -INT -- -$! 2>/dev/null || true
  wait $! || true
  rm -f "$log"
}
trap finish EXIT
trap 'exit 130' INT TERM

result=0
"$@" || result=$?
tail --lines=+1 --follow --pid=$! "$log"
wait $! || result=$?
exit "$result"
