/* Jobs on the thread, ends on the loop. */
#include "daemon/base/worker.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include "client/wire/ownership.h"

static struct {
	pthread_t loop_thread;
	pthread_mutex_t gate; /* held by a test to keep jobs from running on */
	int run[16], done[16];
	int n_run, n_done, n_idle, done_when_idle;
	bool run_on_loop, done_off_loop;
} seen;

static void run(void *userdata)
{
	pthread_mutex_lock(&seen.gate);
	seen.run_on_loop |= pthread_equal(pthread_self(), seen.loop_thread) != 0;
	seen.run[seen.n_run++] = *(int *)userdata;
	pthread_mutex_unlock(&seen.gate);
}

static void done(void *userdata)
{
	seen.done_off_loop |= pthread_equal(pthread_self(), seen.loop_thread) == 0;
	seen.done[seen.n_done++] = *(int *)userdata;
}

static void idle(void *userdata)
{
	assert_int_equal(worker_waiting(userdata), 0);
	seen.n_idle++;
	seen.done_when_idle = seen.n_done;
}

static int setup(void **state)
{
	(void)state;
	seen = (typeof(seen)){ .loop_thread = pthread_self(), .gate = PTHREAD_MUTEX_INITIALIZER };
	return 0;
}

static void jobs_run_in_order_off_the_loop_and_end_on_it(void **state)
{
	int jobs[] = { 4, 2, 9, 7 };
	struct worker *w = NULL;
	sd_event *loop = NULL;

	(void)state;
	assert_int_equal(sd_event_new(&loop), 0);
	assert_int_equal(worker_new(loop, &w), 0);
	for (int i = 0; i < 4; i++)
		assert_int_equal(worker_push(w, run, done, &jobs[i]), 0);
	while (seen.n_done < 4)
		assert_true(sd_event_run(loop, 10000000) > 0);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(seen.run[i], jobs[i]);
		assert_int_equal(seen.done[i], jobs[i]);
	}
	assert_false(seen.run_on_loop);
	assert_false(seen.done_off_loop);
	assert_int_equal(worker_waiting(w), 0);
	assert_int_equal(sd_event_run(loop, 0), 0); /* nothing wakes an idle loop */
	worker_free(w);
	sd_event_unref(loop);
}

static void users_take_turns(void **state)
{
	/* whose, 0: it keeps its place; the ends of the names are their order */
	static const struct {
		uid_t uid;
		int name;
	} pushed[] = { { 1, 11 }, { 1, 12 }, { 1, 13 }, { 2, 21 }, { 3, 31 },
		       { 2, 22 }, { 0, 1 },  { 1, 14 }, { 1, 15 }, { 3, 32 } };
	static const int wanted[] = { 11, 21, 31, 12, 22, 13, 1, 14, 32, 15 };
	int names[ARRAY_SIZE(pushed)];
	struct worker *w = NULL;
	sd_event *loop = NULL;
	int held = 0;

	(void)state;
	assert_int_equal(sd_event_new(&loop), 0);
	assert_int_equal(worker_new(loop, &w), 0);
	pthread_mutex_lock(&seen.gate);
	assert_int_equal(worker_push(w, run, done, &held), 0);
	for (size_t i = 0; i < ARRAY_SIZE(pushed); i++) {
		names[i] = pushed[i].name;
		if (pushed[i].uid)
			assert_int_equal(worker_push_for(w, pushed[i].uid, run, done, &names[i]),
					 0);
		else
			assert_int_equal(worker_push(w, run, done, &names[i]), 0);
	}
	pthread_mutex_unlock(&seen.gate);
	while (seen.n_done < 1 + (int)ARRAY_SIZE(pushed))
		assert_true(sd_event_run(loop, 10000000) > 0);
	for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
		assert_int_equal(seen.run[1 + i], wanted[i]);
		assert_int_equal(seen.done[1 + i], wanted[i]);
	}
	worker_free(w);
	sd_event_unref(loop);
}

static void it_says_when_no_job_waits_any_more(void **state)
{
	int jobs[] = { 1, 2, 3 };
	struct worker *w = NULL;
	sd_event *loop = NULL;

	(void)state;
	assert_int_equal(sd_event_new(&loop), 0);
	assert_int_equal(worker_new(loop, &w), 0);
	worker_on_idle(w, idle, w);
	pthread_mutex_lock(&seen.gate);
	for (int i = 0; i < 3; i++)
		assert_int_equal(worker_push(w, run, done, &jobs[i]), 0);
	assert_true(sd_event_run(loop, 1000) >= 0);
	assert_int_equal(seen.n_idle, 0);
	pthread_mutex_unlock(&seen.gate);
	while (seen.n_idle == 0)
		assert_true(sd_event_run(loop, 10000000) > 0);
	assert_true(seen.done_when_idle > 0); /* some ends may be a turn of the loop behind */
	assert_int_equal(seen.n_run, 3);
	worker_free(w);
	sd_event_unref(loop);
}

static void what_waits_at_the_end_is_done_unrun(void **state)
{
	int jobs[] = { 1, 2, 3 };
	struct worker *w = NULL;
	sd_event *loop = NULL;

	(void)state;
	assert_int_equal(sd_event_new(&loop), 0);
	assert_int_equal(worker_new(loop, &w), 0);
	pthread_mutex_lock(&seen.gate);
	for (int i = 0; i < 3; i++)
		assert_int_equal(worker_push(w, run, done, &jobs[i]), 0);
	assert_int_equal(worker_waiting(w), 3);
	pthread_mutex_unlock(&seen.gate);
	worker_free(w);
	assert_int_equal(seen.n_done, 3); /* each owner hears of its job once, run or not */
	assert_true(seen.n_run <= 3);
	assert_false(seen.done_off_loop);
	assert_null(worker_free(NULL));
	sd_event_unref(loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(jobs_run_in_order_off_the_loop_and_end_on_it, setup),
		cmocka_unit_test_setup(users_take_turns, setup),
		cmocka_unit_test_setup(it_says_when_no_job_waits_any_more, setup),
		cmocka_unit_test_setup(what_waits_at_the_end_is_done_unrun, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
