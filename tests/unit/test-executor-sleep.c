/*
 * Sleep as the broker's executor object does it, with this program itself as
 * the executor: orders, deaths in between, and brokers that come and go.
 */
#include "daemon/sched/executor.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <cmocka.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "client/wire/ownership.h"
#include "daemon/base/fdstore.h"
#include "tests/unit/manager.h"

#define MOOD "STEAMD_TEST_MOOD"
#define FIRST_FD 3

struct watch {
	sd_event *loop;
	struct executor *executor;
	int arena_fd;
	struct manager manager;
	uint32_t n_results, n_taken, n_seen;
};

static const uint8_t fingerprint[CONTROL_FINGERPRINT_BYTES] = "the model, once";

static uint64_t pool_bytes; /* of the executor */

static void tell_ready(void)
{
	struct control_ready ready = { .kind = CONTROL_READY,
				       .weight_bytes = 900,
				       .resident_bytes = 1000,
				       .pool = { pool_bytes, 40, 400, 20 } };

	memcpy(ready.fingerprint, fingerprint, sizeof(ready.fingerprint));
	send(CONTROL_FD, &ready, sizeof(ready), 0);
}

static void tell_seen(void)
{
	struct control_seen seen = { .kind = CONTROL_SEEN, .n_ranks = 2, .n_regions = 1000 };

	memset(seen.map, '#', sizeof(seen.map)); /* without an end */
	for (; seen.rank < 2; seen.rank++) {
		seen.temperature_c = 50 + seen.rank;
		send(CONTROL_FD, &seen, sizeof(seen), 0);
	}
}

static void tell_pooled(uint64_t bytes)
{
	struct control_pooled pooled = { .kind = CONTROL_POOLED };

	pool_bytes = bytes ? bytes : 400;
	pooled.resident_bytes = 600 + pool_bytes;
	pooled.pool = (struct control_pool){ pool_bytes, 40, 400, 20 };
	send(CONTROL_FD, &pooled, sizeof(pooled), 0);
}

/*
 * Moods: "sleeps"; "deaf": dies of the order to wake; "slow": never parks;
 * "changed", "poor": will not serve again what was served before.
 */
static int be_executor(const char *mood)
{
	const struct control_parked parked = { .kind = CONTROL_PARKED,
					       .freed_bytes = 900,
					       .resident_bytes = 100 };
	struct control_refused refused = { .kind = CONTROL_REFUSED };
	struct control_configure configure;
	struct control_order order;

	if (recv(CONTROL_FD, &configure, sizeof(configure), 0) != sizeof(configure))
		return 1;
	pool_bytes = configure.pool_bytes ? configure.pool_bytes : 400;
	if (strcmp(mood, "changed") == 0 && configure.fingerprint[0] &&
	    memcmp(configure.fingerprint, fingerprint, sizeof(fingerprint)) == 0) {
		refused.error = -ESTALE;
		snprintf(refused.text, sizeof(refused.text), "another model");
		send(CONTROL_FD, &refused, sizeof(refused), 0);
		return 65;
	}
	if (strcmp(mood, "poor") == 0 && configure.fingerprint[0]) {
		refused.error = -ENOMEM;
		snprintf(refused.text, sizeof(refused.text), "no memory for 900 bytes of weights");
		send(CONTROL_FD, &refused, sizeof(refused), 0);
		return 71;
	}
	tell_ready();
	while (recv(CONTROL_FD, &order, sizeof(order), 0) == sizeof(order)) {
		if (order.kind == CONTROL_WAKE && strcmp(mood, "deaf") == 0)
			return 9;
		if (order.kind == CONTROL_WAKE)
			tell_ready();
		else if (order.kind == CONTROL_LOOK)
			tell_seen();
		else if (order.kind == CONTROL_POOL)
			tell_pooled(order.bytes);
		else if (strcmp(mood, "slow") != 0)
			send(CONTROL_FD, &parked, sizeof(parked), 0);
	}
	return 70;
}

static void on_results(struct executor *e, void *userdata)
{
	struct watch *w = userdata;

	w->n_results++;
	while (executor_ring(e) && ring_result(executor_ring(e), &(const void *){ NULL })) {
		ring_take(executor_ring(e));
		w->n_taken++;
	}
}

