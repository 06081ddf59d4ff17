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

# What stands behind the spread may be more than one of gbs, gflops and tokens_per_s.
has_row() # NAME UNIT LIMIT LIMIT_NAME RATIO
{
	grep -qE "^\{\"name\":\"$1\",\"value\":$number,\"unit\":\"$2\",\"limit\":$3,\"limit_name\":$4,\"ratio\":$5,\"spread\":$number(,\"[a-z_]+\":$number)*\}$" \
		<<<"$rows"
}

has_limit() # NAME UNIT LIMIT_NAME
{
	has_row "$1" "$2" "$number" "\"$3\"" "$number"
}

ends_with() # STATUS, a word of stderr, arguments
{
	local status=$1 word=$2 text
	shift 2
	text=$("$bench" "$@" 2>&1 >/dev/null)
	[ $? -eq "$status" ] && grep -q -- "$word" <<<"$text"
}

says() # a word of stderr, arguments
{
	local word=$1
	shift
	"$bench" "$@" 2>&1 >/dev/null | grep -q -- "$word"
}

# Figures of memory and of the processor; portable code has no peak, on no machine.
rows=$("$bench" --json --rounds 1 --model "$air" read-bandwidth gemv-int4 router decode-b1 decode-b2 \
	decode-ctx8k attention-decode-1k load disk tokenizer memory echo 2>/dev/null)
check "read-bandwidth has no limit" has_row read-bandwidth GB/s null null null
check "an int4 product is held against it" has_limit gemv-int4 GB/s 'read bandwidth'
check "the router too" has_limit router GB/s 'read bandwidth'
check "attention of one row too" has_limit attention-decode-1k GB/s 'read bandwidth'
check "decoding too" has_limit decode-b1 tokens/s 'read bandwidth'
check "two answers at once too" has_limit decode-b2 tokens/s 'read bandwidth'
check "and one with a long past" has_limit decode-ctx8k tokens/s 'read bandwidth'
check "loading is held against disk or memory" has_limit load GB/s '(O_DIRECT read|copy)'
check "the tokenizer's worst is held against prose" has_limit tokenizer-worst MB/s prose
check "an executor was started and measured" has_limit memory MiB 'most beside weights and KV'
check "the echo has no limit" has_row echo us null null null
check "there is no other row" [ "$(grep -cv -e '"disk"' -e '"tokenizer"' <<<"$rows")" -eq 11 ]

check "portable code has no peak" says "peak-fma is left out" --isa portable peak-fma
check "and nothing is held against it" \
	says "prefill-128 is left out: no peak is known of portable" --isa portable --model "$air" prefill-128
if "$bench" --rounds 1 peak-fma 2>/dev/null | grep -q peak-fma; then
	rows=$("$bench" --json --rounds 1 --model "$air" prefill-128 attention-prefill gemm-bf16-16 2>/dev/null)
	check "a prompt is held against a peak" has_limit prefill-128 tokens/s '[a-zA-Z0-9 ]+ peak'
	check "its attention too" has_limit attention-prefill GFLOP/s '[a-zA-Z0-9 ]+ peak'
	check "a product against what limits it" has_limit gemm-bf16-16 GFLOP/s '[a-zA-Z0-9 ]+'
	check "what was not asked for is not printed" [ "$(wc -l <<<"$rows")" -eq 3 ]
fi

check "what is possible is no error" ends_with 0 threads --rounds 1 --model "$air" decode-b1 memory tokenizer
check "the table has a heading and the row" \
	[ "$("$bench" --rounds 1 --model "$air" decode-b1 2>/dev/null | wc -l)" -eq 2 ]
check "an unknown name is refused" ends_with 2 "no figure 'nonsense'" decode-b1 nonsense
check "no rounds are refused" ends_with 2 "'0' is not a number of rounds" --rounds 0
check "an unknown instruction set is refused" ends_with 2 "'x86' is not an instruction set" --isa x86
check "--help lists the names" grep -q '^  decode-ctx8k ' <("$bench" --help)
check "ask-overhead needs a socket" ends_with 0 'left out: it needs --socket' ask-overhead
check "a socket without a daemon is named" \
	ends_with 1 /nonexistent/socket --socket /nonexistent/socket ask-overhead
check "a directory without a model is named" ends_with 1 /nonexistent/model --model /nonexistent/model decode-b1
exit $bad
