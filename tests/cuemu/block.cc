/* A block: its threads take turns, and meet at barriers and at operations of a warp. */
#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/cuemu/parts.h"

#define STACK_BYTES (256 * 1024)
#define POLLS_MAX 1000000

thread_local struct block *cuemu_block;

/* What kernels read; one kernel runs at a time. */
extern uint3 thread_idx __asm__("cuemu_thread_idx"), block_idx __asm__("cuemu_block_idx");
extern dim3 block_dim __asm__("cuemu_block_dim"), grid_dim __asm__("cuemu_grid_dim");
uint3 thread_idx, block_idx;
dim3 block_dim, grid_dim;

static thread_local struct thread *threads; /* [THREADS_MAX], for life */
static thread_local char *stacks;
static thread_local uint32_t blocks_run;

static enum cuemu_order order;
static thread_local void (*kernel_entry)(void *);
static thread_local void *kernel_closure;

void cuemu_set_order(enum cuemu_order to)
{
	order = to;
}

void *cuemu_shared(void)
{
	return cuemu_block->shared;
}

struct thread *block_self(void)
{
	return cuemu_block->self;
}

static uint64_t next_random(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return *state >> 33;
}

static void arrange(uint32_t *list, uint32_t n, uint64_t *seed)
{
	if (order == CUEMU_BACKWARDS)
		std::reverse(list, list + n);
	if (order == CUEMU_SHUFFLED)
		for (uint32_t i = n; i > 1; i--)
			std::swap(list[i - 1], list[next_random(seed) % i]);
}

static void queue_push(struct block *b, const uint32_t *list, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		b->queue[b->queue_tail] = list[i];
		b->queue_tail = (b->queue_tail + 1) % (THREADS_MAX + 1);
	}
}

/* Leaves the thread until somebody queues it again. */
void block_wait(const char *at)
{
	struct block *b = cuemu_block;
	struct thread *t = b->self;

	t->at = at;
	cuemu_switch(&t->stack_pointer, b->scheduler);
	t->at = NULL;
}

[[noreturn]] static void leave(void)
{
	struct block *b = cuemu_block;

	cuemu_switch(&b->self->stack_pointer, b->scheduler);
	abort(); /* nobody comes back to a thread that ended */
}

/* Called by the one fault that ends the kernel. */
void block_fail(void)
{
	cuemu_block->failed = true;
	leave();
}

static void thread_main(void)
{
	kernel_entry(kernel_closure);
	copies_end();
	cuemu_block->self->done = true;
	leave();
}

static void barrier_opens(struct block *b, uint32_t id)
{
	uint32_t list[THREADS_MAX], n = 0;

	for (uint32_t i = 0; i < b->n_threads; i++)
		if (!b->threads[i].done && b->threads[i].slot == &b->barriers[id] && &b->threads[i] != b->self)
			list[n++] = i;
	arrange(list, n, &b->order_seed);
	queue_push(b, list, n);
}

uint32_t cuemu_barrier(uint32_t id, uint32_t n_threads, enum cuemu_tally tally, bool value)
{
	struct block *b = cuemu_block;
	struct thread *t = b->self;
	auto *barrier = &b->barriers[id];

	t->slot = barrier;
	barrier->arrived++;
	barrier->total += value;
	/* threads that have ended count as arrived, as on a device */
	if (barrier->arrived == (n_threads ? n_threads : b->n_live)) {
		barrier->result = barrier->total;
		if (tally == CUEMU_TALLY_AND)
			barrier->result = barrier->total == barrier->arrived;
		if (tally == CUEMU_TALLY_OR)
			barrier->result = barrier->total > 0;
		if (barrier->arrived == b->n_live)
			b->epoch++;
		barrier->arrived = barrier->total = 0;
		barrier_opens(b, id);
	} else {
		block_wait("__syncthreads()");
	}
	t->slot = NULL;
	return barrier->result;
}

/* A thread ended: that may be what a barrier waited for. */
static void after_exit(struct block *b)
{
	b->n_live--;
	b->self = NULL;
	if (b->n_live > 0 && b->barriers[0].arrived == b->n_live) {
		auto *barrier = &b->barriers[0];

		barrier->result = barrier->total;
		barrier->arrived = barrier->total = 0;
		b->epoch++;
		barrier_opens(b, 0);
	}
}

/* What a lane brings to a meeting, and what it takes home. */
struct box {
	uint64_t bring;
	uint64_t *ret;
};

