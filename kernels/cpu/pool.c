/*
 * The threads of a device: pinned one to a core, fed one function at a time,
 * asleep on a futex when there is nothing to do. Nothing here wakes by time.
 */
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/cpu/cpu.h"

#define SPIN_NS 20000
#define THREADS_MAX 1024

/* Each word that one side spins on has a cache line of its own. */
struct pool {
	_Alignas(64) _Atomic uint32_t epoch;   /* written by the caller: bumped for each run */
	_Alignas(64) _Atomic uint32_t pending; /* workers that have not finished this run */
	_Alignas(64) _Atomic uint32_t sleepers;
	_Atomic uint32_t caller_sleeps;
	_Atomic bool leaving;
	pool_fn run;
	void *userdata;
	uint32_t n_threads, n_started;
	uint32_t caller_csr;
	struct worker {
		struct pool *pool;
		pthread_t thread;
		uint32_t index;
	} workers[];
};

static cpu_set_t process_cpus; /* what this process was given, before any pinning of ours */
static pthread_once_t process_cpus_once = PTHREAD_ONCE_INIT;

static void read_process_cpus(void)
{
	if (sched_getaffinity(0, sizeof(process_cpus), &process_cpus) < 0)
		CPU_ZERO(&process_cpus);
}

static void relax(void)
{
#if defined(__x86_64__)
	_mm_pause();
#endif
}

/* Random bf16 weights hold denormals, and those cost a hundred cycles each. */
static uint32_t flush_denormals(void)
{
#if defined(__x86_64__)
	const uint32_t was = _mm_getcsr();

	_mm_setcsr(was | 0x8040); /* flush to zero, denormals are zero */
	return was;
#else
	return 0;
#endif
}

static void restore_denormals(uint32_t csr)
{
#if defined(__x86_64__)
	_mm_setcsr(csr);
#else
	(void)csr;
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, THREADS_MAX, NULL, NULL, 0);
}

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* Spins while *word is @value, for SPIN_NS at most. Returns whether it changed. */
static bool spin_while(const _Atomic uint32_t *word, uint32_t value)
{
	const int64_t until = now_ns() + SPIN_NS;

	do {
		for (int i = 0; i < 32; i++) {
			if (atomic_load_explicit(word, memory_order_acquire) != value)
				return true;
			relax();
		}
	} while (now_ns() < until);
	return false;
}

static void wait_for_epoch(struct pool *pool, uint32_t seen)
{
	if (spin_while(&pool->epoch, seen))
		return;
	atomic_fetch_add(&pool->sleepers, 1);
	while (atomic_load(&pool->epoch) == seen)
		futex_wait(&pool->epoch, seen);
	atomic_fetch_sub(&pool->sleepers, 1);
}

static void *work(void *userdata)
{
	struct worker *w = userdata;
	struct pool *pool = w->pool;
	uint32_t seen = 0;

	flush_denormals();
	for (;;) {
		wait_for_epoch(pool, seen);
		seen++;
		if (atomic_load(&pool->leaving))
			return NULL;
		pool->run(pool->userdata, w->index, pool->n_threads);
		if (atomic_fetch_sub(&pool->pending, 1) == 1 && atomic_load(&pool->caller_sleeps))
			futex_wake_all(&pool->pending);
	}
}

static void start_epoch(struct pool *pool)
{
	atomic_fetch_add(&pool->epoch, 1);
	if (atomic_load(&pool->sleepers))
		futex_wake_all(&pool->epoch);
}

static void wait_for_workers(struct pool *pool)
{
	uint32_t left;

	while ((left = atomic_load_explicit(&pool->pending, memory_order_acquire))) {
		if (spin_while(&pool->pending, left))
			continue;
		atomic_store(&pool->caller_sleeps, 1);
		left = atomic_load(&pool->pending);
		if (left)
			futex_wait(&pool->pending, left);
		atomic_store(&pool->caller_sleeps, 0);
	}
}

