/* Sizing, making and adopting what computes. */
#include "daemon/server/engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "daemon/base/fdstore.h"
#include "daemon/base/log.h"

#define CONTEXT_DEFAULT 65536u
#define DISK_KEEP_FREE_PERCENT 5

static uint32_t wanted_context(const struct settings *s, const struct config *c,
			       struct engine_plan *plan)
{
	if (s->context == 0)
		return MIN(CONTEXT_DEFAULT, c->max_positions);
	if (s->context > c->max_positions) {
		snprintf(plan->warning, sizeof(plan->warning),
			 "Context=%u is more than the model's %u positions; %u is used", s->context,
			 c->max_positions, c->max_positions);
		return c->max_positions;
	}
	return s->context;
}

/* The reference instruction set keeps KV in F32, all others in BF16. */
static uint32_t element_bytes(const struct settings *s)
{
	return strcmp(s->isa, "ref") == 0 ? 4 : 2;
}

int engine_reckon(const struct settings *s, const struct config *c, uint64_t ram_bytes,
		  struct engine_plan *ret, struct err *err)
{
	struct engine_plan plan = { .page_tokens = s->page_tokens,
				    .element_bytes = element_bytes(s) };
	uint64_t bytes = s->kv_cache_size, n_pages;
	const uint32_t context = wanted_context(s, c, &plan);
	const uint64_t whole = ((uint64_t)context + plan.page_tokens - 1) / plan.page_tokens;

	if (plan.page_tokens % 8 != 0)
		return err_set(err, -EINVAL, "PageTokens=%u is not a multiple of 8",
			       plan.page_tokens);

	plan.page_strips = c->layers * 2 * c->kv_heads;
	plan.page_bytes = config_kv_bytes(c, plan.element_bytes) * plan.page_tokens;
	if (bytes == 0)
		bytes = MIN(whole * plan.page_bytes, ram_bytes / 4);
	n_pages = bytes / plan.page_bytes;
	if (n_pages == 0)
		return err_set(err, -EINVAL,
			       "a KV cache of %llu bytes does not hold one page of %llu bytes",
			       (unsigned long long)bytes, (unsigned long long)plan.page_bytes);
	plan.n_pages = (uint32_t)MIN(n_pages, (uint64_t)KV_PAGE_NONE - 1);

	plan.max_context = context;
	if ((uint64_t)plan.n_pages * plan.page_tokens < context) {
		plan.max_context = plan.n_pages * plan.page_tokens;
		snprintf(plan.warning, sizeof(plan.warning),
			 "the KV cache of %u pages holds %u tokens; Context is %u", plan.n_pages,
			 plan.max_context, context);
	}
	plan.pages_per_turn = (plan.max_context + plan.page_tokens - 1) / plan.page_tokens + 1;
	*ret = plan;
	return 0;
}

static void configure(const struct settings *s, const struct engine_plan *plan, const char *dir,
		      struct control_configure *ret)
{
	*ret = (struct control_configure){
		.kind = CONTROL_CONFIGURE,
		.version = CONTROL_VERSION,
		.arena_bytes = (uint64_t)plan->n_pages * plan->page_bytes,
		.n_pages = plan->n_pages,
		.page_tokens = plan->page_tokens,
		.page_bytes_lo = (uint32_t)plan->page_bytes,
		.page_bytes_hi = (uint32_t)(plan->page_bytes >> 32),
		.n_slots = sched_slots(s),
		.max_context = plan->max_context,
		.max_batch_tokens = MIN(s->batch_tokens, (uint32_t)STEP_TOKENS_MAX),
		.n_threads = s->threads,
		.n_ranks = s->ranks,
	};
	snprintf(ret->isa, sizeof(ret->isa), "%s", s->isa);
	snprintf(ret->model, sizeof(ret->model), "%s", dir);
}

/* What the disk may hold, of all and of one. */
static struct segments_limits disk_limits(const struct settings *s)
{
	return (struct segments_limits){
		.total_bytes = s->disk_cache_size,
		.user_bytes = s->user_disk_quota,
		.user_min_percent = s->min_user_cache,
		.keep_free = DISK_KEEP_FREE_PERCENT,
	};
}

/* The disk has done something that turns may have waited for. */
static void on_page_moved(void *userdata)
{
	struct engine *e = userdata;

	if (e->sched)
		sched_executor_changed(e->sched);
}

static void on_disk_ready(void *userdata)
{
	struct engine *e = userdata;

	if (kvdisk_text(e->disk)[0])
		log_warning("no KV cache on disk: %s", kvdisk_text(e->disk));
	kvcache_disk_ready(e->kv);
	on_page_moved(e);
}

