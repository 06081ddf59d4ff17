/*
 * The threads of a device: fed one function at a time, asleep on a futex when
 * there is nothing to do. Nothing here wakes by time. A run waits for nobody
 * who has not begun: on a busy machine a thread may be without a processor for
 * longer than the run takes, and then the caller does its share.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/topology.h"
#include "kernels/wait.h"

#define BRIEF_SPINS 64
#define THREADS_MAX WAIT_SLEEPERS_MAX

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
	cpu_set_t caller_cpus;
	struct topology topology;
	uint32_t first_thread[TOPOLOGY_NODES_MAX + 1]; /* by node; n_threads behind the last */
	struct worker {
		_Alignas(64) _Atomic uint32_t taken; /* the run that its share was last taken of */
		struct pool *pool;
		pthread_t thread;
		uint32_t index;
	} workers[];
};

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

/* Spins until *word is @value, for about a microsecond. */
static bool spin_briefly(const _Atomic uint32_t *word, uint32_t value)
{
	for (int i = 0; i < BRIEF_SPINS; i++) {
		if (atomic_load_explicit(word, memory_order_acquire) == value)
			return true;
		wait_relax();
	}
	return false;
}

/*
 * Takes the share of worker @w in run number @epoch, for itself or for the
 * caller: true for one of them. The run cannot end before a share that was
 * taken is done, so pool->run is the one that belongs to @epoch.
 */
static bool take_share(struct worker *w, uint32_t epoch)
{
	uint32_t before = epoch - 1;

	return atomic_load_explicit(&w->taken, memory_order_relaxed) == before &&
	       atomic_compare_exchange_strong(&w->taken, &before, epoch);
}

static void *work(void *userdata)
{
	struct worker *w = userdata;
	struct pool *pool = w->pool;
	uint32_t seen = 0;

	flush_denormals();
	for (;;) {
		wait_while(&pool->epoch, seen, &pool->sleepers);
		seen = atomic_load(&pool->epoch);
		if (atomic_load(&pool->leaving))
			return NULL;
		if (!take_share(w, seen))
			continue;
		pool->run(pool->userdata, w->index, pool->n_threads);
		if (atomic_fetch_sub(&pool->pending, 1) == 1 && atomic_load(&pool->caller_sleeps))
			wait_wake(&pool->pending);
	}
}

static void start_epoch(struct pool *pool)
{
	atomic_fetch_add(&pool->epoch, 1);
	if (atomic_load(&pool->sleepers))
		wait_wake(&pool->epoch);
}

/* Whoever has not begun by now has no CPU: what it would do is done here. */
static void work_for_absent(struct pool *pool)
{
	const uint32_t epoch = atomic_load_explicit(&pool->epoch, memory_order_relaxed);

	for (uint32_t i = 1; i < pool->n_threads; i++) {
		if (!take_share(&pool->workers[i], epoch))
			continue;
		pool->run(pool->userdata, i, pool->n_threads);
		atomic_fetch_sub(&pool->pending, 1);
	}
}

static void wait_for_workers(struct pool *pool)
{
	uint32_t left;

	if (spin_briefly(&pool->pending, 0))
		return;
	work_for_absent(pool);
	while ((left = atomic_load_explicit(&pool->pending, memory_order_acquire))) {
		if (wait_spin(&pool->pending, left))
			continue;
		atomic_store(&pool->caller_sleeps, 1);
		left = atomic_load(&pool->pending);
		if (left)
			wait_sleep(&pool->pending, left);
		atomic_store(&pool->caller_sleeps, 0);
	}
}

void pool_run(struct dev *dev, pool_fn run, void *userdata)
{
	struct pool *pool = dev->pool;

	if (pool->n_threads == 1) {
		run(userdata, 0, 1);
		return;
	}
	pool->run = run;
	pool->userdata = userdata;
	atomic_store(&pool->pending, pool->n_threads - 1);
	start_epoch(pool);
	run(userdata, 0, pool->n_threads);
	wait_for_workers(pool);
}

/*
 * Keeps a thread near its memory. Within a node the kernel places it: a thread
 * pinned to a processor waits there for whoever else wants that one.
 */
static void settle(pthread_t thread, const struct topology *t, uint32_t index, uint32_t n_threads)
{
	const uint32_t node = topology_node_of(t, index, n_threads);

	pthread_setaffinity_np(thread, sizeof(t->nodes[node].cpus), &t->nodes[node].cpus);
}

static int start_worker(struct pool *pool, uint32_t index)
{
	struct worker *w = &pool->workers[index];
	int r;

	*w = (struct worker){ .pool = pool, .index = index };
	r = pthread_create(&w->thread, NULL, work, w);
	if (r)
		return -r;
	pool->n_started = index;
	return 0;
}

int pool_new(uint32_t n_threads, uint32_t rank, uint32_t n_ranks, struct pool **ret)
{
	struct topology topology;
	struct pool *pool;
	cpu_set_t cpus;
	int r = 0;

	if (n_threads > THREADS_MAX)
		return -EAGAIN;
	if (sched_getaffinity(0, sizeof(cpus), &cpus) < 0)
		return -errno;
	topology_read(&cpus, &topology);
	if (!n_threads)
		n_threads = topology_threads(&topology) / n_ranks;
	if (!n_threads)
		n_threads = 1;
	topology_take_part(&topology, rank, n_ranks);

	pool = aligned_alloc(64, sizeof(*pool) + n_threads * sizeof(struct worker));
	if (!pool)
		return -ENOMEM;
	*pool = (struct pool){
		.n_threads = n_threads,
		.caller_csr = flush_denormals(),
		.caller_cpus = cpus,
		.topology = topology,
	};

	/* threads lie by node, so those before a node's first are counted */
	for (uint32_t node = 0; node <= TOPOLOGY_NODES_MAX; node++)
		while (pool->first_thread[node] < n_threads &&
		       topology_node_of(&topology, pool->first_thread[node], n_threads) < node)
			pool->first_thread[node]++;
	for (uint32_t i = 1; i < n_threads && r == 0; i++)
		r = start_worker(pool, i);
	if (r < 0) {
		pool_free(pool);
		return r;
	}
	for (uint32_t i = 0; i < n_threads; i++)
		settle(i ? pool->workers[i].thread : pthread_self(), &topology, i, n_threads);
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
	pthread_setaffinity_np(pthread_self(), sizeof(pool->caller_cpus), &pool->caller_cpus);
	free(pool);
	return NULL;
}

uint32_t pool_threads(const struct pool *pool)
{
	return pool->n_threads;
}

void pool_settle(const struct pool *pool, uint32_t index)
{
	settle(pthread_self(), &pool->topology, index % pool->n_threads, pool->n_threads);
}

uint32_t pool_first_thread(const struct pool *pool, uint32_t node)
{
	return pool->first_thread[node];
}

const struct topology *pool_topology(const struct pool *pool)
{
	return &pool->topology;
}
