/* A run of bytes that somebody else owns: pointer and length, no terminator. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

struct span {
	const char *data; /* NULL only if len is 0 */
	size_t len;	  /* bytes */
};

#define SPAN(literal) ((struct span){ (literal), sizeof(literal) - 1 })
#define SPAN_ARG(s) (int)(s).len, (s).data

static inline struct span span_of(const char *string)
{
	return (struct span){ string, string ? strlen(string) : 0 };
}

static inline bool span_is(struct span s, const char *string)
{
	return s.len == strlen(string) && memcmp(s.data, string, s.len) == 0;
}
