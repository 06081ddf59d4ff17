#!/bin/sh
# Checks on a GPU: every operation against double, CUDA calls that fail, products by cuBLASLt, sampling, and the fidelity table. Prints
# "N passed, N failed, N skipped" at the end; exits with 1 if anything failed, with 77 if there is no GPU.
#
# Usage: check-gpu.sh [PROGRAMS [EXPERTS]]
#	PROGRAMS  folder of check-ops-cuda, check-products-cuda, check-sample-cuda and check-fidelity-cuda: the script's own if left out
#	EXPERTS   what check-fidelity write=EXPERTS left there: PROGRAMS/experts if left out
# $srcdir/tests/golden has the checkpoints; srcdir is PROGRAMS if it is not set.
set -u
programs=${1:-$(dirname "$(readlink -f "$0")")}
experts=${2:-$programs/experts}
export srcdir="${srcdir:-$programs}"
out=$(mktemp) || exit 1
trap 'rm -f "$out"' EXIT

run() {
	"$@" 2>&1 | tee -a "$out" | grep -v ' passed, .* failed, '
}
run "$programs/check-ops-cuda"
if ! grep -q '^skip ops' "$out"; then
	run "$programs/check-products-cuda"
	run "$programs/check-sample-cuda"
	run "$programs/check-fidelity-cuda" read="$experts"
fi
# a program that died printed no verdict of its own
for what in 'ok attention' 'ok .*long'; do
	grep -q "$what" "$out" || grep -q '^skip ops' "$out" || echo "not ok: a program ended early" | tee -a "$out"
done
awk '/^ok /{ p++ } /^not ok/{ f++ } /^skip /{ s++ }
	END { printf "%d passed, %d failed, %d skipped\n", p, f, s; exit f > 0 ? 1 : p == 0 ? 77 : 0 }' "$out"
