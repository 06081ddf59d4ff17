#!/bin/sh
# Packs what checks and benches a GPU into a tarball that needs nothing installed but a driver: programs,
# golden checkpoints, which experts exact arithmetic chose, and the few shared libraries, found beside them.
#
# Usage: dist-gpu.sh TARBALL SRCDIR EXPERTS PROGRAM…
#	EXPERTS  the folder that check-fidelity isa=ref write=EXPERTS filled
set -eu
tarball=$1 top=$2 experts=$3
shift 3
name=$(basename "$tarball" .tar.gz)
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
dir=$room/$name
mkdir -p "$dir/lib" "$dir/tests/golden"

for program in "$@"; do
	cp "$program" "$dir/"
	strip "$dir/$(basename "$program")"
	# all that it is linked with but what every system has of its own
	ldd "$program" | awk '$3 ~ /^\// { print $3 }' |
		grep -vE '/(libc|libm|libdl|librt|libpthread|ld-linux[^/]*)\.so' | while read -r library; do
		cp -L "$library" "$dir/lib/"
	done
done
cp -R "$experts" "$dir/experts"
cp "$top/tests/gpu/check-gpu.sh" "$dir/"
for checkpoint in air glm46 odd bf16 w4all w4g128 long; do
	cp -R "$top/tests/golden/$checkpoint" "$dir/tests/golden/"
	rm -f "$dir/tests/golden/$checkpoint"/tokenizer*.json
done
tar -C "$room" -czf "$tarball" "$name"
ls -l "$tarball"