static void on_seen(struct executor *e, void *userdata)
{
	struct watch *w = userdata;

	assert_non_null(executor_seen(e, 1));
	w->n_seen++;
}

static void new_object(struct watch *w)
{
	const struct executor_options o = {
		.program = "/proc/self/exe",
		.arena_fd = w->arena_fd,
		.configure = { .kind = CONTROL_CONFIGURE, .version = CONTROL_VERSION },
		.on_results = on_results,
		.on_seen = on_seen,
		.userdata = w,
	};

	assert_int_equal(executor_new(w->loop, &o, &w->executor, NULL), 0);
}

static void run_until(struct watch *w, enum executor_state state)
{
	while (executor_state(w->executor) != state) {
		assert_true(sd_event_run(w->loop, 10000000) > 0);
		manager_read(&w->manager);
	}
	while (sd_event_run(w->loop, 0) > 0)
		manager_read(&w->manager);
	assert_int_equal(executor_state(w->executor), state);
}

static void begin(struct watch *w, const char *mood)
{
	memset(w, 0, sizeof(*w));
	setenv(MOOD, mood, 1);
	/* the numbers that a manager passes descriptors under are kept free for that */
	while (dup(STDOUT_FILENO) < FIRST_FD + 7)
		;
	manager_open(&w->manager);
	w->arena_fd = memfd_create("arena", MFD_CLOEXEC);
	assert_int_equal(sd_event_new(&w->loop), 0);
	new_object(w);
	assert_int_equal(executor_start(w->executor, NULL, NULL), 0);
	run_until(w, EXECUTOR_READY);
}

static void finish(struct watch *w)
{
	executor_stop(w->executor);
	executor_free(w->executor);
	while (waitpid(-1, NULL, WNOHANG) == 0)
		sd_event_run(w->loop, 100000);
	sd_event_unref(w->loop);
	manager_close(&w->manager);
	close(w->arena_fd);
	for (int fd = FIRST_FD; fd < FIRST_FD + 8; fd++)
		close(fd);
	unsetenv(MOOD);
}

/* What the manager stored is passed to the next broker, which is this process once more. */
static void pass_descriptors(struct watch *w)
{
	char names[512] = "", number[16];
	int high[MANAGER_FDS_MAX];

	for (int i = 0; i < w->manager.n; i++)
		high[i] = fcntl(w->manager.fds[i], F_DUPFD_CLOEXEC, 200);
	for (int i = 0; i < w->manager.n; i++) {
		assert_int_equal(dup2(high[i], FIRST_FD + i), FIRST_FD + i);
		close(high[i]);
		strcat(strcat(names, i ? ":" : ""), w->manager.names[i]);
	}
	snprintf(number, sizeof(number), "%d", w->manager.n);
	setenv("LISTEN_FDS", number, 1);
	setenv("LISTEN_FDNAMES", names, 1);
	snprintf(number, sizeof(number), "%d", (int)getpid());
	setenv("LISTEN_PID", number, 1);
	fdstore_init();
}

/* The broker goes and comes back; @state is where the executor is then. Once a test. */
static void restart_broker(struct watch *w, enum executor_state state)
{
	const pid_t pid = executor_pid(w->executor);
	struct err err = { 0 };
	struct ring ring;
	int control_fd;

	manager_read(&w->manager);
	w->executor = executor_free(w->executor);
	new_object(w);
	pass_descriptors(w);
	assert_int_equal(executor_recall(w->executor, fdstore_take("exec-ready")), 0);
	control_fd = fdstore_take("exec-ctl");
	if (control_fd < 0) {
		assert_int_equal(executor_adopt_gone(w->executor), 0);
	} else {
		assert_int_equal(ring_map(fdstore_take("ring"), fdstore_take("ring-down"),
					  fdstore_take("ring-up"), &ring, &err),
				 0);
		assert_int_equal(executor_adopt(w->executor, control_fd, &ring, &err), 0);
		assert_int_equal(executor_pid(w->executor), pid);
	}
	fdstore_discard_rest(NULL);
	assert_int_equal(executor_state(w->executor), state);
}

