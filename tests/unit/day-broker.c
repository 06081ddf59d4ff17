/* The machine of day.h, and the lives of the broker on it. */
#include "tests/unit/day.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sqlite3.h>
#include <sys/ioctl.h>
#include <sys/random.h>

#include "daemon/base/fdstore.h"
#include "daemon/base/log.h"
#include "daemon/kv/kvcache-parts.h"
#include "daemon/server/stream.h"
#include "tests/unit/shim-vfs.h"
#include "tests/unit/virtual-time.h"
#include "tests/unit/worker-inline.h"

/* A 5 GB model with 64 experts on two cores. */
static const struct computer_cost cost = { 25000, 130000, 0.125, 7000, 700, 300 };

/* Stands before libc's: a seed is a day. */
ssize_t getrandom(void *to, size_t n, unsigned int flags)
{
	(void)flags;
	for (size_t i = 0; i < n; i++)
		((uint8_t *)to)[i] = (uint8_t)day_random(256);
	return (ssize_t)n;
}

/* The database's files are in a file system whose power can be cut. */
static void open_files(void)
{
	shim_reset(SHIM_NONE, 0);
	sqlite3_vfs_register(sqlite3_vfs_find(SHIM_VFS), 1);
}

static void close_files(enum shim_image image)
{
	sqlite3_vfs_unregister(sqlite3_vfs_find(SHIM_VFS));
	shim_restore(image, day.rng);
}

static void set(struct settings *to, const char *format, ...) _printf_(2, 3);
static void set(struct settings *to, const char *format, ...)
{
	char assignment[256];
	va_list ap;

	va_start(ap, format);
	vsnprintf(assignment, sizeof(assignment), format, ap);
	va_end(ap);
	assert_int_equal(settings_set(to, assignment, "test", NULL), 0);
}

/* Some are others each time. */
static void make_settings(struct settings *to)
{
	const char *src = getenv("srcdir");

	assert_int_equal(settings_init(to), 0);
	set(to, "Model=%s/tests/golden/air", src ? src : ".");
	set(to, "Context=%u", DAY_CONTEXT);
	set(to, "PageTokens=%u", DAY_PAGE_TOKENS);
	set(to, "KVCacheSize=%llu", (unsigned long long)(DAY_PAGES * DAY_PAGE_BYTES));
	set(to, "MaxBatch=8");
	set(to, "BatchTokens=128");
	set(to, "DiskCacheSize=%llu", (unsigned long long)DAY_DISK_BYTES);
	set(to, "DiskQuotaPerUser=%llu", (unsigned long long)DAY_QUOTA_BYTES);
	set(to, "UserWeights=%u:%u", DAY_UID + 1, 50 + day_random(400));
	set(to, "SharedPrompts=%s", day.prompts);
	set(to, "TidyOver=%u", 1 + day_random(3));
	set(to, "MaxTokens=%u", 4096 + day_random(4096));
	set(to, "IdlePark=%u", 60 + day_random(600));
	set(to, "IdleExit=%u", 700 + day_random(3600));
}

/* At a reload. One setting waits for a restart, and in one of four the file is wrong. */
static int read_settings(struct settings *ret, void *userdata, struct err *err)
{
	(void)userdata;
	make_settings(ret);
	set(ret, "MaxBatch=%u", 8 + day_random(2));
	if (!day_one_in(4))
		return 0;
	settings_deinit(ret);
	return err_set(err, -EINVAL, "the file is wrong");
}

