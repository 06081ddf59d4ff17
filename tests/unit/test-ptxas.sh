#!/bin/bash
# Hot kernels keep all they have in registers, on every architecture that they were compiled for: what
# ptxas said of each file is beside its object. k_moe_up_tiles may keep 8 bytes elsewhere, which it
# does between its loops.
hot="k_linears_few k_linears_manyILi1 k_linears_manyILi3 k_moe_up_few k_moe_down_few k_moe_up_tiles k_moe_down_tiles k_layer_in k_rope_kv k_rmsnorm k_router_few k_router_many
	k_attend_decodeILi128 k_attend_prefillILi128"
files=("${builddir:-.}"/kernels/cuda/*.ptxas)

[ -e "${files[0]}" ] || { echo "skip: built without CUDA"; exit 77; }
failed=0
for kernel in $hot; do
	awk -v kernel="$kernel" '
		/Compiling entry function/ { hot = index($0, kernel) > 0; what = $0; n += hot }
		/bytes spill/ && hot {
			split($0, part, /[ ,]+/)
			may = kernel == "k_moe_up_tiles" ? "[08]" : "0"
			if ($0 !~ " " may " bytes spill stores, " may " bytes spill loads") { print what; print; bad = 1 }
		}
		END { if (!n) print kernel ": never compiled"; exit bad || !n }' "${files[@]}"
	if [ $? -eq 0 ]; then echo "ok $kernel"; else echo "not ok $kernel"; failed=1; fi
done
exit $failed
