#!/bin/bash
# Our allocator on every trace, in a card hardly larger than what is live.
cd "${srcdir:-$(dirname "$0")/../..}" || exit 1
exec "$OLDPWD/${builddir:-.}/tests/bench/compare-allocators" --bars tests/bench/traces/*.trace
