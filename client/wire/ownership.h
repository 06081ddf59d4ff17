/*
 * Ownership in C: locals that release what they hold when they leave scope,
 * and the one way to hand it over. Used by everything but the kernels.
 */
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))
#define _printf_(a, b) __attribute__((format(printf, a, b)))
#define _unused_ __attribute__((unused))

/* Hands over what @p holds: returns its value and leaves NULL behind. */
#define steal(p)                                                                                   \
	({                                                                                         \
		__typeof__(p) *steal_at_ = &(p);                                                   \
		__typeof__(p) steal_value_ = *steal_at_;                                           \
		*steal_at_ = NULL;                                                                 \
		steal_value_;                                                                      \
	})

/* The same for a descriptor: leaves -1 behind. */
static inline int steal_fd(int *fd)
{
	const int value = *fd;

	*fd = -1;
	return value;
}

static inline void freep(void *p)
{
	free(*(void **)p);
}

static inline void closep(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void fclosep(FILE **f)
{
	if (*f)
		fclose(*f);
}

#define ARRAY_SIZE(a) (sizeof(a) / sizeof(*(a)))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