void pool_run(struct dev *dev, pool_fn run, void *userdata)
{
	struct pool *pool = dev->pool;

	if (pool->n_threads > 1) {
		pool->run = run;
		pool->userdata = userdata;
		atomic_store(&pool->pending, pool->n_threads - 1);
		start_epoch(pool);
	}
	run(userdata, 0, pool->n_threads);
	wait_for_workers(pool);
}

/* The lowest CPU that shares a core with @cpu, or @cpu itself if the kernel does not say. */
static int core_of(int cpu)
{
	char path[96];
	int first = cpu;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list",
		 cpu);
	f = fopen(path, "re");
	if (!f)
		return cpu;
	if (fscanf(f, "%d", &first) != 1)
		first = cpu;
	fclose(f);
	return first;
}

/*
 * Lists the CPUs to pin to: one of each core first, their siblings after them,
 * beginning where the caller runs, so that two devices of one thread each do
 * not meet on CPU 0. Returns the number of cores; *ret_n is that of all CPUs.
 */
static uint32_t list_cpus(int *cpus, uint32_t *ret_n)
{
	const int here = sched_getcpu();
	cpu_set_t seen;
	uint32_t n = 0, n_cores;

	CPU_ZERO(&seen);
	for (int i = 0; i < CPU_SETSIZE; i++) {
		const int cpu = (i + (here > 0 ? here : 0)) % CPU_SETSIZE;
		const int core = CPU_ISSET(cpu, &process_cpus) ? core_of(cpu) : -1;

		if (core < 0 || core >= CPU_SETSIZE || CPU_ISSET(core, &seen))
			continue;
		CPU_SET(core, &seen);
		cpus[n++] = cpu;
	}
	n_cores = n;
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		bool listed = !CPU_ISSET(cpu, &process_cpus);

		for (uint32_t i = 0; i < n_cores && !listed; i++)
			listed = cpus[i] == cpu;
		if (!listed)
			cpus[n++] = cpu;
	}
	*ret_n = n;
	return n_cores ? n_cores : 1;
}

/* A thread that cannot be pinned works all the same. */
static void pin(pthread_t thread, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	pthread_setaffinity_np(thread, sizeof(set), &set);
}

static int start_worker(struct pool *pool, uint32_t index)
{
	struct worker *w = &pool->workers[index];
	int r;

	w->pool = pool;
	w->index = index;
	r = pthread_create(&w->thread, NULL, work, w);
	if (r)
		return -r;
	pool->n_started = index;
	return 0;
}

int pool_new(uint32_t n_threads, struct pool **ret)
{
	int cpus[CPU_SETSIZE];
	struct pool *pool;
	uint32_t n_cpus, n_cores;
	int r = 0;

	if (n_threads > THREADS_MAX)
		return -EAGAIN;
	pthread_once(&process_cpus_once, read_process_cpus);
	n_cores = list_cpus(cpus, &n_cpus);
	if (!n_threads)
		n_threads = n_cores;

	pool = aligned_alloc(64, (sizeof(*pool) + n_threads * sizeof(struct worker) + 63) & ~63UL);
	if (!pool)
		return -ENOMEM;
	*pool = (struct pool){ .n_threads = n_threads, .caller_csr = flush_denormals() };

	for (uint32_t i = 1; i < n_threads && r == 0; i++)
		r = start_worker(pool, i);
	if (r < 0) {
		pool_free(pool);
		return r;
	}
	for (uint32_t i = 0; i < n_threads && n_threads <= n_cpus; i++)
		pin(i ? pool->workers[i].thread : pthread_self(), cpus[i]);

	*ret = pool;
	return 0;
}

struct pool *pool_free(struct pool *pool)
{
	if (!pool)
		return NULL;
	atomic_store(&pool->leaving, true);
	start_epoch(pool);
	for (uint32_t i = 1; i <= pool->n_started; i++)
		pthread_join(pool->workers[i].thread, NULL);
	restore_denormals(pool->caller_csr);
	pthread_setaffinity_np(pthread_self(), sizeof(process_cpus), &process_cpus);
	free(pool);
	return NULL;
}

uint32_t pool_threads(const struct pool *pool)
{
	return pool->n_threads;
}
