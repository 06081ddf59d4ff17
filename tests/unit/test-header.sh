#!/bin/sh
# steamd.h stands alone, in C and in C++.
header=${srcdir:-.}/client/steamd.h
for compiler in "cc -std=c99 -x c" "cc -std=gnu11 -x c" "c++ -std=c++11 -x c++"; do
	set -- $compiler
	name="steamd.h compiles with $1 $2"
	if ! command -v "$1" >/dev/null; then
		echo "skip $name: there is no $1 here"
	elif $compiler -Wall -Wextra -Werror -fsyntax-only "$header"; then
		echo "ok $name"
	else
		echo "not ok $name"
	fi
done
