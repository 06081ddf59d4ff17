#include "tests/unit/ladder.h"

#include <errno.h>

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

void ladder_on_safe(void *userdata)
{
	((struct ladder *)userdata)->n_safe++;
}

void ladder_on_done(struct power_wish *w, int r, const struct err *err)
{
	(void)w;
	assert_int_equal(r < 0, err && err->text[0]); /* a failure has its sentence */
	the_ladder->n_done++;
	the_ladder->done_r = r;
}

void ladder_on_progress(struct power_wish *w)
{
	(void)w;
	the_ladder->n_progress++;
}

/* What the executor says when it is ready, as large as its weights. */
static void say_ready(struct computer *c)
{
	struct control_ready ready = { .kind = CONTROL_READY,
				       .in_arena = 1,
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
void ladder_run(struct ladder *l, uint64_t n_steps)
{
	for (uint32_t i = 0; i < 5; i++) {
		world_run(&l->world, n_steps);
		power_look(
			l->power); /* as the server does when the scheduler or the executor moved */
		world_run(&l->world, n_steps ? UINT64_MAX : 0);
		obey(l);
	}
}

void ladder_settle(struct ladder *l)
{
	ladder_run(l, UINT64_MAX);
}

/* The clock goes on; the timer is what is due meanwhile, each at its time. */
void ladder_pass(struct ladder *l, uint64_t seconds)
{
	const uint64_t end = clock_us() + seconds * US_PER_S;
	uint64_t next;

	while ((next = power_next_us(l->power)) && next <= end) {
		clock_advance(next - clock_us());
		power_tick(l->power);
		ladder_settle(l);
	}
	clock_advance(end - clock_us());
	ladder_settle(l);
}

void ladder_open(struct ladder *l, uint32_t idle_park, uint32_t idle_exit)
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
	ladder_settle(l);
	/* the toy's first words know no sizes: it says them when it wakes up */
	executor_park(l->world.executor);
	ladder_settle(l);
	executor_wake(l->world.executor);
	ladder_settle(l);
	assert_int_equal(executor_state(l->world.executor), EXECUTOR_READY);
}

void ladder_close(struct ladder *l)
{
	l->power = power_free(l->power);
	world_close(&l->world);
	clock_real();
}

void ladder_is_on(struct ladder *l, enum power_rung rung)
{
	struct power_view view;

	power_look_at(l->power, &view);
	assert_string_equal(power_rung_name(view.rung), power_rung_name(rung));
	assert_false(view.moving);
}

struct power_wish ladder_sleep_to(enum power_rung rung)
{
	return (struct power_wish){ .kind = POWER_WISH_SLEEP,
				    .rung = rung,
				    .on_done = ladder_on_done };
}
