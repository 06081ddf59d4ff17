#!/bin/bash
# Runs one test program for make check: keeps its output as the log, counts its
# tests, times it, and prints one line. Two forms of output are understood:
# cmocka's, and lines "ok NAME", "not ok NAME" and "skip NAME: REASON".
set -u
while [ $# -gt 0 ]; do
	case $1 in
	--test-name) name=$2; shift 2 ;;
	--log-file) log=$2; shift 2 ;;
	--trs-file) trs=$2; shift 2 ;;
	--color-tests | --collect-skipped-logs | --expect-failure | --enable-hard-errors) shift 2 ;;
	--) shift; break ;;
	*) shift ;;
	esac
done
begin=$(date +%s%N)
timeout --kill-after=10 "${TEST_TIMEOUT:-600}" "$@" >"$log" 2>&1 </dev/null
rc=$?
ms=$((($(date +%s%N) - begin) / 1000000))
passed=$(grep -acE '^\[       OK \]|^ok ' "$log")
failed=$(grep -acE '^\[  FAILED  \] [^0-9]*$|^not ok ' "$log")
skipped=$(grep -acE '^\[  SKIPPED \] [^0-9]|^skip ' "$log")
# cmocka lists what failed a second time at the end
if grep -aq '^\[==========\]' "$log"; then
	failed=$(grep -aE '^\[  FAILED  \]' "$log" | sed -n 's/^\[  FAILED  \] \([A-Za-z_][A-Za-z0-9_]*\)$/\1/p' | sort -u | wc -l)
	skipped=$(grep -aE '^\[  SKIPPED \]' "$log" | sed -n 's/^\[  SKIPPED \] \([A-Za-z_][A-Za-z0-9_]*\)$/\1/p' | sort -u | wc -l)
fi
if [ $rc -eq 77 ]; then
	skipped=$((skipped > 0 ? skipped : 1))
elif [ $rc -ne 0 ] && [ "$failed" -eq 0 ]; then
	failed=1
	echo "$name ended with status $rc" >>"$log"
elif [ $rc -eq 0 ] && [ $((passed + failed + skipped)) -eq 0 ]; then
	passed=1
fi
result=PASS
[ "$skipped" -gt 0 ] && [ "$passed" -eq 0 ] && result=SKIP
[ "$failed" -gt 0 ] && result=FAIL
echo "@counts $passed $failed $skipped $ms" >>"$log"
{
	echo ":test-result: $result"
	echo ":global-test-result: $result"
	echo ":recheck: $([ $result = FAIL ] && echo yes || echo no)"
	echo ":copy-in-global-log: $([ $result = PASS ] && echo no || echo yes)"
} >"$trs"
printf '%s: %s (%d passed, %d failed, %d skipped, %d.%03d s)\n' $result "$name" "$passed" "$failed" "$skipped" \
	$((ms / 1000)) $((ms % 1000))
[ $result = FAIL ] && sed 's/^/    /' "$log" | tail -n 60
exit 0
