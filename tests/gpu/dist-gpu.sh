#!/bin/sh
# Packs what checks and benches a GPU into a tarball that needs nothing installed but a driver: programs,
# golden checkpoints, which experts exact arithmetic chose, and the few shared libraries, found beside them.
#
# Usage: dist-gpu.sh TARBALL SRCDIR PROGRAM…
#	PROGRAM…  the last one is check-fidelity for CPUs, which is run and not packed
set -eu
tarball=$1 top=$2
shift 2
name=$(basename "$tarball" .tar.gz)
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
dir=$room/$name
mkdir -p "$dir/lib" "$dir/experts" "$dir/tests/golden"

while [ $# -gt 1 ]; do
	cp "$1" "$dir/"
	strip "$dir/$(basename "$1")"
	# all that it is linked with but what every system has of its own
	ldd "$1" | awk '$3 ~ /^\// { print $3 }' |
		grep -vE '/(libc|libm|libdl|librt|libpthread|ld-linux[^/]*)\.so' | while read -r library; do
		cp -L "$library" "$dir/lib/"
	done
	shift
done
cp "$top/tests/gpu/check-gpu.sh" "$dir/"
for checkpoint in air glm46 odd bf16 w4all w4g128 long; do
	cp -R "$top/tests/golden/$checkpoint" "$dir/tests/golden/"
	rm -f "$dir/tests/golden/$checkpoint"/tokenizer*.json
done
srcdir=$top "$1" isa=ref write="$dir/experts"
tar -C "$room" -czf "$tarball" "$name"
ls -l "$tarball"