/* Everything that a broker is made of; what the manager has is passed to it. */
static void begin_life(void)
{
	const struct server_options options = { .settings = &day.settings,
						.unit_socket = day.computer.path,
						.state_dir = day.state,
						.reread = read_settings };
	struct err err = { 0 };
	char **names;
	int *fds;

	manager_read(&day.manager);
	names = calloc(MANAGER_FDS_MAX, sizeof(*names));
	fds = calloc(MANAGER_FDS_MAX, sizeof(*fds));
	assert_true(names && fds);
	for (int i = 0; i < day.manager.n; i++) {
		names[i] = strdup(day.manager.names[i]);
		fds[i] = fcntl(day.manager.fds[i], F_DUPFD_CLOEXEC, 3);
	}
	fdstore_receive(names, fds, day.manager.n);
	worker_inline_kill(false);
	open_files();
	virtual_time_begin();
	assert_int_equal(sd_event_new(&day.loop), 0);
	if (server_new(day.loop, &options, &day.server, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(server_load(day.server, &err), 0);
	while (!day.server->engine) {
		assert_int_equal(day.server->refusal.code, 0);
		assert_true(day_turn());
	}
	day.was = executor_state(day.server->engine->executor);
}

/* A bit of a page that was left to be found: it is looked at once when broker or executor are new. */
static void flip_bit(void)
{
	const struct engine *e = day.server->engine;
	const kv_page page = day_random(DAY_PAGES);
	const struct prefix_node *node = e ? e->kv->by_page[page] : NULL;

	if (!day.bits_flip || !day_one_in(3) || !node || node->loading ||
	    kvpool_holders(kvcache_pool(e->kv), page) > 0 || day.computer.fd < 0)
		return;
	*computer_position(&day.computer, page, day_random(node->n_tokens)) ^= 1u << day_random(32);
	day.n.flips++;
}

/* Pages that a turn has, and that were to be cleared for it before it writes to them. */
static void count_uncleared(void)
{
	const struct engine *e = day.server->engine;
	struct turn_record *rec = NULL;

	while (e && (rec = turns_next(e->turns, rec))) {
		for (uint32_t k = 0; rec->state == TURN_RUNNING && k < rec->n_pages; k++)
			day.n.left_uncleared += kvdir_owner(e->kv->dir,
							    turn_page_table(e->turns, rec)[k]) ==
						KVDIR_MIXED;
	}
}

static void end_life(enum shim_image image)
{
	day_users_died();
	day_operators_died();
	count_uncleared();
	flip_bit();
	day.server = server_free(day.server);
	sd_event_unref(day.loop);
	day.loop = NULL;
	close_files(image);
}

bool day_run_loop(void)
{
	bool moved = false;

	while (day.loop && sd_event_get_state(day.loop) != SD_EVENT_FINISHED &&
	       sd_event_run(day.loop, 0) > 0) {
		moved = true;
		manager_read(&day.manager);
	}
	return moved;
}

/* The scripted executor does as it was told: the orders of sleep are not steps. */
static bool obey(void)
{
	const struct control_parked parked = { .kind = CONTROL_PARKED, .freed_bytes = 1 << 20 };
	struct computer *c = &day.computer;
	struct control_order order;

	if (c->fd < 0 || recv(c->fd, &order, sizeof(order), MSG_DONTWAIT) != sizeof(order))
		return false;
	while (computer_step(c))
		;
	if (order.kind == CONTROL_PARK)
		assert_int_equal(send(c->fd, &parked, sizeof(parked), MSG_NOSIGNAL),
				 sizeof(parked));
	else if (order.kind == CONTROL_WAKE)
		computer_ready(c);
	return true;
}

/* A socket at its end: the broker shut it down. */
static bool is_over(void)
{
	char byte;

	return day.computer.fd >= 0 &&
	       recv(day.computer.fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 0;
}

static void look(void)
{
	const struct engine *e = day.server ? day.server->engine : NULL;
	enum executor_state state;

	if (!e)
		return;
	state = executor_state(e->executor);
	day.n.parks += state == EXECUTOR_PARKED && day.was != state;
	day.n.leaves += state == EXECUTOR_GONE && day.was != state;
	day.n.wakes += state != day.was && (day.was == EXECUTOR_PARKED || day.was == EXECUTOR_GONE);
	if (state == EXECUTOR_READY && executor_deaths(e->executor) == 0)
		day.n_kills_since = 0;
	day.was = state;
}

bool day_turn(void)
{
	bool moved = day_run_loop();

	if (is_over())
		computer_die(&day.computer);
	moved = computer_accept(&day.computer) > 0 || moved;
	moved = obey() || moved;
	moved = computer_step(&day.computer) > 0 || moved;
	look();
	return moved;
}

/* SIGTERM, and all that it brings about; answers go on until the end. */
void day_stop_broker(void)
{
	server_stop(day.server);
	while (sd_event_get_state(day.loop) != SD_EVENT_FINISHED) {
		if (!day_turn() && virtual_time_next() > 0)
			clock_advance(MAX(virtual_time_next(), clock_us() + 1) - clock_us());
		day_users_hear();
	}
	day_keep_counts();
	end_life(SHIM_KILLED);
	day.n.stops++;
	day.n.restarts++;
	begin_life();
	day_users_return();
}

/* What a death in this moment leaves behind, but for the arena, which is the executor's to write. */
static struct {
	enum day_moment wanted;
	bool is;
	char *ring, *dir, *records[TURNS_MAX];
	struct turn_record *at[TURNS_MAX];
	uint32_t n;
	off_t dir_bytes;
} left;

/* But for the room for its conversation, which is last, and written before the turn is known. */
static size_t record_bytes(struct turns *turns, struct turn_record *rec)
{
	return (size_t)(turn_conversation(turns, rec) - (char *)rec);
}

static char *copy_of(const void *data, size_t bytes)
{
	char *copy = malloc(bytes);

	assert_non_null(copy);
	return memcpy(copy, data, bytes);
}

static void remember(void)
{
	const struct engine *e = day.server->engine;
	struct ring *ring = executor_ring(e->executor);
	const int fd = kvcache_dir_fd(e->kv);
	struct turn_record *rec = NULL;

	if (!ring)
		return;
	left.is = true;
	left.ring = copy_of(ring->shared, ring->bytes);
	left.dir_bytes = lseek(fd, 0, SEEK_END);
	left.dir = malloc((size_t)left.dir_bytes);
	assert_int_equal(pread(fd, left.dir, (size_t)left.dir_bytes, 0), left.dir_bytes);
	left.n = 0;
	while ((rec = turns_next(e->turns, rec))) {
		left.at[left.n] = rec;
		left.records[left.n++] = copy_of(rec, record_bytes(e->turns, rec));
	}
	for (uint32_t i = 0; i < DAY_TALKS + DAY_OPERATORS; i++) {
		struct day_client *c = i < DAY_TALKS ? &day.talks[i].client
						     : &day.operators[i - DAY_TALKS].client;
		int n = 0;

		if (c->fd < 0)
			continue;
		assert_int_equal(ioctl(c->fd, FIONREAD, &n), 0);
		c->limited = true;
		c->deliverable = (uint32_t)n;
	}
}

/* Memory is as it was then. */
static void restore(void)
{
	const struct engine *e = day.server->engine;
	struct ring *ring = executor_ring(e->executor);
	struct turn_record *rec = NULL;

	assert_non_null(ring);
	memcpy(ring->shared, left.ring, ring->bytes);
	assert_int_equal(pwrite(kvcache_dir_fd(e->kv), left.dir, (size_t)left.dir_bytes, 0),
			 left.dir_bytes);
	while ((rec = turns_next(e->turns, rec)))
		atomic_store(&rec->state, TURN_FREE);
	for (uint32_t i = 0; i < left.n; i++) {
		memcpy(left.at[i], left.records[i], record_bytes(e->turns, left.at[i]));
		free(left.records[i]);
	}
	free(left.ring);
	free(left.dir);
	memset(&left, 0, sizeof(left));
}

static void (*heard)(struct turn *t); /* the server's */

/* The first token of a result is in its record, and nobody knows. */
static void on_tokens(struct turn *t)
{
	if (left.wanted == DAY_IN_RESULT && !left.is)
		remember();
	heard(t);
}

/* Stands between the scheduler and the cache: the orders that go with the next step. */
uint32_t __real_kvcache_moves(struct kvcache *c, struct step_move *ret, uint32_t max);
uint32_t __wrap_kvcache_moves(struct kvcache *c, struct step_move *ret, uint32_t max);
uint32_t __wrap_kvcache_moves(struct kvcache *c, struct step_move *ret, uint32_t max)
{
	const struct move *m;

	TAILQ_FOREACH(m, &c->waiting, link) {
		if (m->purpose == MOVE_CLEAR && left.wanted == DAY_BEFORE_ORDERS && !left.is)
			remember();
	}
	return __real_kvcache_moves(c, ret, max);
}

static void listen_in(bool yes)
{
	struct stream *st;

	TAILQ_FOREACH(st, &day.server->streams, link) {
		if (!st->turn.on_tokens)
			continue;
		if (yes && st->turn.on_tokens != on_tokens)
			heard = st->turn.on_tokens;
		st->turn.on_tokens = yes ? on_tokens : heard;
	}
}

void day_kill_broker(enum day_moment moment)
{
	if (moment != DAY_NOW) {
		left.wanted = moment;
		listen_in(true);
		while (!left.is && sd_event_run(day.loop, 0) > 0)
			manager_read(&day.manager);
		left.wanted = DAY_NOW;
		if (!left.is) {
			listen_in(false);
			return;
		}
		day.n.inside += moment == DAY_IN_RESULT;
		day.n.before_orders += moment == DAY_BEFORE_ORDERS;
	}
	day_keep_counts();
	manager_read(&day.manager);
	worker_inline_kill(true);
	shim_cut_now();
	if (left.is)
		restore();
	end_life(SHIM_KILLED);
	day.n.kills_broker++;
	day.n.restarts++;
	begin_life();
	day_users_return();
}

void day_cut_power(void)
{
	day_keep_counts();
	worker_inline_kill(true);
	shim_cut_now();
	end_life(day_one_in(2) ? SHIM_SYNCED : SHIM_SOME);
	computer_die(&day.computer);
	manager_close(&day.manager);
	manager_open(&day.manager);
	day.n_kills_since = 0;
	day.n.reboots++;
	begin_life();
	day_users_return();
}

void day_kill_executor(void)
{
	if (day.computer.fd < 0)
		return;
	flip_bit();
	computer_die(&day.computer);
	day.n_kills_since++;
	day.n.kills++;
}

void day_keep_counts(void)
{
	struct kvcache_counts n;

	if (!day.server->engine)
		return;
	kvcache_count(day.server->engine->kv, &n);
	day.n.evicted += (uint32_t)n.n_evicted;
	day.n.damaged += (uint32_t)n.n_damaged;
	day.n.written += n.n_written;
	day.n.read += n.n_read;
}

static void write_prompt(void)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), "%s/editor.txt", day.prompts);
	f = fopen(path, "we");
	assert_non_null(f);
	for (size_t i = 0, n = 0; i < 24; i++)
		n += (size_t)snprintf(day.system + n, sizeof(day.system) - n,
				      "rule %zu of the editor. ", i);
	fputs(day.system, f);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(chmod(path, 0600), 0);
}

