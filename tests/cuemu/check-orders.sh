#!/bin/bash
# Every operation against double on the emulator, with blocks and threads in each of three orders:
# the same checks pass, and the results have the same bits. Then sampling, and products by a library, in one of them.
set -u -o pipefail
ops=${builddir:-.}/tests/cuemu/check-ops-emu
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
bad=0
for order in forwards backwards shuffled; do
	CUEMU_ORDER=$order "$ops" --small "$@" >"$tmp/$order" 2>&1 || bad=1
	sed "s/^ok \|^not ok /&$order: /; /^[0-9]* passed/d" "$tmp/$order"
	cmp -s "$tmp/forwards" "$tmp/$order" || { echo "not ok $order: not the bits of forwards"; bad=1; }
done
CUEMU_ORDER=shuffled "${builddir:-.}"/tests/cuemu/check-sample-emu --small | grep -v ' passed, ' || bad=1
mkdir "$tmp/lib" && ln -s "$PWD/${builddir:-.}/tests/cuemu/.libs/fake-cublaslt.so" "$tmp/lib/libcublasLt.so.13"
LD_LIBRARY_PATH="$tmp/lib" CUEMU_ORDER=shuffled "${builddir:-.}"/tests/cuemu/check-products-emu --small |
	grep -v ' passed, ' || bad=1
exit $bad