static void run_until_resized(struct watch *w)
{
	while (executor_is_resizing(w->executor))
		assert_true(sd_event_run(w->loop, 10000000) > 0);
}

/* Over its sleep, over its death, and over a new broker. */
static void the_pool_is_what_was_ordered_last(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "sleeps");
	assert_int_equal(executor_known(w.executor)->pool.bytes, 400);
	executor_set_pool(w.executor, 300);
	assert_true(executor_is_resizing(w.executor));
	assert_int_equal(executor_park(w.executor), -EAGAIN); /* one order after the other */
	executor_set_pool(w.executor, 200);
	run_until_resized(&w);
	assert_int_equal(executor_known(w.executor)->pool.bytes, 200);
	assert_int_equal(executor_known(w.executor)->resident_bytes, 800);

	assert_int_equal(executor_park(w.executor), 0);
	run_until(&w, EXECUTOR_PARKED);
	executor_set_pool(w.executor, 100);
	executor_wake(w.executor); /* after the answer */
	run_until(&w, EXECUTOR_READY);
	assert_int_equal(executor_known(w.executor)->pool.bytes, 100);

	assert_int_equal(executor_leave(w.executor), 0);
	run_until(&w, EXECUTOR_GONE);
	executor_wake(w.executor);
	run_until(&w, EXECUTOR_READY);
	assert_int_equal(executor_known(w.executor)->pool.bytes, 100);

	restart_broker(&w, EXECUTOR_READY);
	executor_set_pool(w.executor, 100);
	assert_false(executor_is_resizing(w.executor)); /* it knows */
	executor_set_pool(w.executor, 0);
	run_until_resized(&w);
	assert_int_equal(executor_known(w.executor)->pool.bytes, 400);
	finish(&w);
}

static void what_is_seen_is_told_once_and_with_its_bounds(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "sleeps");
	assert_null(executor_seen(w.executor, 0)); /* nobody asked */
	assert_int_equal(executor_look(w.executor), 0);
	while (w.n_seen == 0)
		assert_true(sd_event_run(w.loop, 10000000) > 0);
	assert_int_equal(w.n_seen, 1);
	assert_int_equal(executor_seen(w.executor, 1)->temperature_c, 51);
	assert_int_equal(executor_seen(w.executor, 0)->n_regions, CONTROL_REGIONS_MAX);
	assert_int_equal(strlen(executor_seen(w.executor, 0)->map), CONTROL_MAP_MAX);
	assert_null(executor_seen(w.executor, 2));
	assert_int_equal(executor_look(w.executor), 0);
	assert_null(executor_seen(w.executor, 0)); /* that was then */

	/* one that does not come to look is asked once, however many want to know */
	assert_int_equal(kill(executor_pid(w.executor), SIGSTOP), 0);
	for (int i = 0; i < 10000; i++)
		assert_int_equal(executor_look(w.executor), 0);
	assert_int_equal(kill(executor_pid(w.executor), SIGCONT), 0);
	while (w.n_seen == 1)
		assert_true(sd_event_run(w.loop, 10000000) > 0);
	assert_non_null(executor_seen(w.executor, 1));
	assert_int_equal(executor_look(w.executor), 0);
	executor_stop(w.executor);
	assert_int_equal(executor_look(w.executor), -EAGAIN);
	finish(&w);
}

static void parked_and_awake_again_it_is_the_same_process(void **state)
{
	struct watch w;
	pid_t pid;

	(void)state;
	begin(&w, "sleeps");
	pid = executor_pid(w.executor);
	assert_int_equal(executor_park(w.executor), 0);
	assert_int_equal(executor_state(w.executor), EXECUTOR_PARKING);
	assert_non_null(executor_ring(w.executor)); /* for the last results */
	assert_true(executor_is_dying(w.executor)); /* and for nothing new */
	assert_int_equal(executor_park(w.executor), -EAGAIN);
	run_until(&w, EXECUTOR_PARKED);
	assert_null(executor_ring(w.executor));
	assert_null(executor_ready(w.executor));
	assert_int_equal(executor_known(w.executor)->weight_bytes, 900);
	assert_int_equal(executor_record(w.executor)->parked.freed_bytes, 900);
	assert_int_equal(executor_record(w.executor)->parked.return_us, 0); /* not measured yet */
	executor_wake(w.executor);
	assert_int_equal(executor_state(w.executor), EXECUTOR_LOADING);
	run_until(&w, EXECUTOR_READY);
	assert_true(executor_record(w.executor)->parked.return_us > 0);
	assert_int_equal(executor_pid(w.executor), pid);
	assert_int_equal(executor_generation(w.executor), 1);
	assert_int_equal(executor_deaths(w.executor), 0);
	finish(&w);
}

