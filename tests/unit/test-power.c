/*
 * The ladder over the real executor object and scheduler, with a toy executor
 * that obeys, and a clock of the test's own: no test waits.
 */
#include "daemon/power/power.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/wait.h>

#include "client/wire/ownership.h"
#include "daemon/power/prices.h"
#include "tests/unit/world.h"

#define WEIGHTS 900ull
#define RESIDENT 1000ull
#define DELAY_US (5 * US_PER_S)

struct ladder {
	struct world world;
	struct power *power;
	uint64_t pages_bytes; /* that can be given up */
	uint32_t n_yields, n_seals, n_safe, n_done, n_progress;
	int done_r;
	enum executor_state sealed_in;
	bool disk_hangs;
	uint64_t us_per_byte;
};

static struct ladder *the_ladder;

static bool has_work(void *userdata)
{
	struct ladder *l = userdata;

	return sched_work(l->world.sched) > 0;
}

static uint64_t yield_pages(uint64_t bytes, void *userdata)
{
	struct ladder *l = userdata;
	const uint64_t n = MIN(bytes, l->pages_bytes);

	l->n_yields++;
	l->pages_bytes -= n;
	return n;
}

static void price_pages(uint64_t *ret_bytes, uint64_t *ret_return_us, void *userdata)
{
	const struct ladder *l = userdata;

	*ret_bytes = l->pages_bytes;
	*ret_return_us = l->pages_bytes * l->us_per_byte;
}

static bool seal(enum power_rung rung, uint64_t timeout_us, void *userdata)
{
	struct ladder *l = userdata;

	assert_true(rung > POWER_QUIET && timeout_us > 0);
	sched_rest(l->world.sched, false);
	if (!sched_is_at_rest(l->world.sched) || l->disk_hangs)
		return false;
	l->n_seals++;
	l->sealed_in = executor_state(l->world.executor);
	return true;
}

static void unseal(void *userdata)
{
	sched_go_on(((struct ladder *)userdata)->world.sched);
}

static void halt(void *userdata)
{
	sched_rest(((struct ladder *)userdata)->world.sched, true);
}

static void on_safe(void *userdata)
{
	((struct ladder *)userdata)->n_safe++;
}

static void on_done(struct power_wish *w, int r, const struct err *err)
{
	(void)w;
	assert_int_equal(r < 0, err && err->text[0]); /* a failure has its sentence */
	the_ladder->n_done++;
	the_ladder->done_r = r;
}

static void on_progress(struct power_wish *w)
{
	(void)w;
	the_ladder->n_progress++;
}

/* What the executor says when it is ready, as large as its weights. */
static void say_ready(struct computer *c)
{
	struct control_ready ready = { .kind = CONTROL_READY,
				       .weight_bytes = WEIGHTS,
				       .resident_bytes = RESIDENT,
				       .load_us = 7000000 };

	assert_int_equal(send(c->fd, &ready, sizeof(ready), 0), sizeof(ready));
}

static void obey(struct ladder *l)
{
	const struct control_parked parked = { .kind = CONTROL_PARKED, .freed_bytes = WEIGHTS };
	struct computer *c = &l->world.computer;
	struct control_order order;

	if (c->fd < 0 || recv(c->fd, &order, sizeof(order), MSG_DONTWAIT) != sizeof(order))
		return;
	while (computer_step(c))
		;
	if (order.kind == CONTROL_PARK)
		assert_int_equal(send(c->fd, &parked, sizeof(parked), 0), sizeof(parked));
	else
		say_ready(c);
}

/* Until nothing moves: @n_steps of the executor at most, orders as they come. */
static void run(struct ladder *l, uint64_t n_steps)
{
	for (uint32_t i = 0; i < 5; i++) {
		world_run(&l->world, n_steps);
		power_look(
			l->power); /* as the server does when the scheduler or the executor moved */
		world_run(&l->world, n_steps ? UINT64_MAX : 0);
		obey(l);
	}
}

static void settle(struct ladder *l)
{
	run(l, UINT64_MAX);
}

/* The clock goes on; the timer is what is due meanwhile, each at its time. */
static void pass(struct ladder *l, uint64_t seconds)
{
	const uint64_t end = clock_us() + seconds * US_PER_S;
	uint64_t next;

	while ((next = power_next_us(l->power)) && next <= end) {
		clock_advance(next - clock_us());
		power_tick(l->power);
		settle(l);
	}
	clock_advance(end - clock_us());
	settle(l);
}

