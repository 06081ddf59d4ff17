#!/bin/bash
# The traces are what their program makes.
set -u
here=${srcdir:-$(dirname "$0")/../..}/tests/bench
made=$(mktemp -d) || exit 1
trap 'rm -rf "$made"' EXIT
if PYTHONDONTWRITEBYTECODE=1 python3 "$here/make-traces.py" "$made" && diff -rq "$made" "$here/traces"; then
	echo "ok the traces are what make-traces.py makes"
else
	echo "not ok the traces are what make-traces.py makes"
	exit 1
fi
