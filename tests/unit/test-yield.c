/* What is given up when memory is wanted: the cheapest, by request, for a lease, under pressure. */
#include <errno.h>
#include <fcntl.h>
#include <sys/wait.h>

#include "client/wire/ownership.h"
#include "daemon/power/prices.h"
#include "tests/unit/ladder.h"

/* A process that ends when it is told to; its pid. */
static pid_t begin_process(int *ret_fd)
{
	int pair[2];
	pid_t pid;
	char byte;

	assert_int_equal(pipe2(pair, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		close(pair[1]);
		_exit((int)read(pair[0], &byte, 1));
	}
	close(pair[0]);
	*ret_fd = pair[1];
	return pid;
}

static void end_process(struct ladder *l, pid_t pid, int fd)
{
	siginfo_t info;

	close(fd);
	assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
	ladder_settle(l);
	waitpid(pid, NULL, 0);
}

static struct power_wish yield_of(uint64_t bytes, pid_t pid)
{
	return (struct power_wish){ .kind = POWER_WISH_YIELD,
				    .bytes = bytes,
				    .pid = pid,
				    .on_done = ladder_on_done,
				    .on_progress = ladder_on_progress };
}

static void what_is_yielded_is_what_costs_least(void **state)
{
	static const struct {
		uint64_t wanted, pages, freed;
		enum power_rung rung;
	} cases[] = {
		{ 500, 10000, 500, POWER_QUIET },	 { 500, 100, 900, POWER_PARKED },
		{ 900, 0, 900, POWER_PARKED },		 { 901, 0, RESIDENT, POWER_GONE },
		{ 5000, 50, RESIDENT + 50, POWER_GONE },
	};
	struct ladder l;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct power_wish w;
		int fd;
		pid_t pid = begin_process(&fd);

		ladder_open(&l, 0, 0);
		l.pages_bytes = cases[i].pages;
		w = yield_of(cases[i].wanted, pid);
		assert_int_equal(power_ask(l.power, &w, NULL), 0);
		ladder_settle(&l);
		assert_int_equal(l.n_done, 1);
		assert_int_equal(l.done_r, 0);
		assert_int_equal(w.freed_bytes, cases[i].freed);
		ladder_is_on(&l, cases[i].rung);
		end_process(&l, pid, fd);
		ladder_close(&l);
	}
}

static void one_that_is_gone_gives_what_pages_it_has_and_says_so(void **state)
{
	struct power_wish sleep = ladder_sleep_to(POWER_GONE), w;
	struct ladder l;
	int fd;
	pid_t pid = begin_process(&fd);

	(void)state;
	ladder_open(&l, 0, 0);
	assert_int_equal(power_ask(l.power, &sleep, NULL), 0);
	ladder_settle(&l);
	ladder_is_on(&l, POWER_GONE);
	assert_int_equal(l.n_done, 1);
	l.pages_bytes = 50;
	w = yield_of(5000, pid);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	world_run(&l.world, UINT64_MAX); /* nobody comes, and nothing moves: nobody looks */
	assert_int_equal(l.n_done, 2);
	assert_int_equal(l.done_r, 0);
	assert_int_equal(w.freed_bytes, 50);
	end_process(&l, pid, fd);
	ladder_close(&l);
}

