/* What a broker takes over of the engine that an earlier one left, and what it does without. */
#include "daemon/server/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <cmocka.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "client/wire/control.h"
#include "client/wire/ownership.h"
#include "daemon/base/fdstore.h"
#include "daemon/sched/executor.h"
#include "daemon/server/textmodel.h"
#include "tests/unit/manager.h"

#define EXECUTOR "STEAMD_TEST_EXECUTOR"

struct watch {
	sd_event *loop;
	struct settings settings;
	struct textmodel *model;
	struct engine *engine;
	struct manager manager;
};

static size_t failing_bytes; /* the next pwrite() of so many fails */
static struct {		     /* the call to come that fails; 0: none */
	uint32_t calloc, mmap, pread, fcntl, io, defer;
} failing;

/* Stands before libc's. */
ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
	if (n == failing_bytes) {
		failing_bytes = 0;
		errno = EIO;
		return -1;
	}
	return syscall(SYS_pwrite64, fd, data, n, at);
}

static bool fails(uint32_t *at, int code)
{
	if (*at == 0 || --*at > 0)
		return false;
	errno = code;
	return true;
}

/* The linker has the broker's objects call these. */
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
	return fails(&failing.calloc, ENOMEM) ? NULL : __real_calloc(n, size);
}

void *__real_mmap(void *at, size_t n, int prot, int flags, int fd, off_t from);
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t from);
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t from)
{
	return fails(&failing.mmap, ENOMEM) ? MAP_FAILED
					    : __real_mmap(at, n, prot, flags, fd, from);
}

ssize_t __real_pread(int fd, void *to, size_t n, off_t at);
ssize_t __wrap_pread(int fd, void *to, size_t n, off_t at);
ssize_t __wrap_pread(int fd, void *to, size_t n, off_t at)
{
	return fails(&failing.pread, EIO) ? -1 : __real_pread(fd, to, n, at);
}

int __real_fcntl(int fd, int what, long with);
int __wrap_fcntl(int fd, int what, long with);
int __wrap_fcntl(int fd, int what, long with)
{
	return what == F_DUPFD_CLOEXEC && fails(&failing.fcntl, EMFILE)
		       ? -1
		       : __real_fcntl(fd, what, with);
}

int __real_sd_event_add_io(sd_event *loop, sd_event_source **ret, int fd, uint32_t events,
			   sd_event_io_handler_t fn, void *userdata);
int __wrap_sd_event_add_io(sd_event *loop, sd_event_source **ret, int fd, uint32_t events,
			   sd_event_io_handler_t fn, void *userdata);
int __wrap_sd_event_add_io(sd_event *loop, sd_event_source **ret, int fd, uint32_t events,
			   sd_event_io_handler_t fn, void *userdata)
{
	return fails(&failing.io, 0) ? -EMFILE
				     : __real_sd_event_add_io(loop, ret, fd, events, fn, userdata);
}

int __real_sd_event_add_defer(sd_event *loop, sd_event_source **ret, sd_event_handler_t fn,
			      void *userdata);
int __wrap_sd_event_add_defer(sd_event *loop, sd_event_source **ret, sd_event_handler_t fn,
			      void *userdata);
int __wrap_sd_event_add_defer(sd_event *loop, sd_event_source **ret, sd_event_handler_t fn,
			      void *userdata)
{
	return fails(&failing.defer, 0) ? -ENOMEM
					: __real_sd_event_add_defer(loop, ret, fn, userdata);
}

/* This program as the executor: it never gets ready, and leaves with its broker. */
static int be_executor(void)
{
	static char bytes[1 << 16];

	while (recv(CONTROL_FD, bytes, sizeof(bytes), 0) > 0)
		;
	return 0;
}

static void on_nothing(void *userdata)
{
	(void)userdata;
}

static int try_engine(struct watch *w, struct err *err)
{
	const struct engine_options options = { .settings = &w->settings,
						.program = "/proc/self/exe",
						.on_state = on_nothing,
						.on_applied = on_nothing,
						.userdata = w };
	const int r = engine_new(w->loop, &options, w->model, &w->engine, err);

	manager_read(&w->manager);
	return r;
}

static void open_engine(struct watch *w)
{
	struct err err = { 0 };

	if (try_engine(w, &err) < 0)
		fail_msg("%s", err.text);
}

static void begin(struct watch *w)
{
	const char *src = getenv("srcdir");
	char dir[512];

	memset(w, 0, sizeof(*w));
	snprintf(dir, sizeof(dir), "%s/tests/golden/air", src ? src : ".");
	setenv(EXECUTOR, "1", 1);
	manager_open(&w->manager);
	assert_int_equal(settings_init(&w->settings), 0);
	assert_int_equal(settings_set(&w->settings, "KVCacheSize=64M", "test", NULL), 0);
	assert_int_equal(sd_event_new(&w->loop), 0);
	assert_int_equal(textmodel_open(dir, &w->model, NULL), 0);
	open_engine(w);
}

/* The broker dies, and another one has got what the manager has, but for @lost; NULL: all. */
static void die(struct watch *w, const char *lost)
{
	char **names;
	int *fds;

	w->engine = engine_free(w->engine, false);
	manager_read(&w->manager);
	if (lost)
		manager_forget(&w->manager, lost);
	names = calloc((size_t)w->manager.n, sizeof(*names));
	fds = calloc((size_t)w->manager.n, sizeof(*fds));
	assert_true(names && fds);
	for (int i = 0; i < w->manager.n; i++) {
		names[i] = strdup(w->manager.names[i]);
		fds[i] = fcntl(w->manager.fds[i], F_DUPFD_CLOEXEC, 3);
	}
	fdstore_receive(names, fds, w->manager.n);
}

