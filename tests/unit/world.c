/* The world of world.h: made, turned, ended, looked at. */
#include "tests/unit/world.h"

#include <errno.h>
#include <ftw.h>
#include <stdlib.h>

#include "client/wire/ownership.h"

static struct world *the_world;

static char *copy_of(const void *data, size_t bytes)
{
	char *copy = malloc(bytes);

	assert_non_null(copy);
	return memcpy(copy, data, bytes);
}

static char *copy_file(int fd, size_t *ret_bytes)
{
	struct stat st;
	char *copy;

	assert_int_equal(fstat(fd, &st), 0);
	copy = malloc((size_t)st.st_size);
	assert_non_null(copy);
	assert_int_equal(pread(fd, copy, (size_t)st.st_size, 0), st.st_size);
	*ret_bytes = (size_t)st.st_size;
	return copy;
}

/* What a death in this moment would leave behind, but for the arena, which is the executor's to write. */
static void remember(struct world *w)
{
	struct remembered *m = calloc(1, sizeof(*m));
	struct ring *ring = executor_ring(w->executor);
	struct turn_record *rec = NULL;

	assert_non_null(m);
	m->ring = copy_of(ring->shared, ring->bytes);
	m->dir = copy_file(kvcache_dir_fd(w->cache), &m->dir_bytes);
	while ((rec = turns_next(w->turns, rec))) {
		m->records[m->n_records] = rec;
		m->copies[m->n_records++] = copy_of(rec, w->record_bytes);
	}
	w->remembered = m;
}

static void die_as_remembered(struct world *w)
{
	struct remembered *m = w->remembered;
	struct ring *ring = executor_ring(w->executor);
	struct turn_record *rec = NULL;

	if (!m)
		return;
	memcpy(ring->shared, m->ring, ring->bytes);
	assert_int_equal(pwrite(kvcache_dir_fd(w->cache), m->dir, m->dir_bytes, 0), m->dir_bytes);
	while ((rec = turns_next(w->turns, rec)))
		atomic_store(&rec->state, TURN_FREE);
	for (uint32_t i = 0; i < m->n_records; i++)
		memcpy(m->records[i], m->copies[i], w->record_bytes);
}

static void forget(struct world *w)
{
	struct remembered *m = steal(w->remembered);

	w->remember_at_step = 0;
	if (!m)
		return;
	free(m->ring);
	free(m->dir);
	for (uint32_t i = 0; i < m->n_records; i++)
		free(m->copies[i]);
	free(m);
}

static void on_tokens(struct turn *t)
{
	if (the_world->remember_at_step == the_world->computer.n_steps && !the_world->remembered)
		remember(the_world);
	the_world->n_tokens_calls++;
	if (the_world->heard)
		the_world->heard(the_world, t);
	if (the_world->stop_at_tokens &&
	    t->rec->n_ids - t->rec->n_prompt >= the_world->stop_at_tokens)
		sched_finish(t, FINISH_STOP_STRING);
}

static void on_end(struct turn *t)
{
	assert_int_equal(t->rec->state, TURN_ENDED);
	the_world->ended_order[the_world->n_ended++] = (int)(t - the_world->t);
	if (the_world->ended)
		the_world->ended(the_world, t);
}

static void on_executor(struct executor *e, void *userdata)
{
	struct world *w = userdata;

	(void)e;
	if (w->sched)
		sched_executor_changed(w->sched);
}

static void new_executor(struct world *w)
{
	struct err err = { 0 };
	struct executor_options o = {
		.unit_socket = w->computer.path,
		.arena_fd = kvcache_arena_fd(w->cache),
		.on_state = on_executor,
		.on_results = on_executor,
		.userdata = w,
		.configure = { .kind = CONTROL_CONFIGURE,
			       .version = CONTROL_VERSION,
			       .n_pages = w->n_pages,
			       .page_tokens = WORLD_PAGE_TOKENS,
			       .n_slots = sched_slots(&w->settings),
			       .max_context = w->context,
			       .max_batch_tokens = w->settings.batch_tokens },
	};

	assert_int_equal(executor_new(w->loop, &o, &w->executor, &err), 0);
}