static void the_cheapest_set_is_chosen(void **state)
{
	static const struct {
		enum power_rung at;
		uint64_t bytes, pages;
		double us_per_byte;
		enum power_rung rung;
		uint64_t given;
	} cases[] = {
		{ POWER_QUIET, 500, 1000, 0.01, POWER_QUIET, 500 }, /* 5 us against 9 */
		{ POWER_QUIET, 500, 1000, 0.02, POWER_PARKED, 0 },  /* 10 against 9 */
		{ POWER_QUIET, 950, 1000, 0.2, POWER_PARKED, 50 },  /* 9 + 10 against 20 */
		{ POWER_QUIET, 950, 1000, 0.3, POWER_GONE, 0 },	    /* 9 + 15 against 20 */
		{ POWER_QUIET, 950, 49, 0.2, POWER_GONE, 0 },	    /* too few pages */
		{ POWER_QUIET, 2000, 900, 0.2, POWER_GONE, 900 },   /* all there is */
		{ POWER_PARKED, 90, 1000, 0.1, POWER_PARKED, 90 },  /* 9 against 11 more */
		{ POWER_PARKED, 90, 1000, 0.2, POWER_GONE, 0 },
		{ POWER_GONE, 90, 1000, 99, POWER_GONE, 90 },
		{ POWER_GONE, 90, 0, 0, POWER_GONE, 0 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct prices_offer o = {
			.at = cases[i].at,
			.rungs = { { 0 }, { 900, 9, true }, { 1000, 20, true } },
			.pages_bytes = cases[i].pages,
			.us_per_byte = cases[i].us_per_byte,
		};
		const struct prices_set set = prices_choose(&o, cases[i].bytes);

		assert_int_equal(set.rung, cases[i].rung);
		assert_int_equal(set.pages_bytes, cases[i].given);
	}
}

static void one_step_is_the_cheapest_for_each_byte(void **state)
{
	struct prices_offer o = { .rungs = { { 0 }, { 900, 9, true }, { 1000, 20, true } },
				  .pages_bytes = 300 };

	(void)state;
	o.us_per_byte = 0.009; /* parked: 0.01 */
	assert_int_equal(prices_step(&o, 500).rung, POWER_QUIET);
	assert_int_equal(prices_step(&o, 500).pages_bytes, 300);
	assert_int_equal(prices_step(&o, 200).pages_bytes, 200);
	o.us_per_byte = 0.011;
	assert_int_equal(prices_step(&o, 500).rung, POWER_PARKED);
	assert_int_equal(prices_step(&o, 500).pages_bytes, 0);
	o.at = POWER_PARKED; /* gone: 11 us for 100 more */
	assert_int_equal(prices_step(&o, 500).pages_bytes, 300);
	o.us_per_byte = 0.12;
	assert_int_equal(prices_step(&o, 500).rung, POWER_GONE);
	o.at = POWER_GONE;
	assert_int_equal(prices_step(&o, 500).pages_bytes, 300);
	o.pages_bytes = 0;
	assert_int_equal(prices_step(&o, 500).rung, POWER_GONE);
	assert_int_equal(prices_step(&o, 500).pages_bytes, 0);
}

static void pressure_takes_pages_while_they_are_cheaper(void **state)
{
	struct ladder l;

	(void)state;
	ladder_open(&l, 0, 0);
	l.pages_bytes = 5;
	power_pressed(l.power);
	ladder_settle(&l);
	ladder_is_on(&l, POWER_QUIET);
	assert_int_equal(l.pages_bytes, 0);
	power_pressed(l.power);
	ladder_settle(&l);
	ladder_is_on(&l, POWER_PARKED);
	ladder_close(&l);
}

static uint32_t n_leases(const struct ladder *l)
{
	struct power_view view;

	power_look_at(l->power, &view);
	return view.n_leases;
}

/* Of processes, parked with the manager. */
static uint32_t n_parked_leases(struct ladder *l)
{
	uint32_t n = 0;

	manager_read(&l->world.manager);
	for (int i = 0; i < l->world.manager.n; i++)
		n += strncmp(l->world.manager.names[i], "lease-", 6) == 0;
	return n;
}

static void a_lease_ends_with_its_process(void **state)
{
	struct power_wish w;
	struct turn *t;
	struct ladder l;
	int fd;
	const pid_t pid = begin_process(&fd);

	(void)state;
	ladder_open(&l, 0, 0);
	l.pages_bytes = 100;
	w = yield_of(950, pid);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	ladder_settle(&l);
	ladder_is_on(&l, POWER_PARKED);
	assert_int_equal(n_leases(&l), 1);
	assert_int_equal(n_parked_leases(&l), 1);

	/* what comes meanwhile wakes it, and it goes down again soon */
	t = world_submit(&l.world, 1, 20, 5);
	ladder_settle(&l);
	world_assert_text(&l.world, t, 5);
	ladder_is_on(&l, POWER_QUIET);
	l.pages_bytes = 10000;
	ladder_pass(&l, 4);
	ladder_is_on(&l, POWER_QUIET);
	ladder_pass(&l, 1);
	ladder_is_on(&l, POWER_PARKED);
	assert_int_equal(l.pages_bytes, 9950); /* and pages did not grow back, either */

	end_process(&l, pid, fd);
	assert_int_equal(n_leases(&l), 0);
	assert_int_equal(n_parked_leases(&l), 0);
	ladder_is_on(&l, POWER_PARKED); /* up only when it is needed */
	t = world_submit(&l.world, 1, 20, 5);
	ladder_settle(&l);
	ladder_pass(&l, 100000);
	ladder_is_on(&l, POWER_QUIET);
	ladder_close(&l);
}

static void pages_alone_are_kept_free_too(void **state)
{
	struct power_wish w = yield_of(500, 0);
	struct turn *t;
	struct ladder l;

	(void)state;
	ladder_open(&l, 0, 0);
	l.pages_bytes = 500;
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	ladder_settle(&l);
	ladder_is_on(&l, POWER_QUIET);
	assert_int_equal(l.pages_bytes, 0);
	ladder_pass(&l, 10);
	t = world_submit(&l.world, 1, 20, 5);
	ladder_run(&l, 0);
	ladder_settle(&l);
	assert_int_equal(t->rec->finish, FINISH_LENGTH);
	l.pages_bytes = 700;
	ladder_pass(&l, 4);
	assert_int_equal(l.pages_bytes, 700);
	ladder_pass(&l, 1);
	assert_int_equal(l.pages_bytes, 200);
	assert_int_equal(power_next_us(l.power), 0); /* once is enough */
	power_withdraw(&w);
	ladder_close(&l);
}

static void a_lease_without_a_process_ends_with_its_wish_or_a_wake_up(void **state)
{
	struct power_wish w = yield_of(500, 0),
			  up = { .kind = POWER_WISH_WAKE, .on_done = ladder_on_done };
	struct ladder l;

	(void)state;
	ladder_open(&l, 0, 0);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	ladder_settle(&l);
	assert_int_equal(l.n_done, 0);
	assert_true(w.holds);
	assert_true(l.n_progress > 0);
	assert_int_equal(w.freed_bytes, 900);
	power_withdraw(&w);
	assert_int_equal(n_leases(&l), 0);

	w = yield_of(500, 0);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	ladder_settle(&l);
	assert_int_equal(power_ask(l.power, &up, NULL), 0);
	assert_int_equal(l.n_done, 1);
	assert_int_equal(l.done_r, -ECANCELED);
	assert_int_equal(n_leases(&l), 0);
	ladder_settle(&l);
	ladder_is_on(&l, POWER_QUIET);
	ladder_close(&l);
}

static void a_process_that_is_not_there_gets_no_lease(void **state)
{
	struct err err = { 0 };
	struct power_wish w;
	struct ladder l;
	int fd;
	const pid_t pid = begin_process(&fd);

	(void)state;
	ladder_open(&l, 0, 0);
	close(fd);
	waitpid(pid, NULL, 0);
	w = yield_of(500, pid);
	assert_int_equal(power_ask(l.power, &w, &err), -ESRCH);
	assert_null(w.power);
	assert_int_equal(n_leases(&l), 0);
	ladder_close(&l);
}

static void one_that_ends_too_early_is_told_of(void **state)
{
	struct power_wish w;
	struct turn *t;
	struct ladder l;
	int fd;
	const pid_t pid = begin_process(&fd);

	(void)state;
	ladder_open(&l, 0, 0);
	t = world_submit(&l.world, 1, 20, 300);
	w = yield_of(500, pid);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	ladder_run(&l, 0);
	close(fd);
	assert_int_equal(waitid(P_PID, (id_t)pid, &(siginfo_t){ 0 }, WEXITED | WNOWAIT), 0);
	ladder_run(&l, 0);
	waitpid(pid, NULL, 0);
	assert_int_equal(l.n_done, 1);
	assert_int_equal(l.done_r, -ESRCH);
	assert_int_equal(n_leases(&l), 0);
	sched_finish(t, FINISH_CANCELLED);
	ladder_settle(&l);
	ladder_is_on(&l, POWER_QUIET);
	ladder_close(&l);
}

static void there_are_only_so_many_leases(void **state)
{
	static struct power_wish w[POWER_LEASES_MAX + 1];
	struct err err = { 0 };
	struct ladder l;

	(void)state;
	ladder_open(&l, 0, 0);
	for (uint32_t i = 0; i <= POWER_LEASES_MAX; i++) {
		w[i] = yield_of(1, 0);
		assert_int_equal(power_ask(l.power, &w[i], &err),
				 i < POWER_LEASES_MAX ? 0 : -EAGAIN);
	}
	assert_string_equal(err.text, "32 leases are held; 32 may be");
	l.power = power_free(l.power); /* each is told */
	assert_int_equal(l.n_done, POWER_LEASES_MAX);
	ladder_close(&l);
}

static void pressure_takes_cheaper_rungs_and_pages_while_there_is_work(void **state)
{
	struct turn *t;
	struct ladder l;

	(void)state;
	ladder_open(&l, 0, 0);
	l.pages_bytes = 5;
	l.us_per_byte = 1000000;
	power_pressed(l.power);
	ladder_settle(&l);
	ladder_is_on(&l, POWER_PARKED);
	assert_int_equal(l.n_yields, 0);
	power_pressed(l.power);
	ladder_settle(&l);
	ladder_is_on(&l, POWER_GONE);
	power_pressed(l.power);
	assert_int_equal(l.n_yields, 1);

	t = world_submit(&l.world, 1, 20, 5);
	ladder_run(&l, 0);
	power_pressed(l.power);
	assert_int_equal(l.n_yields, 2);
	ladder_settle(&l);
	world_assert_text(&l.world, t, 5);
	ladder_is_on(&l, POWER_QUIET); /* it is over with that */
	t = world_submit(&l.world, 1, 20, 300);
	ladder_run(&l, 0);
	power_pressed(l.power);
	assert_int_equal(l.n_yields, 3);
	l.us_per_byte = 0;
	ladder_settle(&l);
	ladder_is_on(&l, POWER_QUIET);
	ladder_close(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_yielded_is_what_costs_least),
		cmocka_unit_test(one_that_is_gone_gives_what_pages_it_has_and_says_so),
		cmocka_unit_test(the_cheapest_set_is_chosen),
		cmocka_unit_test(one_step_is_the_cheapest_for_each_byte),
		cmocka_unit_test(a_lease_ends_with_its_process),
		cmocka_unit_test(pages_alone_are_kept_free_too),
		cmocka_unit_test(a_lease_without_a_process_ends_with_its_wish_or_a_wake_up),
		cmocka_unit_test(a_process_that_is_not_there_gets_no_lease),
		cmocka_unit_test(one_that_ends_too_early_is_told_of),
		cmocka_unit_test(there_are_only_so_many_leases),
		cmocka_unit_test(pressure_takes_pages_while_they_are_cheaper),
		cmocka_unit_test(pressure_takes_cheaper_rungs_and_pages_while_there_is_work),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