static void open_ladder(struct ladder *l, uint32_t idle_park, uint32_t idle_exit)
{
	struct power_options options = { .settings = &l->world.settings,
					 .has_work = has_work,
					 .yield_pages = yield_pages,
					 .price_pages = price_pages,
					 .seal = seal,
					 .unseal = unseal,
					 .halt = halt,
					 .userdata = l,
					 .no_pressure = true,
					 .no_suspend = true };

	memset(l, 0, sizeof(*l));
	the_ladder = l;
	clock_fake(1000 * US_PER_S, 0);
	world_open(&l->world, 64, 4, 64);
	l->world.settings.idle_park = idle_park;
	l->world.settings.idle_exit = idle_exit;
	assert_int_equal(power_new(l->world.loop, &options, &l->power, NULL), 0);
	power_set_executor(l->power, l->world.executor);
	settle(l);
	/* the toy's first words know no sizes: it says them when it wakes up */
	executor_park(l->world.executor);
	settle(l);
	executor_wake(l->world.executor);
	settle(l);
	assert_int_equal(executor_state(l->world.executor), EXECUTOR_READY);
}

static void close_ladder(struct ladder *l)
{
	l->power = power_free(l->power);
	world_close(&l->world);
	clock_real();
}

static void is_on(struct ladder *l, enum power_rung rung)
{
	struct power_view view;

	power_look_at(l->power, &view);
	assert_string_equal(power_rung_name(view.rung), power_rung_name(rung));
	assert_false(view.moving);
}

static void never_by_idleness_unless_it_is_set(void **state)
{
	struct ladder l;

	(void)state;
	open_ladder(&l, 0, 0);
	assert_int_equal(power_next_us(l.power), 0); /* no timer */
	pass(&l, 1000000);
	is_on(&l, POWER_QUIET);
	close_ladder(&l);
}

static void idleness_leads_down_rung_by_rung(void **state)
{
	struct ladder l;

	(void)state;
	open_ladder(&l, 60, 600);
	assert_int_equal(power_next_us(l.power), clock_us() + 60 * US_PER_S);
	pass(&l, 59);
	is_on(&l, POWER_QUIET);
	pass(&l, 1);
	is_on(&l, POWER_PARKED);
	assert_int_equal(power_next_us(l.power), clock_us() + 540 * US_PER_S);
	pass(&l, 539);
	is_on(&l, POWER_PARKED);
	pass(&l, 1);
	is_on(&l, POWER_GONE);
	assert_int_equal(power_next_us(l.power), 0); /* the last rung has no timer */
	close_ladder(&l);
}

static void the_executor_may_leave_without_having_been_parked(void **state)
{
	struct ladder l;

	(void)state;
	open_ladder(&l, 0, 100);
	pass(&l, 100);
	is_on(&l, POWER_GONE);
	close_ladder(&l);
	open_ladder(&l, 200, 100);
	pass(&l, 100);
	is_on(&l, POWER_GONE);
	close_ladder(&l);
}

static void work_keeps_it_up_and_wakes_it(void **state)
{
	struct turn *t;
	struct ladder l;

	(void)state;
	open_ladder(&l, 60, 600);
	pass(&l, 59);
	t = world_submit(&l.world, 1, 20, 400);
	run(&l, 0);
	assert_int_equal(power_next_us(l.power), 0); /* none while there is work */
	sched_finish(t, FINISH_CANCELLED);
	settle(&l);
	assert_int_equal(power_next_us(l.power), clock_us() + 60 * US_PER_S);
	pass(&l, 60);
	is_on(&l, POWER_PARKED);
	for (int i = 0; i < 2; i++) {
		t = world_submit(&l.world, 1, 20, 5);
		settle(&l);
		assert_int_equal(t->rec->finish, FINISH_LENGTH);
		world_assert_text(&l.world, t, 5);
		is_on(&l, POWER_QUIET);
		pass(&l, 600);
		is_on(&l, POWER_GONE);
	}
	close_ladder(&l);
}