static void one_that_is_gone_comes_back_as_another_process(void **state)
{
	struct watch w;
	pid_t pid;

	(void)state;
	begin(&w, "sleeps");
	pid = executor_pid(w.executor);
	assert_int_equal(executor_record(w.executor)->gone.freed_bytes, 1000);
	assert_true(executor_record(w.executor)->gone.return_us > 0); /* the first load */
	assert_int_equal(executor_leave(w.executor), 0);
	assert_int_equal(executor_state(w.executor), EXECUTOR_GONE);
	while (kill(pid, 0) == 0)
		sd_event_run(w.loop, 100000);
	assert_int_equal(executor_leave(w.executor), 0);
	executor_wake(w.executor);
	run_until(&w, EXECUTOR_READY);
	assert_true(executor_pid(w.executor) != pid);
	assert_int_equal(executor_generation(w.executor), 2);
	assert_int_equal(executor_deaths(w.executor), 0);
	finish(&w);
}

static void wanted_while_it_parks_it_wakes_when_it_is_parked(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "sleeps");
	assert_int_equal(executor_park(w.executor), 0);
	executor_wake(w.executor);
	assert_int_equal(executor_state(w.executor), EXECUTOR_PARKING);
	run_until(&w, EXECUTOR_READY);
	assert_true(executor_record(w.executor)->parked.return_us > 0);
	finish(&w);
}

static void wanted_again_before_it_left_it_stays(void **state)
{
	struct watch w;
	pid_t pid;

	(void)state;
	begin(&w, "sleeps");
	pid = executor_pid(w.executor);
	assert_int_equal(executor_park(w.executor), 0);
	assert_int_equal(executor_leave(w.executor), 0);
	executor_wake(w.executor);
	run_until(&w, EXECUTOR_READY);
	assert_int_equal(executor_pid(w.executor), pid);
	finish(&w);
}

static void parked_it_may_leave_and_parking_too(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "sleeps");
	assert_int_equal(executor_park(w.executor), 0);
	assert_int_equal(executor_leave(w.executor), 0);
	run_until(&w, EXECUTOR_GONE);
	executor_wake(w.executor);
	run_until(&w, EXECUTOR_READY);
	assert_int_equal(executor_park(w.executor), 0);
	run_until(&w, EXECUTOR_PARKED);
	assert_int_equal(executor_leave(w.executor), 0);
	assert_int_equal(executor_state(w.executor), EXECUTOR_GONE);
	finish(&w);
}

static void a_load_that_nobody_wants_any_more_is_ended(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "sleeps");
	executor_leave(w.executor);
	executor_wake(w.executor);
	assert_int_equal(executor_state(w.executor), EXECUTOR_LOADING);
	assert_int_equal(executor_leave(w.executor), 0);
	assert_int_equal(executor_state(w.executor), EXECUTOR_GONE);
	executor_wake(w.executor);
	run_until(&w, EXECUTOR_READY);
	finish(&w);
}

static void steps_in_flight_are_over_before_it_leaves(void **state)
{
	struct step step = { .kind = STEP_DECODE, .n_rows = 1 };
	struct ring shared;
	struct watch w;

	(void)state;
	begin(&w, "sleeps");
	assert_non_null(ring_stage(executor_ring(w.executor)));
	ring_push(executor_ring(w.executor), &step);
	shared = *executor_ring(w.executor);
	assert_int_equal(executor_leave(w.executor), 0);
	assert_int_equal(executor_state(w.executor), EXECUTOR_LEAVING);
	assert_true(executor_is_dying(w.executor));
	while (sd_event_run(w.loop, 0) > 0)
		;
	assert_int_equal(executor_state(w.executor), EXECUTOR_LEAVING);
	ring_done(&shared, &(struct step_result){ .id = 1 }); /* as the executor does */
	run_until(&w, EXECUTOR_GONE);
	assert_int_equal(w.n_taken, 1);
	finish(&w);
}

