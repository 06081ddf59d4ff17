/* What products ask memory for ahead of its use: after act.h. */
#pragma once

#ifndef ASK_AHEAD
#define ASK_AHEAD 2048 /* bytes */
#endif

/*
 * Asks for the line that far behind @p, but where one strip is read for one token: that is how
 * dev->in_turn reads, where the processor sees the run and asks far enough ahead itself, and
 * what a program asks for takes places from that.
 */
INLINE void ask_ahead(const uint8_t *p, const int n_strips, const int n_tokens)
{
	if (n_strips > 1 || n_tokens > 1)
		__builtin_prefetch(p + ASK_AHEAD, 0, 3);
}