static void a_reader_that_stalls_keeps_nothing_awake(void **state)
{
	struct turn *t;
	struct ladder l;

	(void)state;
	open_ladder(&l, 60, 0);
	t = world_submit(&l.world, 1, 20, 50);
	world_run(&l.world, 8);
	sched_pause(t, true);
	settle(&l);
	pass(&l, 60);
	is_on(&l, POWER_PARKED);
	sched_pause(t, false);
	settle(&l);
	assert_int_equal(t->rec->finish, FINISH_LENGTH);
	world_assert_text(&l.world, t, 50);
	close_ladder(&l);
}

static struct power_wish sleep_to(enum power_rung rung)
{
	return (struct power_wish){ .kind = POWER_WISH_SLEEP, .rung = rung, .on_done = on_done };
}

static void a_wish_to_sleep_waits_for_the_end_of_the_work(void **state)
{
	struct power_wish w = sleep_to(POWER_PARKED), deeper = sleep_to(POWER_GONE);
	struct turn *t;
	struct ladder l;

	(void)state;
	open_ladder(&l, 0, 0);
	t = world_submit(&l.world, 1, 20, 30);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	run(&l, 0);
	assert_int_equal(l.n_done, 0);
	is_on(&l, POWER_QUIET);
	settle(&l);
	world_assert_text(&l.world, t, 30);
	assert_int_equal(l.n_done, 1);
	assert_int_equal(l.done_r, 0);
	is_on(&l, POWER_PARKED);
	assert_int_equal(power_ask(l.power, &deeper, NULL), 0);
	settle(&l);
	assert_int_equal(l.n_done, 2);
	is_on(&l, POWER_GONE);
	close_ladder(&l);
}

static void a_wish_to_wake_ends_the_others(void **state)
{
	struct power_wish down = sleep_to(POWER_PARKED);
	struct power_wish up = { .kind = POWER_WISH_WAKE, .on_done = on_done };
	struct turn *t;
	struct ladder l;

	(void)state;
	open_ladder(&l, 0, 0);
	t = world_submit(&l.world, 1, 20, 30);
	assert_int_equal(power_ask(l.power, &down, NULL), 0);
	assert_int_equal(power_ask(l.power, &up, NULL), 0);
	assert_int_equal(l.n_done, 1);
	assert_int_equal(l.done_r, -ECANCELED);
	settle(&l);
	assert_int_equal(l.n_done, 2);
	assert_int_equal(t->rec->finish, FINISH_LENGTH);
	is_on(&l, POWER_QUIET);

	down = sleep_to(POWER_GONE);
	assert_int_equal(power_ask(l.power, &down, NULL), 0);
	settle(&l);
	assert_int_equal(power_ask(l.power, &up, NULL), 0);
	settle(&l);
	assert_int_equal(l.n_done, 4);
	is_on(&l, POWER_QUIET);
	close_ladder(&l);
}

static void a_wish_withdrawn_is_nobody_s(void **state)
{
	struct power_wish w = sleep_to(POWER_PARKED);
	struct ladder l;

	(void)state;
	open_ladder(&l, 0, 0);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	power_withdraw(&w);
	power_withdraw(&w);
	settle(&l);
	assert_int_equal(l.n_done, 0);
	is_on(&l, POWER_QUIET);
	close_ladder(&l);
}

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
	settle(l);
	waitpid(pid, NULL, 0);
}

static struct power_wish yield_of(uint64_t bytes, pid_t pid)
{
	return (struct power_wish){ .kind = POWER_WISH_YIELD,
				    .bytes = bytes,
				    .pid = pid,
				    .on_done = on_done,
				    .on_progress = on_progress };
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