static void close_disk(struct engine *e)
{
	kvcache_set_disk(e->kv, NULL, NULL, NULL);
	e->disk = kvdisk_free(e->disk);
}

/*
 * The store of the model that is served; without one all works, but for a reboot.
 * One that failed is tried again whenever the model becomes ready, and at a reload.
 */
static void open_disk(struct engine *e, const uint64_t model[2])
{
	struct segments_options options = {
		.layout = CHAIN_LAYOUT,
		.page_tokens = e->plan.page_tokens,
		.page_bytes = e->plan.page_bytes,
		.limits = disk_limits(e->options.settings),
	};
	_cleanup_(freep) char *dir = NULL;
	int r;

	if (!e->options.state_dir || !e->options.settings->disk_cache ||
	    (e->disk && !kvdisk_text(e->disk)[0] &&
	     memcmp(e->disk_model, model, sizeof(e->disk_model)) == 0))
		return;
	if (e->disk)
		close_disk(e);
	memmove(e->disk_model, model, sizeof(e->disk_model));
	memcpy(options.fingerprint, model, sizeof(options.fingerprint));
	r = asprintf(&dir, "%s/kv", e->options.state_dir);
	options.dir = dir;
	if (r >= 0)
		r = kvdisk_new(e->loop, &options, on_disk_ready, e, &e->disk);
	if (r >= 0)
		r = kvcache_set_disk(e->kv, e->disk, on_page_moved, e);
	if (r < 0)
		log_warning("no KV cache on disk: %s", strerror(r == -1 ? ENOMEM : -r));
}

void engine_reload(struct engine *e)
{
	const struct segments_limits limits = disk_limits(e->options.settings);

	if (e->disk && kvdisk_text(e->disk)[0] && kvdisk_is_ready(e->disk))
		open_disk(e, e->disk_model);
	else if (e->disk)
		kvdisk_limit(e->disk, &limits);
}

static void on_executor_state(struct executor *executor, void *userdata)
{
	struct engine *e = userdata;
	const struct control_ready *ready = executor_ready(executor);
	uint64_t model[2];

	if (ready) {
		chain_model(ready->fingerprint, ready->isa, model);
		kvcache_set_model(e->kv, model);
		open_disk(e, model);
	}
	if (e->sched)
		sched_executor_changed(e->sched);
	e->options.on_state(e->options.userdata);
}

static void on_executor_seen(struct executor *executor, void *userdata)
{
	struct engine *e = userdata;

	(void)executor;
	if (e->options.on_seen)
		e->options.on_seen(e->options.userdata);
}

static void on_executor_results(struct executor *executor, void *userdata)
{
	struct engine *e = userdata;

	(void)executor;
	if (e->sched)
		sched_results(e->sched);
}

/* What is no turns of ours is left out; 0, or a negative errno that may pass. */
static int adopt_turns(struct engine *e, int stored_fd, struct err *ret_err)
{
	struct err err = { 0 };
	int r;

	r = turns_adopt(stored_fd, &e->turns, &err);
	if (r < 0) {
		close(stored_fd);
		if (err_may_pass(r))
			return err_set(ret_err, r, "%s", err.text);
		log_warning("stored turns are not taken over: %s", err.text);
		return 0;
	}
	if (turns_max_context(e->turns) == e->plan.max_context) {
		e->adopted = true;
		return 0;
	}
	log_warning("stored turns are not taken over: they are for a context of %u, now it is %u",
		    turns_max_context(e->turns), e->plan.max_context);
	e->turns = turns_free(e->turns);
	return 0;
}

/*
 * What the stored executor was configured with. Arena, turns and executor are
 * taken over only by a broker that would configure them exactly so. Returns
 * whether they are, or why that cannot be told now.
 */
static int stored_fits(const struct control_configure *now, struct err *err)
{
	_cleanup_(closep) int fd = fdstore_take("exec-config");
	struct control_configure then;
	ssize_t n;

	if (fd < 0)
		return false;
	n = pread(fd, &then, sizeof(then), 0);
	if (n < 0)
		return err_wrap(err, -errno, "cannot read the stored configuration");
	if (n != (ssize_t)sizeof(then) || then.version != now->version) {
		log_warning("nothing stored is taken over: the stored configuration is not of this "
			    "version of steamd");
		return false;
	}
	return memcmp(&then, now, sizeof(*now)) == 0;
}

