#!/bin/bash
# The bench prints the rows that it was asked for, and refuses what it cannot do.
set -u
bench=${builddir:-.}/tests/bench/bench
air=${srcdir:-.}/tests/golden/air
number='[0-9.e+-]+'
bad=0

check() # NAME, then a command that says whether it holds
{
	local name=$1
	shift
	if "$@"; then
		echo "ok $name"
	else
		echo "not ok $name"
		bad=1
	fi
}

has_row() # NAME UNIT LIMIT LIMIT_NAME RATIO
{
	grep -qE "^\{\"name\":\"$1\",\"value\":$number,\"unit\":\"$2\",\"limit\":$3,\"limit_name\":$4,\"ratio\":$5,\"spread\":$number\}$" \
		<<<"$rows"
}

ends_with() # STATUS, a word of stderr, arguments
{
	local status=$1 word=$2 text
	shift 2
	text=$("$bench" "$@" 2>&1 >/dev/null)
	[ $? -eq "$status" ] && grep -q -- "$word" <<<"$text"
}

rows=$("$bench" --json --rounds 1 --model "$air" 2>/dev/null)
check "read-bandwidth has no limit" has_row read-bandwidth GB/s null null null
check "decode is held against the read bandwidth" \
	has_row decode-b1 tokens/s "$number" '"read-bandwidth"' "$number"
check "decode is told in bytes too" has_row decode-b1-read GB/s "$number" '"read-bandwidth"' "$number"
check "prefill is held against decode" has_row prefill-512 tokens/s "$number" '"decode-b1"' "$number"
check "there is no other row" [ "$(wc -l <<<"$rows")" -eq 4 ]

rows=$("$bench" --json --rounds 1 --model "$air" decode-b1 2>/dev/null)
check "what was not asked for is not printed" [ "$(wc -l <<<"$rows")" -eq 2 ]

check "an unknown name is refused" ends_with 2 Usage nonsense
check "no rounds are refused" ends_with 2 Usage --rounds 0
check "ask-overhead needs a socket" ends_with 2 Usage ask-overhead
check "a socket without a daemon is named" \
	ends_with 1 /nonexistent/socket --socket /nonexistent/socket ask-overhead
check "a directory without a model is named" ends_with 1 /nonexistent/model --model /nonexistent/model
exit $bad