void day_boot(void)
{
	log_init("test", getenv("DAY_LOG") ? LOG_DEBUG : LOG_CRIT);
	setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent", 1);
	snprintf(day.dir, sizeof(day.dir), "%s/steamd-day-XXXXXX",
		 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
	assert_non_null(mkdtemp(day.dir));
	snprintf(day.state, sizeof(day.state), "%s/state", day.dir);
	snprintf(day.prompts, sizeof(day.prompts), "%s/prompts", day.dir);
	snprintf(day.fifo, sizeof(day.fifo), "%s/pressure", day.dir);
	assert_int_equal(mkdir(day.state, 0700), 0);
	assert_int_equal(mkdir(day.prompts, 0700), 0);
	assert_int_equal(mkfifo(day.fifo, 0600), 0);
	setenv("MEMORY_PRESSURE_WATCH", day.fifo, 1);
	day.fifo_fd = open(day.fifo, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	assert_true(day.fifo_fd >= 0);
	write_prompt();
	clock_fake(1000 * US_PER_S, 1700000000 * US_PER_S);
	day.begun_us = clock_us();
	make_settings(&day.settings);
	manager_open(&day.manager);
	computer_open(&day.computer);
	day.computer.cost = &cost;
	day.computer.n_strips = DAY_STRIPS;
	day.computer.stop_id = DAY_STOP_ID;
	day.computer.stop_every = 40;
	begin_life();
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	(void)st, (void)kind, (void)ftw;
	return remove(path);
}

void day_shut_down(void)
{
	day_keep_counts();
	end_life(SHIM_KILLED);
	virtual_time_end();
	clock_real();
	day_lease_ends();
	computer_close(&day.computer);
	manager_close(&day.manager);
	fdstore_discard_rest(NULL);
	close(day.fifo_fd);
	settings_deinit(&day.settings);
	nftw(day.dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