/* What cannot be stored is served all the same: a broker that finds less than all begins afresh. */
static void store(const char *name, int fd)
{
	int r;

	fdstore_remove(name);
	r = fd < 0 ? fd : fdstore_put(name, fd, 0);
	if (r < 0)
		log_warning("'%s' is not stored, a restart will begin afresh: %s", name,
			    strerror(-r));
}

static void store_configuration(const struct control_configure *now)
{
	_cleanup_(closep) int fd = memfd_create("steamd-config", MFD_CLOEXEC);
	const ssize_t n = fd < 0 ? -1 : pwrite(fd, now, sizeof(*now), 0);

	store("exec-config", n < 0 ? -errno : n < (ssize_t)sizeof(*now) ? -EIO : fd);
}

/* The KV cache of the stored arena and directory, or a new one, which is stored. */
static int make_cache(struct engine *e, bool adopt, bool *ret_adopted, struct err *err)
{
	const int causes_stored = adopt ? fdstore_take("causes") : -1;
	const struct kvcache_options options = {
		.n_pages = e->plan.n_pages,
		.page_tokens = e->plan.page_tokens,
		.page_bytes = e->plan.page_bytes,
		.element_bytes = e->plan.element_bytes,
		.n_strips = e->plan.page_strips,
		.arena_fd = adopt ? fdstore_take("arena") : -1,
		.dir_fd = adopt ? fdstore_take("kvdir") : -1,
		.causes_fd = causes_stored,
	};
	struct err lost = { 0 };
	int r;

	r = kvcache_new(&options, &e->kv, &lost, err);
	if (r < 0)
		return r;
	if (lost.text[0])
		log_warning("the stored KV cache is not taken over: %s", lost.text);
	if (causes_stored < 0 || kvcache_causes_fd(e->kv) != causes_stored)
		store("causes", kvcache_causes_fd(e->kv));
	*ret_adopted = options.arena_fd >= 0 && options.dir_fd >= 0 && !lost.text[0];
	if (*ret_adopted && causes_stored >= 0 && kvcache_causes_fd(e->kv) != causes_stored)
		log_warning(
			"why KV was lost is forgotten: what was stored of it is damaged, or not "
			"of this version of steamd");
	if (*ret_adopted)
		return 0;
	store("arena", kvcache_arena_fd(e->kv));
	store("kvdir", kvcache_dir_fd(e->kv));
	return 0;
}

/* Makes what is not adopted, and stores it. */
static int make_memory(struct engine *e, bool adopt, bool *ret_same_arena, struct err *err)
{
	const int turns_stored = adopt ? fdstore_take("turns") : -1;
	int r;

	if (turns_stored >= 0) {
		r = adopt_turns(e, turns_stored, err);
		if (r < 0)
			return r;
	}
	r = make_cache(e, adopt, ret_same_arena, err);
	if (r < 0)
		return r;
	if (!e->turns) {
		r = turns_new(e->plan.max_context, e->plan.pages_per_turn, &e->turns, err);
		if (r < 0)
			return r;
		*ret_same_arena = false;
		store("turns", turns_fd(e->turns));
	}
	return 0;
}

static int map_steps(struct ring *ret, struct err *ret_err)
{
	_cleanup_(closep) int memfd = fdstore_take("ring"), down_fd = fdstore_take("ring-down");
	_cleanup_(closep) int up_fd = fdstore_take("ring-up");
	struct err err = { 0 };
	int r;

	if (memfd < 0 || down_fd < 0 || up_fd < 0)
		return -ENOENT;
	r = ring_map(memfd, down_fd, up_fd, ret, &err);
	if (err_may_pass(r))
		return err_set(ret_err, r, "%s", err.text);
	if (r < 0) {
		log_warning("the stored steps are not taken over: %s", err.text);
		return r;
	}
	steal_fd(&memfd);
	steal_fd(&down_fd);
	steal_fd(&up_fd);
	return 0;
}

/*
 * Takes over the stored executor if all its parts are there. Returns whether it
 * did, or a negative errno that may pass. None of them is left for
 * fdstore_discard_rest(), which goes by names and comes after those of the next
 * executor were stored.
 */
