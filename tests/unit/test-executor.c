/* The executor's life, with this program itself as the executor in several moods. */
#include "daemon/sched/executor.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "client/wire/ownership.h"
#include "tests/unit/manager.h"

#define MOOD "STEAMD_TEST_MOOD"

struct watch {
	sd_event *loop;
	struct executor *executor;
	int arena_fd;
	uint32_t n_results, worst_percent;
	char texts[1024]; /* why it died, each time */
};

/* Besides the control socket; what the test was started with goes on to its children. */
static uint32_t inherited_descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *entry;
	uint32_t n = 0;

	while (d && (entry = readdir(d))) {
		const int fd = atoi(entry->d_name);

		n += entry->d_name[0] != '.' && fd != dirfd(d) && fd != CONTROL_FD &&
		     !(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	}
	closedir(d);
	return n;
}

/* What the other side does. */
static int be_executor(const char *mood)
{
	const struct control_progress progress = { .kind = CONTROL_PROGRESS, .percent = 43 };
	struct control_refused refused = { .kind = CONTROL_REFUSED, .error = -EBADMSG };
	struct control_ready ready = { .kind = CONTROL_READY,
				       .n_threads = inherited_descriptors() };
	struct control_configure configure;
	char byte;

	if (strcmp(mood, "dies") == 0)
		return 7;
	if (recv(CONTROL_FD, &configure, sizeof(configure), 0) != sizeof(configure))
		return 1;
	snprintf(ready.device, sizeof(ready.device), "%.40s", configure.model);
	snprintf(ready.isa, sizeof(ready.isa), "%s", getenv("NOTIFY_SOCKET") ? "told" : "untold");
	if (strcmp(mood, "refuses") == 0) {
		snprintf(refused.text, sizeof(refused.text), "config.json: no such key");
		send(CONTROL_FD, &refused, sizeof(refused), 0);
		return 78;
	}
	if (strcmp(mood, "lacks") == 0) {
		refused.error = -ENOSPC;
		snprintf(refused.text, sizeof(refused.text), "no room for 900 bytes");
		send(CONTROL_FD, &refused, sizeof(refused), 0);
		return 71;
	}
	if (strcmp(mood, "babbles") == 0)
		send(CONTROL_FD, "?", 1, 0);
	send(CONTROL_FD, &progress, sizeof(progress), 0);
	send(CONTROL_FD, &ready, sizeof(ready), 0);
	recv(CONTROL_FD, &byte, 1, 0);
	return 70;
}

static void on_state(struct executor *e, void *userdata)
{
	struct watch *w = userdata;

	w->worst_percent = MAX(w->worst_percent, executor_progress(e)->percent);
	if (executor_state(e) == EXECUTOR_BACKOFF &&
	    strlen(w->texts) + strlen(executor_text(e)) + 2 < sizeof(w->texts))
		strcat(strcat(w->texts, executor_text(e)), ";");
}

static void on_results(struct executor *e, void *userdata)
{
	(void)e;
	((struct watch *)userdata)->n_results++;
}

static struct executor_options options_of(struct watch *w)
{
	struct executor_options o = {
		.program = "/proc/self/exe",
		.arena_fd = w->arena_fd,
		.configure = { .kind = CONTROL_CONFIGURE,
			       .version = CONTROL_VERSION,
			       .model = "/m" },
		.on_state = on_state,
		.on_results = on_results,
		.userdata = w,
	};

	return o;
}

static void begin(struct watch *w, const char *mood, const char *program, const char *unit_socket)
{
	struct executor_options o;
	struct err err = { 0 };

	memset(w, 0, sizeof(*w));
	setenv(MOOD, mood, 1);
	w->arena_fd = memfd_create("arena", MFD_CLOEXEC);
	assert_int_equal(sd_event_new(&w->loop), 0);
	o = options_of(w);
	if (program)
		o.program = program;
	o.unit_socket = unit_socket;
	assert_int_equal(executor_new(w->loop, &o, &w->executor, &err), 0);
	assert_int_equal(executor_start(w->executor, NULL, &err), 0);
}

static void finish(struct watch *w)
{
	executor_free(w->executor);
	/* children without an owner are reaped by the loop */
	while (waitpid(-1, NULL, WNOHANG) == 0)
		sd_event_run(w->loop, 100000);
	sd_event_unref(w->loop);
	close(w->arena_fd);
	unsetenv(MOOD);
}

static void run_until(struct watch *w, enum executor_state state, uint32_t deaths)
{
	while (executor_state(w->executor) != state || executor_deaths(w->executor) != deaths)
		assert_true(sd_event_run(w->loop, 10000000) > 0);
	while (sd_event_run(w->loop, 0) > 0)
		;
}