		open_ladder(&l, 0, 0);
		l.pages_bytes = cases[i].pages;
		w = yield_of(cases[i].wanted, pid);
		assert_int_equal(power_ask(l.power, &w, NULL), 0);
		settle(&l);
		assert_int_equal(l.n_done, 1);
		assert_int_equal(l.done_r, 0);
		assert_int_equal(w.freed_bytes, cases[i].freed);
		is_on(&l, cases[i].rung);
		end_process(&l, pid, fd);
		close_ladder(&l);
	}
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
	open_ladder(&l, 0, 0);
	l.pages_bytes = 5;
	power_pressed(l.power);
	settle(&l);
	is_on(&l, POWER_QUIET);
	assert_int_equal(l.pages_bytes, 0);
	power_pressed(l.power);
	settle(&l);
	is_on(&l, POWER_PARKED);
	close_ladder(&l);
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
	open_ladder(&l, 0, 0);
	l.pages_bytes = 100;
	w = yield_of(950, pid);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	settle(&l);
	is_on(&l, POWER_PARKED);
	assert_int_equal(n_leases(&l), 1);
	assert_int_equal(n_parked_leases(&l), 1);

	/* what comes meanwhile wakes it, and it goes down again soon */
	t = world_submit(&l.world, 1, 20, 5);
	settle(&l);
	world_assert_text(&l.world, t, 5);
	is_on(&l, POWER_QUIET);
	l.pages_bytes = 10000;
	pass(&l, 4);
	is_on(&l, POWER_QUIET);
	pass(&l, 1);
	is_on(&l, POWER_PARKED);
	assert_int_equal(l.pages_bytes, 9950); /* and pages did not grow back, either */

	end_process(&l, pid, fd);
	assert_int_equal(n_leases(&l), 0);
	assert_int_equal(n_parked_leases(&l), 0);
	is_on(&l, POWER_PARKED); /* up only when it is needed */
	t = world_submit(&l.world, 1, 20, 5);
	settle(&l);
	pass(&l, 100000);
	is_on(&l, POWER_QUIET);
	close_ladder(&l);
}

static void pages_alone_are_kept_free_too(void **state)
{
	struct power_wish w = yield_of(500, 0);
	struct turn *t;
	struct ladder l;

	(void)state;
	open_ladder(&l, 0, 0);
	l.pages_bytes = 500;
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	settle(&l);
	is_on(&l, POWER_QUIET);
	assert_int_equal(l.pages_bytes, 0);
	pass(&l, 10);
	t = world_submit(&l.world, 1, 20, 5);
	run(&l, 0);
	settle(&l);
	assert_int_equal(t->rec->finish, FINISH_LENGTH);
	l.pages_bytes = 700;
	pass(&l, 4);
	assert_int_equal(l.pages_bytes, 700);
	pass(&l, 1);
	assert_int_equal(l.pages_bytes, 200);
	assert_int_equal(power_next_us(l.power), 0); /* once is enough */
	power_withdraw(&w);
	close_ladder(&l);
}

static void a_lease_without_a_process_ends_with_its_wish_or_a_wake_up(void **state)
{
	struct power_wish w = yield_of(500, 0),
			  up = { .kind = POWER_WISH_WAKE, .on_done = on_done };
	struct ladder l;

	(void)state;
	open_ladder(&l, 0, 0);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	settle(&l);
	assert_int_equal(l.n_done, 0);
	assert_true(w.holds);
	assert_true(l.n_progress > 0);
	assert_int_equal(w.freed_bytes, 900);
	power_withdraw(&w);
	assert_int_equal(n_leases(&l), 0);

	w = yield_of(500, 0);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	settle(&l);
	assert_int_equal(power_ask(l.power, &up, NULL), 0);
	assert_int_equal(l.n_done, 1);
	assert_int_equal(l.done_r, -ECANCELED);
	assert_int_equal(n_leases(&l), 0);
	settle(&l);
	is_on(&l, POWER_QUIET);
	close_ladder(&l);
}

static void a_process_that_is_not_there_gets_no_lease(void **state)
{
	struct err err = { 0 };
	struct power_wish w;
	struct ladder l;
	int fd;
	const pid_t pid = begin_process(&fd);

	(void)state;
	open_ladder(&l, 0, 0);
	close(fd);
	waitpid(pid, NULL, 0);
	w = yield_of(500, pid);
	assert_int_equal(power_ask(l.power, &w, &err), -ESRCH);
	assert_null(w.power);
	assert_int_equal(n_leases(&l), 0);
	close_ladder(&l);
}

static void one_that_ends_too_early_is_told_of(void **state)
{
	struct power_wish w;
	struct turn *t;
	struct ladder l;
	int fd;
	const pid_t pid = begin_process(&fd);

	(void)state;
	open_ladder(&l, 0, 0);
	t = world_submit(&l.world, 1, 20, 300);
	w = yield_of(500, pid);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	run(&l, 0);
	close(fd);
	assert_int_equal(waitid(P_PID, (id_t)pid, &(siginfo_t){ 0 }, WEXITED | WNOWAIT), 0);
	run(&l, 0);
	waitpid(pid, NULL, 0);
	assert_int_equal(l.n_done, 1);
	assert_int_equal(l.done_r, -ESRCH);
	assert_int_equal(n_leases(&l), 0);
	sched_finish(t, FINISH_CANCELLED);
	settle(&l);
	is_on(&l, POWER_QUIET);
	close_ladder(&l);
}

