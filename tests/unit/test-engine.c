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
#include <sys/syscall.h>
#include <sys/wait.h>

#include "client/wire/control.h"
#include "client/wire/ownership.h"
#include "daemon/base/fdstore.h"
#include "daemon/sched/executor.h"
#include "daemon/server/textmodel.h"
#include "tests/unit/manager.h"

#define EXECUTOR "STEAMD_TEST_EXECUTOR"
#define FIRST_FD 3
#define N_FDS 12

struct watch {
	sd_event *loop;
	struct settings settings;
	struct textmodel *model;
	struct engine *engine;
	struct manager manager;
};

static size_t failing_bytes; /* the next pwrite() of so many fails */

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

static void open_engine(struct watch *w)
{
	const struct engine_options options = { .settings = &w->settings,
						.program = "/proc/self/exe",
						.on_state = on_nothing,
						.on_applied = on_nothing,
						.userdata = w };
	struct err err = { 0 };

	if (engine_new(w->loop, &options, w->model, &w->engine, &err) < 0)
		fail_msg("%s", err.text);
	manager_read(&w->manager);
}

static void begin(struct watch *w)
{
	const char *src = getenv("srcdir");
	char dir[512];

	memset(w, 0, sizeof(*w));
	snprintf(dir, sizeof(dir), "%s/tests/golden/air", src ? src : ".");
	setenv(EXECUTOR, "1", 1);
	while (dup(STDOUT_FILENO) < FIRST_FD + N_FDS - 1)
		; /* the numbers that a manager passes descriptors under */
	manager_open(&w->manager);
	assert_int_equal(settings_init(&w->settings), 0);
	assert_int_equal(settings_set(&w->settings, "KVCacheSize=64M", "test", NULL), 0);
	assert_int_equal(sd_event_new(&w->loop), 0);
	assert_int_equal(textmodel_open(dir, &w->model, NULL), 0);
	open_engine(w);
}

/* The broker dies and begins again with what the manager has, but for @lost; NULL: with all. */
static void restart(struct watch *w, const char *lost)
{
	char names[512] = "", number[16];
	int high[MANAGER_FDS_MAX], n;

	w->engine = engine_free(w->engine, false);
	manager_read(&w->manager);
	if (lost)
		manager_forget(&w->manager, lost);
	n = w->manager.n;
	assert_in_range(n, 1, N_FDS);
	for (int i = 0; i < n; i++)
		high[i] = fcntl(w->manager.fds[i], F_DUPFD_CLOEXEC, 200);
	for (int i = 0; i < n; i++) {
		assert_int_equal(dup2(high[i], FIRST_FD + i), FIRST_FD + i);
		close(high[i]);
		strcat(strcat(names, i ? ":" : ""), w->manager.names[i]);
	}
	snprintf(number, sizeof(number), "%d", n);
	setenv("LISTEN_FDS", number, 1);
	setenv("LISTEN_FDNAMES", names, 1);
	snprintf(number, sizeof(number), "%d", (int)getpid());
	setenv("LISTEN_PID", number, 1);
	fdstore_init();
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
	for (int fd = FIRST_FD; fd < FIRST_FD + N_FDS; fd++)
		close(fd);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_that_was_left_is_taken_over),
		cmocka_unit_test(an_executor_without_a_record_is_followed_by_another),
		cmocka_unit_test(a_record_that_cannot_be_written_is_none),
		cmocka_unit_test(
			a_configuration_that_cannot_be_stored_costs_the_next_broker_its_start),
	};

	if (getenv(EXECUTOR))
		return be_executor();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
