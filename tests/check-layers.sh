#!/bin/bash
# Includes go downwards only. Each folder lists the folders it may include.
set -u
cd "${1:-.}" || exit 1
allowed() {
	case $1 in
	client/wire) echo "client/wire" ;;
	client/steamctl) echo "client/steamctl client client/wire" ;;
	client/gateway) echo "client/gateway client client/wire" ;;
	client) echo "client client/wire" ;;
	kernels/cuda) echo "kernels kernels/cuda" ;;
	kernels/*) echo "kernels kernels/ref kernels/cpu" ;;
	kernels) echo "kernels" ;;
	daemon/base) echo "daemon/base client/wire" ;;
	daemon/text) echo "daemon/text daemon/base client/wire" ;;
	daemon/kv) echo "daemon/kv daemon/base client/wire" ;;
	daemon/session) echo "daemon/session daemon/kv daemon/text daemon/base client/wire" ;;
	daemon/sched) echo "daemon/sched daemon/session daemon/kv daemon/base client/wire" ;;
	daemon/power) echo "daemon/power daemon/sched daemon/session daemon/kv daemon/base client/wire" ;;
	# the server reads a model's headers, to refuse early; it never computes
	daemon/server) echo "daemon/server daemon/power daemon/sched daemon/session daemon/kv daemon/text daemon/exec/weights daemon/base client/wire" ;;
	daemon) echo "daemon daemon/server daemon/power daemon/sched daemon/session daemon/kv daemon/text daemon/exec/weights daemon/base client/wire" ;;
	# the plan of memory is made of the allocator's own rules; nothing there needs a GPU
	daemon/exec/weights) echo "daemon/exec/weights kernels kernels/cuda daemon/base client/wire" ;;
	daemon/exec/model | daemon/exec/sample) echo "$1 daemon/exec/weights kernels daemon/base client/wire" ;;
	daemon/exec) echo "daemon/exec daemon/exec/model daemon/exec/sample daemon/exec/weights kernels daemon/base client/wire" ;;
	*) echo "*" ;;
	esac
}
bad=0
while IFS= read -r file; do
	from=$(dirname "$file")
	may=" $(allowed "$from") "
	[ "$may" = " * " ] && continue
	while IFS= read -r header; do
		case "$may" in
		*" $(dirname "$header") "*) ;;
		*)
			echo "not ok $file includes $header, which is above or beside it"
			bad=$((bad + 1))
			;;
		esac
	done < <(sed -n 's/^#include "\(.*\)"$/\1/p' "$file")
done < <(find client daemon kernels -name '*.[ch]' -o -name '*.def' | sort)
[ $bad -eq 0 ] && echo "ok includes go downwards only"
exit $((bad > 0))