static void restart(struct watch *w, const char *lost)
{
	die(w, lost);
	open_engine(w);
}

static bool is_stored(const struct watch *w, const char *name)
{
	_cleanup_(closep) int fd = manager_get(&w->manager, name);

	return fd >= 0;
}

static void finish(struct watch *w)
{
	engine_free(w->engine, true);
	manager_close(&w->manager);
	while (waitpid(-1, NULL, WNOHANG) == 0)
		sd_event_run(w->loop, 10000);
	textmodel_free(w->model);
	settings_deinit(&w->settings);
	sd_event_unref(w->loop);
	unsetenv(EXECUTOR);
}

static void all_that_was_left_is_taken_over(void **state)
{
	struct watch w;
	pid_t pid;

	(void)state;
	begin(&w);
	pid = executor_pid(w.engine->executor);
	restart(&w, NULL);
	assert_true(w.engine->adopted);
	assert_true(executor_is_adopted(w.engine->executor));
	assert_int_equal(executor_pid(w.engine->executor), pid);
	finish(&w);
}

/* Nobody would know whether it is ready: it would be waited for without end. */
static void an_executor_without_a_record_is_followed_by_another(void **state)
{
	struct watch w;
	pid_t pid;

	(void)state;
	begin(&w);
	pid = executor_pid(w.engine->executor);
	restart(&w, "exec-ready");
	assert_false(executor_is_adopted(w.engine->executor));
	assert_true(executor_pid(w.engine->executor) != pid);
	assert_true(w.engine->adopted); /* turns, and their pages, go on with it */
	assert_true(is_stored(&w, "exec-ready"));
	finish(&w);
}

static void a_record_that_cannot_be_written_is_none(void **state)
{
	struct watch w;

	(void)state;
	failing_bytes = sizeof(struct execrecord);
	begin(&w);
	assert_int_equal(failing_bytes, 0);
	assert_false(is_stored(&w, "exec-ready"));
	assert_true(is_stored(&w, "exec-ctl"));
	finish(&w);
}

static void a_configuration_that_cannot_be_stored_costs_the_next_broker_its_start(void **state)
{
	struct watch w;
	pid_t pid;

	(void)state;
	failing_bytes = sizeof(struct control_configure);
	begin(&w);
	assert_int_equal(failing_bytes, 0);
	assert_false(is_stored(&w, "exec-config"));
	pid = executor_pid(w.engine->executor);
	restart(&w, NULL);
	assert_false(w.engine->adopted);
	assert_false(executor_is_adopted(w.engine->executor));
	assert_true(executor_pid(w.engine->executor) != pid);
	assert_true(is_stored(&w, "exec-config"));
	finish(&w);
}

/* Which memory the manager has under each name: the numbers of the files. */
struct memory {
	ino_t arena, kvdir, turns, causes, ring, control;
};

static ino_t stored_inode(const struct watch *w, const char *name)
{
	_cleanup_(closep) int fd = manager_get(&w->manager, name);
	struct stat st;

	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	return st.st_ino;
}

static struct memory stored_memory(const struct watch *w)
{
	return (struct memory){
		stored_inode(w, "arena"),  stored_inode(w, "kvdir"), stored_inode(w, "turns"),
		stored_inode(w, "causes"), stored_inode(w, "ring"),  stored_inode(w, "exec-ctl"),
	};
}

/* Each call of one kind fails once, in a broker of its own; returns how many starts failed. */
static uint32_t fail_each(struct watch *w, uint32_t *which)
{
	const pid_t pid = executor_pid(w->engine->executor);
	const struct memory memory = stored_memory(w);
	uint32_t n_failed = 0;

	for (uint32_t n = 1;; n++) {
		struct err err = { 0 };
		struct memory now;
		bool came;
		int r;

		die(w, NULL);
		*which = n;
		r = try_engine(w, &err);
		came = *which == 0;
		*which = 0;
		now = stored_memory(w);
		assert_memory_equal(&now, &memory, sizeof(now));
		if (r < 0) {
			n_failed++;
			assert_true(err_may_pass(r));
			assert_true(err.text[0]);
			assert_int_equal(kill(pid, 0), 0);
			open_engine(w); /* the same broker, another time */
		}
		assert_true(w->engine->adopted);
		assert_true(executor_is_adopted(w->engine->executor));
		assert_int_equal(executor_pid(w->engine->executor), pid);
		now = stored_memory(w);
		assert_memory_equal(&now, &memory, sizeof(now));
		if (!came)
			return n_failed;
	}
}

static void what_was_left_is_kept_where_taking_it_over_fails(void **state)
{
	struct watch w;

	(void)state;
	begin(&w);
	assert_true(fail_each(&w, &failing.calloc) > 5);
	assert_true(fail_each(&w, &failing.mmap) >= 4);
	assert_true(fail_each(&w, &failing.pread) >= 6);
	assert_true(fail_each(&w, &failing.fcntl) >= 9);
	assert_true(fail_each(&w, &failing.io) >= 2);
	assert_true(fail_each(&w, &failing.defer) >= 2);
	finish(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_that_was_left_is_taken_over),
		cmocka_unit_test(an_executor_without_a_record_is_followed_by_another),
		cmocka_unit_test(a_record_that_cannot_be_written_is_none),
		cmocka_unit_test(
			a_configuration_that_cannot_be_stored_costs_the_next_broker_its_start),
		cmocka_unit_test(what_was_left_is_kept_where_taking_it_over_fails),
	};

	if (getenv(EXECUTOR))
		return be_executor();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
