/* A session database that is damaged, on a disk that is full: nothing is lost, whoever asks hears why, and it is mended when there is room. */
#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/server/sessions.h"
#include "daemon/session/store.h"
#include "tests/unit/server-client.h"
#include "tests/unit/worker-inline.h"

#define SESSIONS 40

static bool is_full;

/* Only what is written to files: sockets and eventfds hold what they always do. */
static bool has_room(int fd)
{
	struct stat st;

	return !is_full || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode);
}

/* Stand before libc's. */
ssize_t write(int fd, const void *data, size_t n)
{
	if (has_room(fd))
		return syscall(SYS_write, fd, data, n);
	errno = ENOSPC;
	return -1;
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at)
{
	if (has_room(fd))
		return syscall(SYS_pwrite64, fd, data, n, at);
	errno = ENOSPC;
	return -1;
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
	return pwrite64(fd, data, n, at);
}

struct state {
	char dir[64], db[96], aside[128];
	struct world *w;
	struct client c;
	uint64_t id;
};

static void fill(const char *db)
{
	const struct store_who who = { 1000, "" };
	struct store *s = NULL;
	struct err err = { 0 };

	assert_int_equal(store_open(db, NULL, &s, &err), 0);
	for (int i = 0; i < SESSIONS; i++) {
		struct bytes said = { 0 };
		char name[32];

		snprintf(name, sizeof(name), "session-%d", i);
		assert_int_equal(store_new(s, &who, span_of(name), SPAN("{}"),
					   &(struct store_limits){ .max_sessions = 100 }, &said,
					   &err),
				 0);
		bytes_deinit(&said);
	}
	assert_int_equal(store_checkpoint(s, true, &err), 0);
	store_free(s);
}

/* @at: of the byte from which on a page of the database is nonsense. */
static void begin(struct state *t, off_t at)
{
	char nonsense[1024];
	int fd;

	memset(t, 0, sizeof(*t));
	memset(nonsense, 0x5a, sizeof(nonsense));
	snprintf(t->dir, sizeof(t->dir), "/tmp/steamd-full-XXXXXX");
	assert_non_null(mkdtemp(t->dir));
	snprintf(t->db, sizeof(t->db), "%s/state.db", t->dir);
	snprintf(t->aside, sizeof(t->aside), "%s.damaged-1", t->db);
	fill(t->db);
	fd = open(t->db, O_WRONLY | O_CLOEXEC);
	assert_int_equal(pwrite(fd, nonsense, sizeof(nonsense), at), sizeof(nonsense));
	close(fd);
	clock_fake(1000 * US_PER_S, 0);
	worker_inline_kill(false);
	is_full = true;
	t->w = world_of((struct server_options){ .program = "/bin/false", .state_dir = t->dir },
			NULL);
	connect_client(t->w, &t->c);
	say_hello(t->w, &t->c);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	(void)st, (void)kind, (void)ftw;
	return remove(path);
}

static void finish(struct state *t)
{
	close_client(&t->c);
	world_free(t->w);
	clock_real();
	nftw(t->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void list(struct state *t)
{
	struct msg m = { .type = MSG_SESSION_LIST, .id = ++t->id };

	send_msg(&t->c, &m);
	assert_true(receive(t->w, &t->c));
	assert_int_equal(t->c.got.id, t->id);
}

static void assert_waits_for_room(struct state *t)
{
	list(t);
	assert_int_equal(t->c.got.type, MSG_ERROR);
	assert_span(t->c.got.error.code, "unavailable");
	assert_true(t->c.got.error.retryable);
	if (!memmem(t->c.got.error.text.data, t->c.got.error.text.len, "No space left on device",
		    23))
		fail_msg("%.*s", SPAN_ARG(t->c.got.error.text));
	assert_int_equal(access(t->aside, F_OK), -1);
	assert_int_equal(access(t->db, F_OK), 0);
}

static void wait_for_room_then_mend(off_t at)
{
	struct state t;

	begin(&t, at);
	assert_waits_for_room(&t);
	clock_advance(SESSIONS_AGAIN_US);
	assert_waits_for_room(&t);
	is_full = false;
	clock_advance(SESSIONS_AGAIN_US);
	list(&t);
	assert_int_equal(t.c.got.type, MSG_DONE);
	assert_int_equal(access(t.aside, F_OK), 0);
	finish(&t);
}

static void damage_that_is_seen_at_once_waits_for_room(void **state)
{
	(void)state;
	wait_for_room_then_mend(0);
}

static void damage_that_is_found_by_the_check_waits_for_room(void **state)
{
	(void)state;
	wait_for_room_then_mend(3 * 4096);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(damage_that_is_seen_at_once_waits_for_room),
		cmocka_unit_test(damage_that_is_found_by_the_check_waits_for_room),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