static void there_are_only_so_many_leases(void **state)
{
	static struct power_wish w[POWER_LEASES_MAX + 1];
	struct err err = { 0 };
	struct ladder l;

	(void)state;
	open_ladder(&l, 0, 0);
	for (uint32_t i = 0; i <= POWER_LEASES_MAX; i++) {
		w[i] = yield_of(1, 0);
		assert_int_equal(power_ask(l.power, &w[i], &err),
				 i < POWER_LEASES_MAX ? 0 : -EAGAIN);
	}
	assert_string_equal(err.text, "32 leases are held; 32 may be");
	l.power = power_free(l.power); /* each is told */
	assert_int_equal(l.n_done, POWER_LEASES_MAX);
	close_ladder(&l);
}

static void pressure_takes_cheaper_rungs_and_pages_while_there_is_work(void **state)
{
	struct turn *t;
	struct ladder l;

	(void)state;
	open_ladder(&l, 0, 0);
	l.pages_bytes = 5;
	l.us_per_byte = 1000000;
	power_pressed(l.power);
	settle(&l);
	is_on(&l, POWER_PARKED);
	assert_int_equal(l.n_yields, 0);
	power_pressed(l.power);
	settle(&l);
	is_on(&l, POWER_GONE);
	power_pressed(l.power);
	assert_int_equal(l.n_yields, 1);

	t = world_submit(&l.world, 1, 20, 5);
	run(&l, 0);
	power_pressed(l.power);
	assert_int_equal(l.n_yields, 2);
	settle(&l);
	world_assert_text(&l.world, t, 5);
	is_on(&l, POWER_QUIET); /* it is over with that */
	t = world_submit(&l.world, 1, 20, 300);
	run(&l, 0);
	power_pressed(l.power);
	assert_int_equal(l.n_yields, 3);
	l.us_per_byte = 0;
	settle(&l);
	is_on(&l, POWER_QUIET);
	close_ladder(&l);
}

static void before_suspend_turns_pause_and_afterwards_they_go_on(void **state)
{
	struct turn *t, *late;
	struct ladder l;

	(void)state;
	open_ladder(&l, 60, 0);
	t = world_submit(&l.world, 1, 20, 40);
	world_run(&l.world, 10);
	power_suspend(l.power, true, DELAY_US, on_safe, &l);
	settle(&l);
	is_on(&l, POWER_GONE);
	assert_int_equal(t->rec->state == TURN_ENDED, false);
	assert_int_equal(l.n_seals, 1);
	assert_int_equal(l.sealed_in, EXECUTOR_READY); /* for sums are the executor's to make */
	assert_int_equal(l.n_safe, 1);
	assert_int_equal(power_next_us(l.power), 0);
	late = world_submit(&l.world, 2, 20, 5);
	settle(&l);
	is_on(&l, POWER_GONE); /* not now */
	assert_int_equal(l.n_safe, 1);
	clock_advance(8 * 3600 * US_PER_S);
	power_suspend(l.power, false, 0, NULL, NULL);
	settle(&l);
	world_assert_text(&l.world, t, 40);
	world_assert_text(&l.world, late, 5);
	assert_int_equal(t->rec->n_recomputed, 0); /* sealed to its last token */
	is_on(&l, POWER_QUIET);
	close_ladder(&l);
}

