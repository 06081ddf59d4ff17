/*
 * Memory of an executor that serves the model, as a daemon configures and
 * starts it, beyond the weights and the KV cache: what is resident after the
 * largest steps, in all mappings but the cache's.
 */
#include <errno.h>
#include <string.h>
#include <sys/wait.h>

#include "client/wire/step.h"
#include "daemon/exec/weights/checkpoint.h"
#include "daemon/kv/kvpool.h"
#include "daemon/sched/executor.h"
#include "tests/bench/bench.h"
#include "tests/bench/random.h"

#define EXECUTOR "steamd-exec-cpu"
#define ARENA_NAME "memfd:steamd-arena"
#define WANTED_MIB 150
#define PAGE_TOKENS 64 /* these four are the daemon's defaults */
#define SLOTS 32
#define BATCH_TOKENS 512
#define CONTEXT 65536
#define MIB 1048576.0

struct server {
	sd_event *loop;
	struct executor *executor;
	struct kvpool *pool;
	const struct config *config;
	struct err *err;
	uint64_t random;
	uint32_t pages_per_slot, n_results;
	int r; /* what a result said */
};

static void on_results(struct executor *e, void *userdata)
{
	struct server *s = userdata;
	struct ring *ring = executor_ring(e);
	const struct step_result *result;
	const void *payload;

	while (ring && (result = ring_result(ring, &payload))) {
		if (result->error < 0)
			s->r = result->error;
		s->n_results++;
		ring_take(ring);
	}
}

static void on_state(struct executor *e, void *userdata)
{
	(void)e, (void)userdata;
}

static int wait_for(struct server *s, enum executor_state state, uint32_t n_results)
{
	while (executor_state(s->executor) != state || s->n_results < n_results) {
		const enum executor_state now = executor_state(s->executor);
		const int r = sd_event_run(s->loop, UINT64_MAX);

		if (r < 0)
			return err_wrap(s->err, r, "cannot wait for the executor");
		if (now == EXECUTOR_BACKOFF || now == EXECUTOR_REFUSED || now == EXECUTOR_OFF)
			return err_set(s->err, -EIO, "the executor ended: %s",
				       executor_text(s->executor));
	}
	return s->r < 0 ? err_wrap(s->err, s->r, "a step failed") : 0;
}

static int start(struct server *s, struct bench *b, const char *program, const char *model)
{
	const struct config *c = s->config;
	const uint32_t context = MIN(c->max_positions, CONTEXT);
	const uint64_t page_bytes = config_kv_bytes(c, b->isa == ISA_REF ? 4 : 2) * PAGE_TOKENS;
	struct executor_options o = {
		.program = program,
		.configure = { .kind = CONTROL_CONFIGURE,
			       .version = CONTROL_VERSION,
			       .page_tokens = PAGE_TOKENS,
			       .page_bytes_lo = (uint32_t)page_bytes,
			       .page_bytes_hi = (uint32_t)(page_bytes >> 32),
			       .n_slots = SLOTS,
			       .max_context = context,
			       .max_batch_tokens = BATCH_TOKENS,
			       .n_threads = b->n_threads,
			       .n_ranks = 1 },
		.on_state = on_state,
		.on_results = on_results,
		.userdata = s,
	};
	int r;

	s->pages_per_slot = (BATCH_TOKENS + PAGE_TOKENS - 1) / PAGE_TOKENS;
	o.configure.n_pages = MAX(context / PAGE_TOKENS, SLOTS * s->pages_per_slot);
	o.configure.arena_bytes = o.configure.n_pages * page_bytes;
	snprintf(o.configure.isa, sizeof(o.configure.isa), "%s", isa_name(b->isa));
	snprintf(o.configure.model, sizeof(o.configure.model), "%s", model);
	r = kvpool_new(o.configure.n_pages, page_bytes, PAGE_TOKENS, &s->pool, s->err);
	if (r < 0)
		return r;
	o.arena_fd = kvpool_fd(s->pool);
	r = sd_event_new(&s->loop);
	if (r < 0)
		return err_wrap(s->err, r, "cannot make an event loop");
	r = executor_new(s->loop, &o, &s->executor, s->err);
	if (r == 0)
		r = executor_start(s->executor, NULL, s->err);
	return r < 0 ? r : wait_for(s, EXECUTOR_READY, 0);
}