static void a_death_in_its_sleep_is_no_death(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "sleeps");
	executor_park(w.executor);
	run_until(&w, EXECUTOR_PARKED);
	kill(executor_pid(w.executor), SIGKILL);
	run_until(&w, EXECUTOR_GONE);
	assert_int_equal(executor_deaths(w.executor), 0);
	executor_wake(w.executor);
	run_until(&w, EXECUTOR_READY);

	setenv(MOOD, "slow", 1); /* the next one never answers */
	executor_leave(w.executor);
	executor_wake(w.executor);
	run_until(&w, EXECUTOR_READY);
	executor_park(w.executor);
	executor_wake(w.executor);
	setenv(MOOD, "sleeps", 1);
	kill(executor_pid(w.executor), SIGKILL);
	run_until(&w, EXECUTOR_READY); /* somebody waits for it */
	assert_int_equal(executor_deaths(w.executor), 0);
	finish(&w);
}

static void one_that_dies_while_it_wakes_is_started_again(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "deaf");
	executor_park(w.executor);
	run_until(&w, EXECUTOR_PARKED);
	executor_wake(w.executor);
	run_until(&w, EXECUTOR_READY);
	assert_int_equal(executor_deaths(w.executor), 1);
	assert_int_equal(executor_generation(w.executor), 2);
	finish(&w);
}

static void another_model_is_refused_and_want_of_memory_is_not(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "changed");
	executor_leave(w.executor);
	executor_wake(w.executor);
	run_until(&w, EXECUTOR_REFUSED);
	assert_int_equal(executor_refusal(w.executor), -ESTALE);
	assert_string_equal(executor_text(w.executor), "another model");
	assert_int_equal(executor_leave(w.executor), -EAGAIN);
	executor_wake(w.executor);
	assert_int_equal(executor_state(w.executor), EXECUTOR_REFUSED);
	finish(&w);

	begin(&w, "poor");
	executor_leave(w.executor);
	executor_wake(w.executor);
	while (executor_deaths(w.executor) < 3) /* the third in a row waits for a second */
		assert_true(sd_event_run(w.loop, 10000000) > 0);
	assert_int_equal(executor_state(w.executor), EXECUTOR_BACKOFF);
	assert_string_equal(executor_text(w.executor), "no memory for 900 bytes of weights");
	setenv(MOOD, "sleeps", 1); /* there is some now */
	run_until(&w, EXECUTOR_READY);
	finish(&w);
}

static void a_later_broker_finds_it_parked(void **state)
{
	struct watch w;
	pid_t pid;

	(void)state;
	begin(&w, "sleeps");
	pid = executor_pid(w.executor);
	executor_park(w.executor);
	run_until(&w, EXECUTOR_PARKED);
	restart_broker(&w, EXECUTOR_PARKED);
	assert_int_equal(executor_record(w.executor)->parked.freed_bytes, 900);
	assert_int_equal(executor_known(w.executor)->weight_bytes, 900);
	executor_wake(w.executor);
	run_until(&w, EXECUTOR_READY);
	assert_int_equal(kill(pid, 0), 0);
	finish(&w);
}

static void a_later_broker_finds_it_gone(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "changed");
	executor_leave(w.executor);
	run_until(&w, EXECUTOR_GONE);
	assert_int_equal(w.manager.n, 1); /* what it was, and nothing of it */
	restart_broker(&w, EXECUTOR_GONE);
	assert_int_equal(executor_record(w.executor)->gone.freed_bytes, 1000);
	executor_wake(w.executor); /* and still knows what it was */
	run_until(&w, EXECUTOR_REFUSED);
	finish(&w);
}