/* The meeting that lanes of @mask have at @what, a new one for the first of them. */
static struct meeting *find_meeting(struct warp *w, uint32_t mask, const char *what)
{
	for (uint32_t i = 0; i < w->n_meetings; i++) {
		struct meeting *m = &w->meetings[i];

		if (m->mask != mask && (m->mask & mask))
			cuemu_trap("lanes of a warp meet under masks that differ and overlap");
		if (m->mask != mask)
			continue;
		if (m->what != what && strcmp(m->what, what) != 0)
			fault_in_kernel(NULL, "lanes of a warp meet at %s and at %s", m->what, what);
		return m;
	}
	w->meetings[w->n_meetings] = { .mask = mask, .arrived = 0, .what = what };
	return &w->meetings[w->n_meetings++];
}

/* Waits for all lanes of @mask; the last one does @all for them, and goes on at once. */
template <typename F> static void meet(uint32_t mask, const char *what, struct box *box, F all)
{
	struct block *b = cuemu_block;
	struct thread *t = b->self;
	struct warp *w = &b->warps[t->number / WARP];
	const uint32_t lane = t->number % WARP;
	uint32_t list[WARP], n = 0;
	struct meeting *m;

	if (!(mask >> lane & 1))
		cuemu_trap("a lane is not in the mask that it names");
	m = find_meeting(w, mask, what);
	m->arrived |= 1u << lane;
	t->slot = box;
	if (m->arrived != mask) {
		block_wait(what);
		t->slot = NULL;
		return;
	}
	*m = w->meetings[--w->n_meetings];
	all(t - lane);
	for (uint32_t i = 0; i < WARP; i++)
		if (i != lane && (mask >> i & 1))
			list[n++] = t->number - lane + i;
	arrange(list, n, &b->order_seed);
	queue_push(b, list, n);
	t->slot = NULL;
}

uint32_t cuemu_gather(uint32_t mask, const char *what, uint64_t bring, uint64_t ret[32])
{
	struct box box = { bring, ret };

	meet(mask, what, &box, [mask](struct thread *lanes) {
		uint64_t all[WARP] = {};

		for (uint32_t i = 0; i < WARP; i++)
			if (mask >> i & 1)
				all[i] = ((struct box *)lanes[i].slot)->bring;
		for (uint32_t i = 0; i < WARP; i++)
			if (mask >> i & 1)
				memcpy(((struct box *)lanes[i].slot)->ret, all, sizeof(all));
	});
	return cuemu_block->self->number % WARP;
}

void cuemu_meet(const char *what, uint64_t bring, void (*all)(const uint64_t brought[32]))
{
	struct box box = { bring, NULL };

	meet(0xffffffff, what, &box, [all](struct thread *lanes) {
		uint64_t brought[WARP];

		for (uint32_t i = 0; i < WARP; i++)
			brought[i] = ((struct box *)lanes[i].slot)->bring;
		all(brought);
	});
}

void cuemu_syncwarp(uint32_t mask)
{
	struct warp *w = &cuemu_block->warps[cuemu_block->self->number / WARP];

	meet(mask, "__syncwarp()", NULL, [mask, w](struct thread *lanes) {
		w->clock++;
		for (uint32_t i = 0; i < WARP; i++)
			if (mask >> i & 1)
				lanes[i].sync_time = w->clock;
	});
}

void cuemu_wait_until(const char *what, bool (*ready)(void *userdata), void *userdata)
{
	struct thread *t = cuemu_block->self;

	if (ready(userdata))
		return;
	t->ready = ready;
	t->userdata = userdata;
	block_wait(what);
	t->ready = NULL;
}

/* Queues those whose condition has come true. Returns whether there was one. */
static bool poll(struct block *b)
{
	uint32_t list[THREADS_MAX], n = 0;

	for (uint32_t i = 0; i < b->n_threads; i++)
		if (!b->threads[i].done && b->threads[i].ready &&
		    b->threads[i].ready(b->threads[i].userdata))
			list[n++] = i;
	arrange(list, n, &b->order_seed);
	queue_push(b, list, n);
	return n > 0;
}

static void name_who_waits(struct block *b)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < b->n_threads; i++)
		n += !b->threads[i].done;
	for (uint32_t i = 0; i < b->n_threads; i++) {
		if (b->threads[i].done)
			continue;
		fault_note("%u of %u threads of block %u,%u,%u wait for ever; thread %u at %s", n,
			   b->n_threads, b->idx.x, b->idx.y, b->idx.z, i,
			   b->threads[i].at ? b->threads[i].at : "nothing");
		return;
	}
}

/* For programs that do not know that they are emulated. */
static void order_from_environment(void)
{
	const char *name = getenv("CUEMU_ORDER");

	if (!name)
		return;
	order = strcmp(name, "backwards") == 0 ? CUEMU_BACKWARDS :
		strcmp(name, "shuffled") == 0  ? CUEMU_SHUFFLED :
						 CUEMU_FORWARDS;
}