/* One step that fills slots @first … with @n_tokens of a prompt each, and samples. */
static int feed(struct server *s, uint32_t first, uint32_t n_slots, uint32_t n_tokens)
{
	struct ring *ring = executor_ring(s->executor);
	uint8_t *payload = ring ? ring_stage(ring) : NULL;
	struct row *rows = (struct row *)payload;
	const struct step_sampler sampler = { .temperature = 1,
					      .top_p = 1,
					      .repetition = 1.1,
					      .top_k = 40,
					      .n_prompt = n_tokens,
					      .vocab_real = s->config->vocab };
	struct step step = { .kind = STEP_MIXED, .n_rows = (uint16_t)n_slots };
	uint32_t at = n_slots * sizeof(*rows);

	if (!payload)
		return err_set(s->err, -EIO, "the executor takes no step");
	for (uint32_t i = 0; i < n_slots; i++) {
		uint32_t *tokens, *pages;

		at = (at + 7) / 8 * 8;
		rows[i] = (struct row){ .kind = ROW_FEED,
					.slot = (uint16_t)(first + i),
					.n_tokens = (uint16_t)n_tokens,
					.flags = ROW_SAMPLE,
					.sampler_off = at,
					.n_pages = (uint16_t)s->pages_per_slot };
		memcpy(payload + at, &sampler, sizeof(sampler));
		rows[i].tokens_off = at + sizeof(sampler);
		tokens = (uint32_t *)(payload + rows[i].tokens_off);
		for (uint32_t k = 0; k < n_tokens; k++)
			tokens[k] = random_below(&s->random, s->config->vocab);
		rows[i].pages_off = rows[i].tokens_off + n_tokens * 4;
		pages = (uint32_t *)(payload + rows[i].pages_off);
		for (uint32_t k = 0; k < s->pages_per_slot; k++)
			pages[k] = (first + i) * s->pages_per_slot + k;
		at = rows[i].pages_off + s->pages_per_slot * 4;
	}
	step.payload_bytes = at;
	ring_push(ring, &step);
	return wait_for(s, EXECUTOR_READY, s->n_results + 1);
}

/* Resident bytes of all mappings but the KV cache's. */
static int read_resident(pid_t pid, double *ret, struct err *err)
{
	_cleanup_(fclosep) FILE *f = NULL;
	bool is_arena = false;
	double bytes = 0;
	char line[512];

	snprintf(line, sizeof(line), "/proc/%d/smaps", (int)pid);
	f = fopen(line, "re");
	if (!f)
		return err_wrap(err, -errno, "cannot read '%s'", line);
	while (fgets(line, sizeof(line), f)) {
		unsigned long long from, to, kib;

		if (sscanf(line, "%llx-%llx ", &from, &to) == 2)
			is_arena = strstr(line, ARENA_NAME);
		else if (!is_arena && sscanf(line, "Rss: %llu kB", &kib) == 1)
			bytes += (double)kib * 1024;
	}
	*ret = bytes;
	return 0;
}

/* A prompt that fills a batch, then short ones for all other slots together. */
static int serve(struct server *s, double *ret_bytes)
{
	int r;

	r = feed(s, 0, 1, BATCH_TOKENS);
	if (r == 0)
		r = feed(s, 1, SLOTS - 1, BATCH_TOKENS / SLOTS);
	if (r == 0)
		r = read_resident(executor_pid(s->executor), ret_bytes, s->err);
	if (r == 0)
		*ret_bytes -= (double)executor_ready(s->executor)->weight_bytes;
	return r;
}

/* Returns when the executor's memory is free again. */
static void stop(struct server *s)
{
	const pid_t pid = s->executor ? executor_pid(s->executor) : 0;

	if (s->executor)
		executor_stop(s->executor);
	if (pid > 0)
		waitpid(pid, NULL, 0);
	executor_free(s->executor);
	sd_event_unref(s->loop);
	kvpool_free(s->pool);
}

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	_cleanup_(freep) char *program = bench_built(EXECUTOR);
	struct bench_row row = { .name = figure->name,
				 .unit = "MiB",
				 .kind = LIMIT_WANTED,
				 .limit_name = "most beside weights and KV",
				 .limit = WANTED_MIB };
	struct server s = { .err = err, .random = 1 };
	const struct checkpoint *checkpoint;
	double bytes = 0;
	int r;

	if (!program)
		return err_wrap(err, -ENOMEM, "cannot start an executor");
	if (access(program, X_OK) < 0)
		return bench_skip(figure->name, "there is no '%s'", program);
	r = bench_checkpoint(b, &checkpoint, err);
	if (r < 0)
		return r;
	s.config = &checkpoint->config;
	if (s.config->max_positions < BATCH_TOKENS)
		return bench_skip(figure->name, "the model has %u positions",
				  s.config->max_positions);
	r = start(&s, b, program, checkpoint->dir);
	if (r == 0)
		r = serve(&s, &bytes);
	stop(&s);
	if (r < 0)
		return r;
	row.value = bytes / MIB;
	row.ratio = row.value / row.limit;
	bench_print(b, &row);
	return 0;
}

const struct bench_figure figures_memory[] = {
	{ "memory", "of an executor, beside weights and KV cache", measure, 0, true },
	{ 0 },
};