static void a_forked_executor_is_configured_and_becomes_ready(void **state)
{
	struct watch w;
	pid_t pid;

	(void)state;
	begin(&w, "serves", NULL, NULL);
	assert_int_equal(executor_state(w.executor), EXECUTOR_LOADING);
	assert_null(executor_ring(w.executor));
	run_until(&w, EXECUTOR_READY, 0);
	assert_int_equal(w.worst_percent, 43);
	assert_string_equal(executor_ready(w.executor)->device, "/m");
	assert_string_equal(executor_ready(w.executor)->isa, "untold");
	assert_int_equal(executor_ready(w.executor)->n_threads,
			 inherited_descriptors()); /* none of the broker's own */
	assert_non_null(executor_ring(w.executor));
	assert_int_equal(executor_generation(w.executor), 1);
	pid = executor_pid(w.executor);
	assert_int_equal(kill(pid, 0), 0);
	finish(&w);
	assert_int_equal(kill(pid, 0), -1); /* it saw the end of the file, and was reaped */
}

static void a_killed_executor_is_started_again_at_once(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "serves", NULL, NULL);
	run_until(&w, EXECUTOR_READY, 0);
	kill(executor_pid(w.executor), SIGKILL);
	run_until(&w, EXECUTOR_READY, 1);
	assert_string_equal(w.texts, "the executor was killed by signal 9;");
	assert_string_equal(executor_text(w.executor), "");
	assert_int_equal(executor_generation(w.executor), 2);
	executor_proved(w.executor);
	assert_int_equal(executor_deaths(w.executor), 0);
	finish(&w);
}

static void one_that_dies_again_and_again_is_given_time(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "dies", NULL, NULL);
	run_until(&w, EXECUTOR_BACKOFF, 3);
	assert_string_equal(w.texts, "the executor exited with status 7;"
				     "the executor exited with status 7;"
				     "the executor exited with status 7;");
	assert_in_range(executor_retry_us(w.executor), 1, 1000000);
	setenv(MOOD, "serves", 1);
	assert_int_equal(executor_start(w.executor, NULL, NULL), 0); /* somebody wants it now */
	run_until(&w, EXECUTOR_READY, 0);
	assert_int_equal(executor_retry_us(w.executor), 0);
	finish(&w);
}

static void a_refusal_is_told_and_final(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "refuses", NULL, NULL);
	run_until(&w, EXECUTOR_REFUSED, 0);
	assert_string_equal(executor_text(w.executor), "config.json: no such key");
	assert_int_equal(executor_retry_us(w.executor), 0);
	assert_string_equal(executor_state_name(executor_state(w.executor)), "model-refused");
	finish(&w);
}

/* Of a model that was never served, too. */
static void what_may_pass_is_no_refusal(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "lacks", NULL, NULL);
	run_until(&w, EXECUTOR_BACKOFF, 3);
	assert_string_equal(executor_text(w.executor), "no room for 900 bytes");
	setenv(MOOD, "serves", 1); /* there is some now */
	run_until(&w, EXECUTOR_READY, 3);
	finish(&w);
}

static void a_packet_of_no_kind_is_a_death(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "babbles", NULL, NULL);
	run_until(&w, EXECUTOR_BACKOFF, 3);
	assert_non_null(strstr(w.texts, "sent a packet that is not of this version of steamd"));
	finish(&w);
}

static void a_program_that_is_not_there_is_named(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "serves", "/nowhere/steamd-exec", NULL);
	run_until(&w, EXECUTOR_BACKOFF, 3);
	assert_non_null(strstr(w.texts, "cannot start '/nowhere/steamd-exec': No such file"));
	finish(&w);
}

static void a_unit_that_is_not_there_is_named(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "serves", NULL, "/nowhere/exec.sock");
	run_until(&w, EXECUTOR_BACKOFF, 3);
	assert_non_null(
		strstr(w.texts, "cannot reach the executor at '/nowhere/exec.sock': No such"));
	finish(&w);
}

static void a_failed_executor_is_killed_and_replaced(void **state)
{
	struct watch w;
	pid_t pid;

	(void)state;
	begin(&w, "serves", NULL, NULL);
	run_until(&w, EXECUTOR_READY, 0);
	pid = executor_pid(w.executor);
	executor_fail(w.executor, "step 3 failed");
	run_until(&w, EXECUTOR_READY, 1);
	assert_true(executor_pid(w.executor) != pid);
	assert_string_equal(w.texts, "step 3 failed;");
	finish(&w);
}

static void the_bell_asks_for_results(void **state)
{
	const uint64_t one = 1;
	struct watch w;
	uint32_t before;

	(void)state;
	begin(&w, "serves", NULL, NULL);
	run_until(&w, EXECUTOR_READY, 0);
	before = w.n_results;
	assert_int_equal(write(executor_ring(w.executor)->up_fd, &one, sizeof(one)), sizeof(one));
	while (sd_event_run(w.loop, 0) > 0)
		;
	assert_int_equal(w.n_results, before + 1);
	executor_stop(w.executor);
	assert_int_equal(executor_state(w.executor), EXECUTOR_OFF);
	assert_null(executor_ring(w.executor));
	finish(&w);
}

