#!/bin/bash
# ./quickstart in a copy of the tree: to an answer, again in under two seconds, and gone on --stop.
set -u
src=$(readlink -f "${srcdir:-.}")
if grep -q '^SANITIZE_CFLAGS = .*fsanitize' "${builddir:-.}/Makefile"; then
	echo "skip quickstart: it makes its own build; tried once is enough, in the optimised build"
	exit 77
fi
work=$(mktemp -d /var/tmp/steamd-quickstart-XXXXXX)
export XDG_STATE_HOME=$work/state
unset XDG_RUNTIME_DIR
trap '"$work/tree/quickstart" --stop 2>/dev/null; rm -rf "$work"' EXIT
mkdir -p "$work/tree"
tar -C "$src" --exclude=./.git --exclude=./.build --exclude=./tests/golden --exclude=./_build -cf - . | tar -C "$work/tree" -xf -
cd "$work/tree" || exit 1

if ./quickstart "What is steamd?" >"$work/out" 2>"$work/err" && [ -s "$work/out" ] && grep -q 'go on:' "$work/err"; then
	echo "ok a copy of the tree comes to an answer"
else
	tail -n 30 "$work/err"
	echo "not ok a copy of the tree comes to an answer"
	exit 1
fi
begin=$(date +%s%N)
./quickstart "And again?" >"$work/out" 2>"$work/err"
ms=$((($(date +%s%N) - begin) / 1000000))
if [ -s "$work/out" ] && [ $ms -lt 2000 ]; then
	echo "ok a second run answers in under 2 s ($ms ms)"
else
	echo "not ok a second run answers in under 2 s ($ms ms)"
fi
pid=$(cat "$work/state/steamd-quickstart/pid")
./quickstart --stop 2>/dev/null
if kill -0 "$pid" 2>/dev/null; then
	echo "not ok --stop ends the daemon"
else
	echo "ok --stop ends the daemon"
fi
