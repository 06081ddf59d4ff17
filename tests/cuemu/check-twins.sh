#!/bin/bash
# Every function of kernels/cuda/ptx.h has a twin of the same declaration in tests/cuemu, and the
# other way round; and asm is nowhere else.
set -u
cd "${1:-${srcdir:-.}}" || exit 1
declarations() { # FILE
	tr '\n\t' '  ' <"$1" | sed 's,/\*[^*]*\*\+\([^/*][^*]*\*\+\)*/,,g' |
		grep -oE '(template <[^>]*> )?static __device__ __forceinline__ [^{;]*\)' |
		sed 's/  */ /g; s/ $//' | sort
}
bad=0
while IFS= read -r line; do
	case $line in
	'<'*) echo "not ok ptx.h has no twin of: ${line#< }" ;;
	*) echo "not ok tests/cuemu has a twin of nothing: ${line#> }" ;;
	esac
	bad=$((bad + 1))
done < <(diff <(declarations kernels/cuda/ptx.h) <(declarations tests/cuemu/kernels/cuda/ptx.h) | grep '^[<>]')
[ -n "$(declarations kernels/cuda/ptx.h)" ] || { echo "not ok ptx.h declares nothing"; bad=1; }
for file in kernels/cuda/*.cu kernels/cuda/*.h; do
	[ -e "$file" ] && [ "$file" != kernels/cuda/ptx.h ] || continue
	if grep -nE '\basm\b' "$file"; then
		echo "not ok $file has asm, which belongs into ptx.h"
		bad=$((bad + 1))
	fi
done
[ $bad -eq 0 ] && echo "ok every function of ptx.h has its twin"
exit $((bad > 0))