static void a_parked_executor_outlives_its_broker(void **state)
{
	struct manager m;
	struct executor_options o;
	struct ring ring;
	struct err err = { 0 };
	struct watch w;
	pid_t pid;

	(void)state;
	manager_open(&m);
	begin(&w, "serves", NULL, NULL);
	run_until(&w, EXECUTOR_READY, 0);
	manager_read(&m);
	assert_non_null(strstr(m.log, "FDNAME=ring\nFDPOLL=0\n"));
	assert_non_null(strstr(m.log, "FDNAME=exec-ctl\n"));
	assert_null(strstr(m.log, "FDNAME=exec-ctl\nFDPOLL=0")); /* a dead one leaves the store */
	assert_int_equal(m.n, 5);
	pid = executor_pid(w.executor);
	executor_free(w.executor);
	w.executor = NULL;
	assert_int_equal(kill(pid, 0), 0);

	o = options_of(&w);
	assert_int_equal(executor_new(w.loop, &o, &w.executor, &err), 0);
	assert_int_equal(ring_map(manager_get(&m, "ring"), manager_get(&m, "ring-down"),
				  manager_get(&m, "ring-up"), &ring, &err),
			 0);
	assert_int_equal(executor_recall(w.executor, manager_get(&m, "exec-ready")), 0);
	assert_int_equal(executor_adopt(w.executor, manager_get(&m, "exec-ctl"), &ring, &err), 0);
	assert_true(executor_is_adopted(w.executor));
	assert_int_equal(executor_generation(w.executor), 1);

	executor_stop(w.executor); /* a parked one too */
	manager_read(&m);
	assert_int_equal(m.n, 0);
	finish(&w);
	assert_int_equal(kill(pid, 0), -1);
	manager_close(&m);
}

/* Nothing would ever come from it. */
static void what_is_no_socket_is_not_adopted(void **state)
{
	struct executor_options o;
	struct watch w = { 0 };
	struct err err = { 0 };
	struct ring ring;
	int ends[2];

	(void)state;
	assert_int_equal(sd_event_new(&w.loop), 0);
	w.arena_fd = memfd_create("arena", MFD_CLOEXEC);
	o = options_of(&w);
	assert_int_equal(executor_new(w.loop, &o, &w.executor, &err), 0);
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	assert_int_equal(ring_new(&ring, &err), 0);
	assert_int_equal(executor_adopt(w.executor, ends[0], &ring, &err), -EBADMSG);
	assert_string_equal(err.text, "what was stored is no executor's socket");
	assert_int_equal(executor_state(w.executor), EXECUTOR_OFF);
	assert_int_equal(close(ends[0]), -1); /* closed with the rest */
	close(ends[1]);
	finish(&w);
}

static void one_that_is_gone_is_not_adopted(void **state)
{
	struct executor_options o;
	struct watch w = { 0 };
	struct err err = { 0 };
	struct ring ring;
	int pair[2];

	(void)state;
	assert_int_equal(sd_event_new(&w.loop), 0);
	w.arena_fd = memfd_create("arena", MFD_CLOEXEC);
	o = options_of(&w);
	assert_int_equal(executor_new(w.loop, &o, &w.executor, &err), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	close(pair[1]);
	assert_int_equal(ring_new(&ring, &err), 0);
	assert_int_equal(executor_adopt(w.executor, pair[0], &ring, &err), -EPIPE);
	assert_string_equal(err.text, "the executor is gone");
	assert_int_equal(executor_state(w.executor), EXECUTOR_OFF);
	assert_int_equal(close(pair[0]), -1); /* closed with the rest */
	finish(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_forked_executor_is_configured_and_becomes_ready),
		cmocka_unit_test(a_killed_executor_is_started_again_at_once),
		cmocka_unit_test(one_that_dies_again_and_again_is_given_time),
		cmocka_unit_test(a_refusal_is_told_and_final),
		cmocka_unit_test(what_may_pass_is_no_refusal),
		cmocka_unit_test(a_packet_of_no_kind_is_a_death),
		cmocka_unit_test(a_program_that_is_not_there_is_named),
		cmocka_unit_test(a_unit_that_is_not_there_is_named),
		cmocka_unit_test(a_failed_executor_is_killed_and_replaced),
		cmocka_unit_test(the_bell_asks_for_results),
		cmocka_unit_test(a_parked_executor_outlives_its_broker),
		cmocka_unit_test(one_that_is_gone_is_not_adopted),
		cmocka_unit_test(what_is_no_socket_is_not_adopted),
	};
	const char *mood = getenv(MOOD);

	if (mood)
		return be_executor(mood);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