static int adopt_executor(struct engine *e, bool same_arena, struct err *ret_err)
{
	_cleanup_(closep) int control_fd = fdstore_take("exec-ctl");
	_cleanup_(ring_deinit) struct ring ring = { 0 };
	struct err err = { 0 };
	int r;

	r = executor_recall(e->executor, fdstore_take("exec-ready"));
	if (err_may_pass(r))
		return err_set(ret_err, r, "what was stored of the executor cannot be read: %s",
			       strerror(-r));
	if (r == -EBADMSG)
		log_warning(
			"what was stored of the executor is not taken over: it is damaged, or not "
			"of this version of steamd");
	r = map_steps(&ring, ret_err);
	if (err_may_pass(r))
		return r;
	if (r >= 0 && control_fd >= 0 && same_arena) {
		r = executor_adopt(e->executor, steal_fd(&control_fd), &ring, &err);
		if (r >= 0)
			return true;
		if (err_may_pass(r))
			return err_set(ret_err, r, "%s", err.text);
		log_warning("the stored executor is not taken over: %s", err.text);
		return false;
	}
	if (control_fd >= 0)
		shutdown(control_fd, SHUT_RDWR); /* it leaves, whoever else has a duplicate */
	fdstore_remove("exec-ctl");
	fdstore_remove("ring");
	fdstore_remove("ring-down");
	fdstore_remove("ring-up");
	return false;
}

static uint64_t ram_bytes(void)
{
	const long pages = sysconf(_SC_PHYS_PAGES), bytes = sysconf(_SC_PAGESIZE);

	return pages > 0 && bytes > 0 ? (uint64_t)pages * (uint64_t)bytes : 1ull << 30;
}

static void on_discard(const char *name)
{
	log_info("the descriptor store held '%s', which is of no use here: discarded", name);
}

/* All but what is reckoned; see engine_new(). */
static int make(struct engine *e, const struct textmodel *model, bool *ret_fits, struct err *err)
{
	const struct engine_options *options = &e->options;
	struct executor_options executor = { 0 };
	struct sched_options sched = { .settings = options->settings };
	bool same_arena = false;
	int r;

	configure(options->settings, &e->plan, model->dir, &executor.configure);
	r = stored_fits(&executor.configure, err);
	if (r < 0)
		return r;
	*ret_fits = r;
	if (!*ret_fits)
		fdstore_discard_rest(
			on_discard); /* an executor of an earlier life sees the end of its socket */
	r = make_memory(e, *ret_fits, &same_arena, err);
	if (r < 0)
		return r;
	/* one that fits stays: without any, for a moment, a kill would lose all the rest */
	if (!*ret_fits)
		store_configuration(&executor.configure);

	executor.unit_socket = options->unit_socket;
	executor.program = options->program;
	executor.arena_fd = kvcache_arena_fd(e->kv);
	executor.on_state = on_executor_state;
	executor.on_results = on_executor_results;
	executor.on_seen = on_executor_seen;
	executor.userdata = e;
	r = executor_new(e->loop, &executor, &e->executor, err);
	if (r < 0)
		return r;

	sched.kv = e->kv;
	sched.turns = e->turns;
	sched.executor = e->executor;
	sched.on_applied = options->on_applied;
	sched.userdata = options->userdata;
	r = sched_new(e->loop, &sched, &e->sched);
	if (r < 0)
		return err_set(err, r, "cannot make the scheduler: %s", strerror(-r));

	r = adopt_executor(e, same_arena, err);
	if (r < 0)
		return r;
	if (r > 0 || (same_arena && executor_adopt_gone(e->executor) == 0))
		return 0;
	return executor_start(e->executor, NULL, err);
}

int engine_new(sd_event *loop, const struct engine_options *options, const struct textmodel *model,
	       struct engine **ret, struct err *err)
{
	struct engine *e = calloc(1, sizeof(*e));
	bool fits = true;
	int r;

	if (!e)
		return err_set(err, -ENOMEM, "out of memory");
	e->options = *options;
	e->loop = loop; /* outlives it */
	r = engine_reckon(options->settings, &model->config, ram_bytes(), &e->plan, err);
	if (r >= 0) {
		r = fdstore_keep();
		if (r < 0)
			err_set(err, r, "cannot duplicate what the last broker left: %s",
				strerror(-r));
	}
	if (r >= 0)
		r = make(e, model, &fits, err);
	if (r < 0) {
		fdstore_give_back();
		engine_free(e, !fits); /* what fits is for the next try */
		return r;
	}
	fdstore_discard_rest(on_discard);
	*ret = e;
	return 0;
}

struct engine *engine_free(struct engine *e, bool stop)
{
	if (!e)
		return NULL;
	if (stop && e->executor)
		executor_stop(e->executor);
	sched_free(e->sched);
	executor_free(e->executor);
	turns_free(e->turns);
	if (e->disk)
		close_disk(e); /* its ends speak of the cache */
	kvcache_free(e->kv);
	if (stop) {
		fdstore_remove("turns");
		fdstore_remove("arena");
		fdstore_remove("kvdir");
		fdstore_remove("causes");
		fdstore_remove("exec-config");
	}
	free(e);
	return NULL;
}
