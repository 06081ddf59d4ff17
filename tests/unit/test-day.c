/*
 * A desktop's day on the virtual clock: 24 hours, and over them 1,000 requests
 * in 20 sessions and some conversations without one, of three users, two of whom
 * begin with a marked prompt. With sleep by idleness, by wish, by lease, for
 * want of memory and for a suspended machine, restarts and deaths of the broker,
 * power cuts, deaths of the executor, flipped bits, stalled readers, lost
 * connections, cancels and deadlines, in an arena that holds a part of it all,
 * with a disk behind it that holds some more. The broker is the real one, see
 * day.h. What must hold is looked at after every step, and what the store has in
 * every life of the broker.
 *
 * Usage: test-day [FIRST-LAST | N]: the days of these seeds, or of 1 to N.
 */
#include "tests/unit/day.h"

#include <stdio.h>

#include "tests/unit/virtual-time.h"

/* The sanitizers take ten times as long. */
#ifdef __SANITIZE_ADDRESS__
#define SEEDS 4
#else
#define SEEDS 20
#endif

struct day day;

uint32_t day_random(uint32_t n)
{
	uint64_t z = day.rng += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return (uint32_t)((z ^ z >> 31) % n);
}

bool day_one_in(uint32_t n)
{
	return day_random(n) == 0;
}

