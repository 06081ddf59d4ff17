/*
 * Waiting for a word that another thread writes: spinning for as long as a
 * wake-up would take, then asleep on a futex. Nothing wakes by time.
 */
#pragma once

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define WAIT_SPIN_NS 20000
#define WAIT_SLEEPERS_MAX 1024

static inline void wait_relax(void)
{
#if defined(__x86_64__)
	_mm_pause();
#endif
}

static inline int64_t wait_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* Spins while *word is @value, for WAIT_SPIN_NS at most. Returns whether it changed. */
static inline bool wait_spin(const _Atomic uint32_t *word, uint32_t value)
{
	const int64_t until = wait_now_ns() + WAIT_SPIN_NS;

	do {
		for (int i = 0; i < 32; i++) {
			if (atomic_load_explicit(word, memory_order_acquire) != value)
				return true;
			wait_relax();
		}
	} while (wait_now_ns() < until);
	return false;
}

/* Sleeps if *word is @value, until wait_wake(); it may also return for nothing. */
static inline void wait_sleep(_Atomic uint32_t *word, uint32_t value)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static inline void wait_wake(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, WAIT_SLEEPERS_MAX, NULL, NULL, 0);
}

/* Until *word is not @value. Whoever changes it wakes if *sleepers is not 0 afterwards. */
static inline void wait_while(_Atomic uint32_t *word, uint32_t value, _Atomic uint32_t *sleepers)
{
	if (wait_spin(word, value))
		return;
	atomic_fetch_add(sleepers, 1);
	while (atomic_load(word) == value)
		wait_sleep(word, value);
	atomic_fetch_sub(sleepers, 1);
}