static void a_suspend_waits_for_no_longer_than_it_may(void **state)
{
	struct turn *t;
	struct ladder l;

	(void)state;
	open_ladder(&l, 0, 0);
	t = world_submit(&l.world, 1, 20, 40);
	world_run(&l.world, 10);
	l.disk_hangs = true;
	power_suspend(l.power, true, DELAY_US, on_safe, &l);
	settle(&l);
	assert_int_equal(l.n_safe, 0);
	assert_int_equal(executor_state(l.world.executor), EXECUTOR_READY);
	assert_int_equal(power_next_us(l.power), clock_us() + DELAY_US * 3 / 4);
	pass(&l, DELAY_US / US_PER_S);
	assert_int_equal(l.n_safe, 1);
	is_on(&l, POWER_GONE);
	power_suspend(l.power, false, 0, NULL, NULL);
	settle(&l);
	world_assert_text(&l.world, t, 40);

	/* nor for a step that does not end */
	l.disk_hangs = false;
	t = world_submit(&l.world, 1, 20, 40);
	run(&l, 0);
	power_suspend(l.power, true, DELAY_US, on_safe, &l);
	run(&l, 0);
	assert_int_equal(l.n_safe, 1);
	clock_advance(DELAY_US);
	power_tick(l.power);
	assert_int_equal(l.n_safe, 2);
	power_suspend(l.power, false, 0, NULL, NULL);
	settle(&l);
	world_assert_text(&l.world, t, 40);
	is_on(&l, POWER_QUIET);
	close_ladder(&l);
}

static void sleep_now_pauses_answers_until_others_come_or_a_wake_up(void **state)
{
	struct power_wish w, up = { .kind = POWER_WISH_WAKE, .on_done = on_done };
	struct turn *t, *other;
	struct ladder l;

	(void)state;
	for (int i = 0; i < 4; i++) {
		open_ladder(&l, 0, 600);
		t = world_submit(&l.world, 1, 20, 40);
		world_run(&l.world, 10);
		w = sleep_to(i % 2 ? POWER_GONE : POWER_PARKED);
		w.now = true;
		assert_int_equal(power_ask(l.power, &w, NULL), 0);
		settle(&l);
		assert_int_equal(l.n_done, 1);
		is_on(&l, w.rung);
		assert_int_equal(t->rec->state, TURN_QUEUED);
		pass(&l, 100);
		is_on(&l, w.rung);
		if (i < 2) {
			assert_int_equal(power_ask(l.power, &up, NULL), 0);
		} else {
			other = world_submit(&l.world, 2, 20, 5);
			settle(&l);
			world_assert_text(&l.world, other, 5);
		}
		settle(&l);
		world_assert_text(&l.world, t, 40);
		assert_int_equal(t->rec->n_recomputed, 0);
		is_on(&l, POWER_QUIET);
		close_ladder(&l);
	}
}

static void a_wish_to_sleep_now_withdrawn_halts_nothing(void **state)
{
	struct power_wish w = sleep_to(POWER_PARKED);
	struct turn *t;
	struct ladder l;

	(void)state;
	open_ladder(&l, 0, 0);
	t = world_submit(&l.world, 1, 20, 40);
	world_run(&l.world, 10);
	l.disk_hangs = true;
	w.now = true;
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	settle(&l);
	assert_int_equal(l.n_done, 0);
	power_withdraw(&w);
	settle(&l);
	world_assert_text(&l.world, t, 40);
	is_on(&l, POWER_QUIET);
	close_ladder(&l);
}

static void work_that_comes_while_it_is_sealed_is_done_at_once(void **state)
{
	struct power_wish w = sleep_to(POWER_GONE);
	struct power_wish up = { .kind = POWER_WISH_WAKE, .on_done = on_done };
	struct turn *t;
	struct ladder l;

	(void)state;
	open_ladder(&l, 60, 0);
	l.disk_hangs = true;
	pass(&l, 60);
	t = world_submit(&l.world, 1, 20, 5);
	settle(&l);
	world_assert_text(&l.world, t, 5);
	is_on(&l, POWER_QUIET);

	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	settle(&l);
	assert_int_equal(power_ask(l.power, &up, NULL), 0);
	settle(&l);
	assert_int_equal(l.n_done, 2);
	is_on(&l, POWER_QUIET);
	close_ladder(&l);
}

static void what_slept_before_suspend_sleeps_after_it(void **state)
{
	struct power_wish w = sleep_to(POWER_PARKED);
	struct ladder l;

	(void)state;
	open_ladder(&l, 0, 0);
	power_suspend(l.power, true, DELAY_US, on_safe, &l);
	settle(&l);
	power_suspend(l.power, false, 0, NULL, NULL);
	settle(&l);
	is_on(&l, POWER_QUIET);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	settle(&l);
	power_suspend(l.power, true, DELAY_US, on_safe, &l);
	settle(&l);
	assert_int_equal(l.n_safe, 2);
	power_suspend(l.power, false, 0, NULL, NULL);
	settle(&l);
	is_on(&l, POWER_GONE);
	close_ladder(&l);
}