static void new_cache(struct world *w, int arena_fd, int dir_fd, int causes_fd)
{
	const struct kvcache_options o = {
		.n_pages = w->n_pages,
		.page_tokens = WORLD_PAGE_TOKENS,
		.page_bytes = WORLD_PAGE_TOKENS * 4,
		.element_bytes = 2,
		.arena_fd = arena_fd,
		.dir_fd = dir_fd,
		.causes_fd = causes_fd,
	};
	struct err lost = { 0 }, err = { 0 };

	assert_int_equal(kvcache_new(&o, &w->cache, &lost, &err), 0);
	assert_string_equal(lost.text, "");
	w->kv = kvcache_pool(w->cache);
	assert_int_equal(kvcache_set_shared(w->cache, w->shared, w->n_shared), 0);
}

void world_mark(struct world *w, const uint32_t *ids, uint32_t n)
{
	w->shared[w->n_shared++] = (struct kvcache_shared){ "a prompt", ids, n };
	assert_int_equal(kvcache_set_shared(w->cache, w->shared, w->n_shared), 0);
}

static void new_sched(struct world *w)
{
	const struct sched_options o = {
		.settings = &w->settings, .kv = w->cache, .turns = w->turns, .executor = w->executor
	};

	assert_int_equal(sched_new(w->loop, &o, &w->sched), 0);
}

/* All of a record but the room for its conversation, which is last and not used here. */
static size_t record_bytes(struct turns *turns)
{
	struct turn_record *rec = turns_take(turns);
	const size_t bytes = (size_t)(turn_conversation(turns, rec) - (char *)rec);

	turns_drop(turns, rec);
	return bytes;
}

static void on_disk(void *userdata)
{
	struct world *w = userdata;

	if (w->sched)
		sched_executor_changed(w->sched);
}

static void on_disk_ready(void *userdata)
{
	struct world *w = userdata;

	kvcache_disk_ready(w->cache);
	on_disk(w);
}

static void new_disk(struct world *w)
{
	const struct segments_options o = {
		.dir = w->disk_dir,
		.layout = CHAIN_LAYOUT,
		.page_tokens = WORLD_PAGE_TOKENS,
		.page_bytes = WORLD_PAGE_TOKENS * 4,
		.segment_bytes = 4096 * 1024,
		.limits.total_bytes = 256 * 1024 * 1024,
	};

	assert_int_equal(kvdisk_new(w->loop, &o, on_disk_ready, w, &w->disk), 0);
	assert_int_equal(kvcache_set_disk(w->cache, w->disk, on_disk, w), 0);
}

static void free_disk(struct world *w)
{
	kvcache_set_disk(w->cache, NULL, NULL, NULL);
	w->disk = kvdisk_free(w->disk);
}

static bool is_disk_busy(const struct world *w)
{
	struct kvdisk_counts n = { 0 };

	if (w->disk)
		kvdisk_count(w->disk, &n);
	return n.n_waiting > 0;
}