/* As if the broker had died between writing it down and sending the order. */
static void write_state(struct watch *w, enum execrecord_state state)
{
	_cleanup_(closep) int fd = -1;
	uint32_t word = state;

	manager_read(&w->manager);
	fd = manager_get(&w->manager, "exec-ready");
	assert_int_equal(pwrite(fd, &word, sizeof(word), offsetof(struct execrecord, state)),
			 sizeof(word));
}

static void an_order_that_was_written_down_and_not_sent_is_sent(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "sleeps");
	write_state(&w, EXECRECORD_PARKING);
	restart_broker(&w, EXECUTOR_PARKING);
	run_until(&w, EXECUTOR_PARKED);
	finish(&w);

	begin(&w, "sleeps");
	executor_park(w.executor);
	run_until(&w, EXECUTOR_PARKED);
	write_state(&w, EXECRECORD_WAKING);
	restart_broker(&w, EXECUTOR_LOADING);
	run_until(&w, EXECUTOR_READY);
	finish(&w);
}

static void the_last_results_are_taken_with_the_answer(void **state)
{
	struct step step = { .kind = STEP_DECODE, .n_rows = 1 };
	struct ring shared;
	struct watch w;

	(void)state;
	begin(&w, "sleeps");
	assert_non_null(ring_stage(executor_ring(w.executor)));
	ring_push(executor_ring(w.executor), &step);
	shared = *executor_ring(w.executor);
	shared.up_fd = -1; /* the bell comes later than the answer */
	assert_int_equal(executor_park(w.executor), 0);
	assert_true(sd_event_run(w.loop, 0) > 0); /* that it parks is told first, and alone */
	assert_int_equal(executor_state(w.executor), EXECUTOR_PARKING);
	ring_done(&shared, &(struct step_result){ .id = 1 });
	run_until(&w, EXECUTOR_PARKED);
	assert_int_equal(w.n_taken, 1);
	finish(&w);
}

static void a_broker_that_died_with_an_order_sends_it_again(void **state)
{
	struct watch w;

	(void)state;
	begin(&w, "sleeps");
	executor_park(w.executor); /* sent, and answered to nobody yet */
	restart_broker(&w, EXECUTOR_PARKING);
	run_until(&w, EXECUTOR_PARKED); /* answered twice */
	executor_wake(w.executor);
	run_until(&w, EXECUTOR_READY);
	finish(&w);

	begin(&w, "sleeps");
	executor_park(w.executor);
	run_until(&w, EXECUTOR_PARKED);
	executor_wake(w.executor);
	restart_broker(&w, EXECUTOR_LOADING);
	run_until(&w, EXECUTOR_READY);
	executor_park(w.executor); /* the second READY may be on its way */
	run_until(&w, EXECUTOR_PARKED);
	finish(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_pool_is_what_was_ordered_last),
		cmocka_unit_test(what_is_seen_is_told_once_and_with_its_bounds),
		cmocka_unit_test(parked_and_awake_again_it_is_the_same_process),
		cmocka_unit_test(one_that_is_gone_comes_back_as_another_process),
		cmocka_unit_test(wanted_while_it_parks_it_wakes_when_it_is_parked),
		cmocka_unit_test(wanted_again_before_it_left_it_stays),
		cmocka_unit_test(parked_it_may_leave_and_parking_too),
		cmocka_unit_test(a_load_that_nobody_wants_any_more_is_ended),
		cmocka_unit_test(steps_in_flight_are_over_before_it_leaves),
		cmocka_unit_test(a_death_in_its_sleep_is_no_death),
		cmocka_unit_test(one_that_dies_while_it_wakes_is_started_again),
		cmocka_unit_test(another_model_is_refused_and_want_of_memory_is_not),
		cmocka_unit_test(a_later_broker_finds_it_parked),
		cmocka_unit_test(a_later_broker_finds_it_gone),
		cmocka_unit_test(an_order_that_was_written_down_and_not_sent_is_sent),
		cmocka_unit_test(the_last_results_are_taken_with_the_answer),
		cmocka_unit_test(a_broker_that_died_with_an_order_sends_it_again),
	};
	const char *mood = getenv(MOOD);

	if (mood)
		return be_executor(mood);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