static void without_an_executor_there_is_nothing_to_ask(void **state)
{
	struct power_wish w = sleep_to(POWER_PARKED);
	struct err err = { 0 };
	struct ladder l;

	(void)state;
	open_ladder(&l, 60, 600);
	power_set_executor(l.power, NULL);
	assert_int_equal(power_ask(l.power, &w, &err), -EAGAIN);
	assert_string_equal(err.text, "there is no executor yet: the model is being opened");
	power_suspend(l.power, true, DELAY_US, on_safe, &l);
	settle(&l);
	assert_int_equal(l.n_safe, 1);
	power_suspend(l.power, false, 0, NULL, NULL);
	close_ladder(&l);
}

static void to_wake_waits_for_the_first_executor(void **state)
{
	struct power_wish up = { .kind = POWER_WISH_WAKE, .on_done = on_done };
	struct executor *executor;
	struct err err = { 0 };
	struct ladder l;

	(void)state;
	open_ladder(&l, 0, 0);
	executor = l.world.executor;
	power_set_executor(l.power, NULL);
	assert_int_equal(power_ask(l.power, &up, NULL), 0);
	settle(&l);
	assert_int_equal(l.n_done, 0);
	power_set_executor(l.power, executor);
	settle(&l);
	assert_int_equal(l.n_done, 1);
	assert_int_equal(l.done_r, 0);

	power_set_executor(l.power, NULL);
	assert_int_equal(power_ask(l.power, &up, NULL), 0);
	power_refuse(l.power, err_set(&err, -ENOEXEC, "no model"), &err);
	assert_int_equal(l.n_done, 2);
	assert_int_equal(l.done_r, -ENOEXEC);
	power_set_executor(l.power, executor);
	close_ladder(&l);
}

static void prices_are_reckoned_until_they_are_measured(void **state)
{
	struct power_wish w = sleep_to(POWER_GONE);
	struct power_view view;
	struct ladder l;

	(void)state;
	open_ladder(&l, 0, 0);
	power_look_at(l.power, &view);
	assert_int_equal(view.prices[POWER_PARKED].freed_bytes, WEIGHTS);
	assert_true(view.prices[POWER_PARKED].measured);
	assert_int_equal(view.prices[POWER_GONE].freed_bytes, RESIDENT);
	assert_int_equal(power_ask(l.power, &w, NULL), 0);
	settle(&l);
	power_look_at(l.power, &view);
	assert_int_equal(view.prices[POWER_GONE].freed_bytes,
			 RESIDENT); /* known while it is gone */
	close_ladder(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(never_by_idleness_unless_it_is_set),
		cmocka_unit_test(idleness_leads_down_rung_by_rung),
		cmocka_unit_test(the_executor_may_leave_without_having_been_parked),
		cmocka_unit_test(work_keeps_it_up_and_wakes_it),
		cmocka_unit_test(a_reader_that_stalls_keeps_nothing_awake),
		cmocka_unit_test(a_wish_to_sleep_waits_for_the_end_of_the_work),
		cmocka_unit_test(a_wish_to_wake_ends_the_others),
		cmocka_unit_test(a_wish_withdrawn_is_nobody_s),
		cmocka_unit_test(what_is_yielded_is_what_costs_least),
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
		cmocka_unit_test(before_suspend_turns_pause_and_afterwards_they_go_on),
		cmocka_unit_test(a_suspend_waits_for_no_longer_than_it_may),
		cmocka_unit_test(sleep_now_pauses_answers_until_others_come_or_a_wake_up),
		cmocka_unit_test(a_wish_to_sleep_now_withdrawn_halts_nothing),
		cmocka_unit_test(work_that_comes_while_it_is_sealed_is_done_at_once),
		cmocka_unit_test(what_slept_before_suspend_sleeps_after_it),
		cmocka_unit_test(without_an_executor_there_is_nothing_to_ask),
		cmocka_unit_test(to_wake_waits_for_the_first_executor),
		cmocka_unit_test(prices_are_reckoned_until_they_are_measured),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