void world_open_disk(struct world *w)
{
	/* what is synced for no power cut to come need not wait for a real disk */
	snprintf(w->disk_dir, sizeof(w->disk_dir), "%s/steamd-world-XXXXXX",
		 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
	assert_non_null(mkdtemp(w->disk_dir));
	new_disk(w);
	world_run(w, 0);
	assert_string_equal(kvdisk_text(w->disk), "");
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	(void)st, (void)kind, (void)ftw;
	return remove(path);
}

static void new_executor_and_sched(struct world *w)
{
	struct err err = { 0 };

	new_executor(w);
	new_sched(w);
	assert_int_equal(executor_start(w->executor, NULL, &err), 0);
}

void world_open_context(struct world *w, uint32_t context, uint32_t n_pages, uint32_t max_batch,
			uint32_t batch_tokens)
{
	struct err err = { 0 };

	memset(w, 0, sizeof(*w));
	the_world = w;
	w->n_pages = n_pages;
	w->context = context;
	assert_int_equal(settings_init(&w->settings), 0);
	w->settings.max_batch = max_batch;
	w->settings.batch_tokens = batch_tokens;
	assert_int_equal(sd_event_new(&w->loop), 0);
	manager_open(&w->manager);
	computer_open(&w->computer);
	new_cache(w, -1, -1, -1);
	assert_int_equal(turns_new(context, context / WORLD_PAGE_TOKENS + 1, &w->turns, &err), 0);
	w->record_bytes = record_bytes(w->turns);
	new_executor_and_sched(w);
}

void world_open(struct world *w, uint32_t n_pages, uint32_t max_batch, uint32_t batch_tokens)
{
	world_open_context(w, WORLD_CONTEXT, n_pages, max_batch, batch_tokens);
}

void world_close(struct world *w)
{
	forget(w);
	sched_free(w->sched);
	executor_stop(w->executor);
	executor_free(w->executor);
	computer_close(&w->computer);
	turns_free(w->turns);
	free_disk(w);
	if (w->disk_dir[0])
		nftw(w->disk_dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	kvcache_free(w->cache);
	manager_close(&w->manager);
	settings_deinit(&w->settings);
	sd_event_unref(w->loop);
}

/* One event at a time: the manager's socket may hold no more datagrams than one start sends. */
static bool turn_loop(struct world *w)
{
	bool moved = false;

	while (sd_event_run(w->loop, 0) > 0) {
		moved = true;
		manager_read(&w->manager);
	}
	/* nobody knocks while there is one */
	if (executor_state(w->executor) == EXECUTOR_READY)
		return moved;
	return computer_accept(&w->computer) > 0 || moved;
}

void world_run(struct world *w, uint64_t n_steps)
{
	uint32_t still = 0;
	int did;

	while (still < 20) {
		still = turn_loop(w) ? 0 : still + 1;
		if (still > 1 && is_disk_busy(w)) {
			sd_event_run(w->loop, UINT64_MAX); /* until its thread has done the next */
			still = 0;
		}
		if (n_steps == 0)
			continue;
		did = computer_step(&w->computer);
		if (did > 0)
			still = 0;
		n_steps -= did == 1;
	}
}

bool world_listen(struct world *w)
{
	return turn_loop(w);
}

bool world_turn(struct world *w)
{
	const bool moved = turn_loop(w);

	return computer_step(&w->computer) > 0 || moved;
}

void world_run_all(struct world *w)
{
	world_run(w, UINT64_MAX);
}

struct turn *world_add(struct world *w, uint32_t uid, uint32_t n_prompt, uint32_t max_tokens)
{
	struct turn *t = &w->t[w->n_turns];
	struct turn_record *rec = turns_take(w->turns);

	assert_non_null(rec);
	*t = (struct turn){ .rec = rec, .on_tokens = on_tokens, .on_end = on_end };
	rec->uid = uid;
	rec->n_prompt = rec->n_ids = n_prompt;
	rec->max_tokens = max_tokens;
	rec->accepted_us = 1000 + w->n_turns;
	rec->sampler.seed = w->n_turns;
	rec->sampler.vocab_real = COMPUTER_VOCAB;
	for (uint32_t i = 0; i < n_prompt; i++)
		turn_ids(w->turns, rec)[i] = (w->n_turns * 7919 + i * 31) % COMPUTER_VOCAB;
	w->n_turns++;
	return t;
}

struct turn *world_submit(struct world *w, uint32_t uid, uint32_t n_prompt, uint32_t max_tokens)
{
	struct turn *t = world_add(w, uid, n_prompt, max_tokens);
	struct err err = { 0 };

	assert_int_equal(sched_submit(w->sched, t, &err), 0);
	return t;
}

/* What the toy model says after the turn's prompt, reckoned without any of the machinery. */
void world_assert_text(struct world *w, struct turn *t, uint32_t n_sampled)
{
	const uint32_t *ids = turn_ids(w->turns, t->rec);

	assert_int_equal(t->rec->n_ids, t->rec->n_prompt + n_sampled);
	for (uint32_t at = t->rec->n_prompt; at < t->rec->n_ids; at++) {
		uint64_t h = 1469598103934665603ull ^ t->rec->sampler.seed;

		for (uint32_t i = 0; i < at; i++)
			h = (h ^ ids[i]) * 1099511628211ull;
		assert_int_equal(ids[at], (h >> 20) % COMPUTER_VOCAB);
	}
}

void world_assert_all_free(struct world *w)
{
	world_run(w, UINT64_MAX);
	assert_true(sched_is_idle(w->sched));
	assert_int_equal(kvpool_free_pages(w->kv) + kvpool_unheld_pages(w->kv), w->n_pages);
	assert_int_equal(kvpool_dropped_pages(w->kv), 0);
	assert_false(kvcache_is_moving(w->cache));
	kvcache_check(w->cache);
}

void world_restart_broker(struct world *w)
{
	struct ring ring;
	struct err err = { 0 };
	struct turn_record *rec;
	int control_fd, turns_fd_copy = dup(turns_fd(w->turns));
	int arena_fd = dup(kvcache_arena_fd(w->cache)), dir_fd = dup(kvcache_dir_fd(w->cache));
	int causes_fd = dup(kvcache_causes_fd(w->cache));

	manager_read(&w->manager);
	w->sched = sched_free(w->sched);
	die_as_remembered(w);
	forget(w);
	w->executor = executor_free(w->executor);
	w->turns = turns_free(w->turns);
	free_disk(w);
	w->cache = kvcache_free(w->cache);
	memset(w->t, 0, sizeof(w->t));
	w->n_ended = 0;

	new_cache(w, arena_fd, dir_fd, causes_fd);
	if (w->disk_dir[0])
		new_disk(w);
	assert_int_equal(turns_adopt(turns_fd_copy, &w->turns, &err), 0);
	new_executor(w);
	control_fd = manager_get(&w->manager, "exec-ctl");
	assert_true(control_fd >= 0);
	assert_int_equal(ring_map(manager_get(&w->manager, "ring"),
				  manager_get(&w->manager, "ring-down"),
				  manager_get(&w->manager, "ring-up"), &ring, &err),
			 0);
	assert_int_equal(executor_recall(w->executor, manager_get(&w->manager, "exec-ready")), 0);
	assert_int_equal(executor_adopt(w->executor, control_fd, &ring, &err), 0);
	computer_ready(&w->computer);
	while (sd_event_run(w->loop, 0) > 0)
		manager_read(&w->manager);
	assert_int_equal(executor_state(w->executor), EXECUTOR_READY);
	new_sched(w);
	for (rec = turns_next(w->turns, NULL); rec; rec = turns_next(w->turns, rec)) {
		struct turn *t = &w->t[rec->sampler.seed];

		*t = (struct turn){ .rec = rec, .on_tokens = on_tokens, .on_end = on_end };
		if (rec->state == TURN_ENDED)
			w->n_ended++;
		else
			assert_int_equal(sched_adopt(w->sched, t, &err), 0);
	}
}

void world_reboot(struct world *w)
{
	struct err err = { 0 };

	w->sched = sched_free(w->sched);
	executor_stop(w->executor);
	w->executor = executor_free(w->executor);
	computer_die(&w->computer);
	w->turns = turns_free(w->turns);
	free_disk(w);
	w->cache = kvcache_free(w->cache);
	manager_close(&w->manager);
	memset(w->t, 0, sizeof(w->t));
	w->n_turns = w->n_ended = 0;

	manager_open(&w->manager);
	new_cache(w, -1, -1, -1);
	assert_int_equal(turns_new(w->context, w->context / WORLD_PAGE_TOKENS + 1, &w->turns, &err),
			 0);
	new_executor_and_sched(w);
	new_disk(w);
	world_run(w, 0);
}