static int compare_times(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Few ask at night, and some things come in bursts. */
static void plan_day(void)
{
	for (uint32_t i = 0; i < DAY_REQUESTS; i++) {
		uint64_t hour;

		do
			hour = day_random(24);
		while (hour < 7 && !day_one_in(5));
		day.at_us[i] = (hour * 3600 + day_random(3600)) * US_PER_S;
		if (i % 2 == 1)
			day.at_us[i] = MIN(day.at_us[i - 1] + day_random(4 * US_PER_S), DAY_US);
	}
	qsort(day.at_us, DAY_REQUESTS, sizeof(*day.at_us), compare_times);
}

static bool is_up(void)
{
	struct power_view view;

	power_look_at(day.server->power, &view);
	return day.server->engine && !view.moving &&
	       executor_state(day.server->engine->executor) == EXECUTOR_READY;
}

static void something_happens(void)
{
	if (day_one_in(1200))
		day_stop_broker();
	if (day_one_in(1200))
		day_kill_broker(DAY_NOW);
	if (day_one_in(600) && is_up())
		day_kill_broker(DAY_IN_RESULT);
	if (day_one_in(2000))
		day_cut_power();
	if (day_one_in(600))
		day_kill_executor();
	if (day_one_in(150))
		day_cancel();
	if (day_one_in(150))
		day_leave();
	if (day_one_in(40))
		day_stall_or_read();
	if (day_one_in(100))
		day_query(&day.talks[day_random(DAY_TALKS)]);
	if (day_one_in(1500))
		day_wish();
	if (day_one_in(1500))
		day_press();
	if (day_one_in(1000))
		day_reload();
}

/* Nothing waits to be done. */
static void nothing_happens(void)
{
	if (day_one_in(40))
		day_kill_executor(); /* asleep, too */
	else if (day_one_in(12))
		day_wish();
	else if (day_one_in(100))
		day_press();
	else if (day_one_in(40))
		day_reload();
	else if (day_one_in(60) && is_up())
		day_suspend();
	else if (day_one_in(60))
		day_lease_ends();
	else if (day_one_in(200))
		day_kill_broker(DAY_NOW);
}

/* The clock goes on to @until_us, or to the event loop's first timer if that is before. */
static void pass(uint64_t until_us)
{
	const uint64_t next_us = virtual_time_next();

	if (next_us == 0 || next_us > until_us) {
		clock_advance(until_us - clock_us());
	} else {
		clock_advance(MAX(next_us, clock_us() + 1) - clock_us());
		day.n.timers++;
	}
	day_run_loop();
}

static void live(uint64_t until_us)
{
	uint32_t still = 0;

	while (clock_us() < until_us) {
		bool moved = day_turn();

		moved = day_users_hear() || moved;
		moved = day_operators_hear() || moved;
		if (moved) {
			still = 0;
			day_assert_all();
			something_happens();
		} else if (++still >= 3) {
			still = 0;
			day_assert_quiet();
			if (day_one_in(3))
				nothing_happens();
			else
				pass(until_us);
		}
	}
}

static void open_day(uint64_t seed)
{
	memset(&day, 0, sizeof(day));
	day.rng = seed;
	day.bits_flip = seed % 2 == 0;
	day_users_open();
	day_operators_open();
	day_boot();
	plan_day();
}

static void close_day(void)
{
	day_withdraw_all();
	day_lease_ends();
	while (day_is_waiting()) {
		day_all_read();
		live(clock_us() + US_PER_S);
	}
	day_stop_broker(); /* and what it kept is looked at once more */
	live(clock_us() + 60 * US_PER_S);
	day_sessions_check();
	day_users_close();
	day_withdraw_all();
}

static void tell(uint64_t n_us)
{
	const struct day_counts *n = &day.n;

	print_message(
		"  %.1f h: %u whole answers, %u to a stop, %u cancelled, %u too late, %u ended "
		"by two deaths, %u lost, %u refused for want of an executor\n",
		n_us / 3.6e9, n->done, n->stops_at, n->cancelled, n->deadlines, n->faults, n->lost,
		n->refused);
	print_message("  the broker: %u restarts (%u stopped, %u killed, %u of those inside a "
		      "result, %u before pages were cleared), %u power cuts; %u answers resumed, "
		      "%u asked again\n",
		      n->restarts, n->stops, n->kills_broker, n->inside, n->before_orders,
		      n->reboots, n->resumed, n->again);
	print_message("  the executor: %u deaths, %u times parked, %u gone and %u back; %u wishes "
		      "granted, %u not, %u reloads, %u leases, %u signs of pressure, %u suspends, "
		      "%u timers, "
		      "quiet %u times\n",
		      n->kills, n->parks, n->leaves, n->wakes, n->wishes, n->refused_wishes,
		      n->reloads, n->leases, n->presses, n->suspends, n->timers, n->quiet);
	print_message("  tokens: %llu of prompts, %llu of them cached, %llu of those on disk, %llu "
		      "sampled, %llu computed; pages: %u evicted, %llu written, %llu read; %u bits "
		      "flipped, %u pages not believed, %u left to be "
		      "by a broker that died\n",
		      (unsigned long long)n->prompt_tokens, (unsigned long long)n->cached,
		      (unsigned long long)n->cached_disk, (unsigned long long)n->sampled,
		      (unsigned long long)day.computer.n_computed, n->evicted,
		      (unsigned long long)n->written, (unsigned long long)n->read, n->flips,
		      n->damaged, n->left_uncleared);
	print_message("  sessions: %u turns compared, %u appeared, %u rewound, %u forked, %u "
		      "removed, %u too long; %u questions of other kinds\n",
		      n->checked, n->appeared, n->rewinds, n->forks, n->removed, n->too_long,
		      n->queries);
}

/* The day was what it is meant to be. */
static void assert_day(uint64_t n_us)
{
	const struct day_counts *n = &day.n;

	assert_true(n_us >= DAY_US && n_us < DAY_US + 2 * 3600 * US_PER_S);
	assert_int_equal(day.n_asked, DAY_REQUESTS);
	assert_true(n->done > DAY_REQUESTS * 2 / 3);
	assert_true(n->stops > 0 && n->kills_broker > 0 && n->inside > 0 && n->reboots > 0);
	assert_true(n->resumed > 0 && n->again > 0 && n->kills > 0 && n->parks > 0 &&
		    n->leaves > 0 && n->wakes > 0);
	assert_true(n->wishes > 0 && n->reloads > 0 && n->leases > 0 && n->presses > 0 &&
		    n->suspends > 0);
	assert_true(n->evicted > 0 && n->written > 0 && n->read > 0 && n->cancelled > 0);
	assert_true(n->rewinds > 0 && n->forks > 0 && n->queries > 0 && n->quiet > 0);
	assert_true(n->checked > DAY_REQUESTS && n->cached > n->prompt_tokens / 3);
	/* what follows a damaged page is lost with it; where no bit flips, nothing is */
	assert_true(n->flips > 0 || n->damaged == 0);
}

/* Deaths before pages were cleared, in all days. */
static uint32_t n_before_orders;

static void live_a_day(uint64_t seed)
{
	uint64_t n_us;

	print_message("seed %llu\n", (unsigned long long)seed);
	open_day(seed);
	while (day.n_asked < DAY_REQUESTS) {
		const uint64_t at_us = day.begun_us + day.at_us[day.n_asked];

		/* where all conversations wait for an answer, a moment later */
		live(MAX(at_us, clock_us() + US_PER_S / 10));
		day_ask();
		if (day_one_in(25))
			day_kill_broker(DAY_BEFORE_ORDERS);
		else if (day_one_in(100)) /* it has not even read it, or has, and has not said so */
			day_kill_broker(DAY_NOW);
		else if (day_one_in(100) && day_run_loop())
			day_kill_broker(DAY_NOW);
	}
	live(day.begun_us + DAY_US);
	n_us = clock_us() - day.begun_us;
	close_day();
	tell(n_us);
	assert_day(n_us);
	n_before_orders += day.n.before_orders;
	day_shut_down();
}

static uint64_t first = 1, last = SEEDS;

static void days_go_by(void **state)
{
	(void)state;
	for (uint64_t seed = first; seed <= last; seed++)
		live_a_day(seed);
	/* too rare for each of the days */
	assert_true(n_before_orders > 0 || last - first < 3);
}

static bool read_seeds(const char *text)
{
	char *end;

	last = strtoull(text, &end, 10);
	if (*end == '-') {
		first = last;
		last = strtoull(end + 1, &end, 10);
	}
	return *end == '\0' && first <= last;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(days_go_by),
	};

	if (argc > 2 || (argc == 2 && !read_seeds(argv[1]))) {
		fprintf(stderr, "Usage: test-day [FIRST-LAST | N]\n");
		return 2;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