/* What a thread of the host ran kernels with goes with it. */
struct leaving {
	~leaving()
	{
		for (uint32_t i = 0; threads && i < THREADS_MAX; i++)
			free(threads[i].copies);
		free(threads);
		if (stacks)
			munmap(stacks, (size_t)THREADS_MAX * STACK_BYTES);
		threads = NULL;
		stacks = NULL;
	}
};

static void threads_new(void)
{
	static thread_local struct leaving leaving;

	if (threads)
		return;
	(void)leaving;
	order_from_environment();
	threads = (struct thread *)calloc(THREADS_MAX, sizeof(*threads));
	stacks = (char *)mmap(NULL, (size_t)THREADS_MAX * STACK_BYTES, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (!threads || stacks == MAP_FAILED)
		abort();
	for (uint32_t i = 0; i < THREADS_MAX; i++) {
		threads[i].stack = stacks + (size_t)i * STACK_BYTES;
		mprotect(threads[i].stack, 4096, PROT_NONE);
	}
}

static void block_run(struct block *b)
{
	uint32_t list[THREADS_MAX];

	b->n_threads = b->n_live = b->dim.x * b->dim.y * b->dim.z;
	b->n_warps = (b->n_threads + WARP - 1) / WARP;
	b->serial = ++blocks_run;
	b->epoch = 1;
	b->queue_head = b->queue_tail = 0;
	b->order_seed = b->serial;
	memset(b->warps, 0, sizeof(b->warps));
	memset(b->barriers, 0, sizeof(b->barriers));
	shadow_fill();

	for (uint32_t i = 0; i < b->n_threads; i++) {
		struct thread *t = &b->threads[i];
		char *stack = t->stack;
		struct copy *copies = t->copies;
		const uint32_t room = t->copies_room;

		*t = {};
		t->stack = stack;
		t->copies = copies;
		t->copies_room = room;
		t->number = i;
		t->idx = { i % b->dim.x, i / b->dim.x % b->dim.y, i / b->dim.x / b->dim.y };
		t->stack_pointer = fiber_begin(stack, STACK_BYTES, thread_main);
		list[i] = i;
	}
	arrange(list, b->n_threads, &b->order_seed);
	queue_push(b, list, b->n_threads);

	while (b->n_live > 0) {
		if (b->queue_head == b->queue_tail && !poll(b)) {
			name_who_waits(b);
			b->failed = true;
		}
		if (b->failed)
			break;
		b->self = &b->threads[b->queue[b->queue_head]];
		b->queue_head = (b->queue_head + 1) % (THREADS_MAX + 1);
		thread_idx = b->self->idx;
		cuemu_switch(&b->scheduler, b->self->stack_pointer);
		if (b->self->done)
			after_exit(b);
	}
	b->self = NULL;
	memory_warp_ended();
}

/* All blocks of a launch. Returns whether none failed; @ret_waited: some thread called pdl_wait(). */
bool blocks_run_all(dim3 grid, dim3 dim, size_t shared_bytes, bool pdl, void (*entry)(void *),
		    void *closure, size_t closure_bytes)
{
	static thread_local uint32_t queue[THREADS_MAX + 1];
	const uint64_t n = (uint64_t)grid.x * grid.y * grid.z;
	static thread_local struct block b;
	uint64_t seed = n;
	uint32_t *list;
	bool waited = false, failed;

	threads_new();
	b = {};
	b.grid = grid;
	b.dim = dim;
	b.pdl = pdl;
	b.threads = threads;
	b.queue = queue;
	b.stacks = (uintptr_t)stacks;
	b.stacks_bytes = (size_t)THREADS_MAX * STACK_BYTES;
	b.shared_bytes = shared_bytes;
	b.shared = shadow_dynamic();
	block_dim = dim;
	grid_dim = grid;
	kernel_entry = entry;
	kernel_closure = closure;
	memory_launch(pdl, closure, closure_bytes);
	shadow_launch();

	list = (uint32_t *)malloc(n * sizeof(*list));
	if (!list)
		abort();
	for (uint64_t i = 0; i < n; i++)
		list[i] = i;
	arrange(list, n, &seed);

	cuemu_block = &b;
	for (uint64_t i = 0; i < n && !b.failed; i++) {
		b.idx = { list[i] % grid.x, list[i] / grid.x % grid.y, list[i] / grid.x / grid.y };
		block_idx = b.idx;
		block_run(&b);
		for (uint32_t t = 0; t < b.n_threads; t++)
			waited |= threads[t].waited_pdl;
	}
	failed = b.failed;
	cuemu_block = NULL;
	free(list);
	if (!failed && pdl && !waited) {
		fault_note("a kernel launched with LAUNCH_PDL never calls pdl_wait()");
		failed = true;
	}
	return !failed;
}
