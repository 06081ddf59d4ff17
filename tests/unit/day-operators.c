/* Who wants the daemon of day.h to sleep, to wake up, or to give memory back; and the machine that does. */
#include "tests/unit/day.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/wire/codes.h"

static void end(struct day_operator *o, const struct msg *m)
{
	o->asked = false;
	if (o->reloads) {
		o->reloads = false;
		if (m->type == MSG_DONE)
			day.n.reloads++;
		else if (m->type != MSG_CANCELLED)
			assert_true(memmem(m->error.text.data, m->error.text.len,
					   "nothing was changed", 19));
		return;
	}
	if (m->type == MSG_DONE || m->type == MSG_CANCELLED) {
		day.n.wishes++;
		return;
	}
	/* somebody wished the opposite, or there is no executor now */
	assert_int_equal(m->type, MSG_ERROR);
	if (!span_is(m->error.code, CODE_BUSY) && !span_is(m->error.code, CODE_UNAVAILABLE) &&
	    !span_is(m->error.code, CODE_NO_SUCH) && !span_is(m->error.code, CODE_BAD_STATE))
		fail_msg("%.*s: %.*s", SPAN_ARG(m->error.code), SPAN_ARG(m->error.text));
	day.n.refused_wishes++;
}

bool day_operators_hear(void)
{
	struct msg m;
	bool any = false;

	for (uint32_t i = 0; i < DAY_OPERATORS; i++) {
		struct day_operator *o = &day.operators[i];

		while (o->client.fd >= 0 && day_receive(&o->client, &m) == 1) {
			any = true;
			if (m.type != MSG_PROGRESS)
				end(o, &m);
		}
	}
	return any;
}

void day_operators_died(void)
{
	day_operators_hear();
	day_withdraw_all();
}

void day_withdraw_all(void)
{
	for (uint32_t i = 0; i < DAY_OPERATORS; i++) {
		day_disconnect(&day.operators[i].client);
		day.operators[i].asked = false;
	}
}

static void ask(struct msg *m)
{
	struct day_operator *o = &day.operators[day_random(DAY_OPERATORS)];

	if (o->asked) { /* it does not want that any more */
		day_disconnect(&o->client);
		o->asked = false;
		return;
	}
	if (o->client.fd < 0)
		day_connect(&o->client, 0, "");
	m->id = o->id = 1 + day_random(1000);
	o->asked = true;
	o->reloads = m->type == MSG_RELOAD;
	day_send(&o->client, m);
}

void day_reload(void)
{
	struct msg m = { .type = MSG_RELOAD };

	ask(&m);
}

void day_wake(void)
{
	struct msg m = { .type = MSG_WAKE };

	ask(&m);
}

void day_lease_ends(void)
{
	if (day.leased == 0)
		return;
	kill(day.leased, SIGKILL);
	waitpid(day.leased, NULL, 0);
	day.leased = 0;
}

/* A process that only holds a lease. */
static pid_t hold(void)
{
	int pair[2];
	char byte;
	pid_t pid;

	assert_int_equal(pipe2(pair, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		closefrom(0);
		for (;;)
			pause();
	}
	close(pair[1]);
	assert_int_equal(read(pair[0], &byte, 1), 0); /* it has let go of all that it inherited */
	close(pair[0]);
	return pid;
}

void day_wish(void)
{
	struct msg m = { .type = MSG_SLEEP };

	switch (day_random(5)) {
	case 0:
		day_wake();
		return;
	case 1:
	case 2:
		MSG_SET(&m.sleep, rung, day_one_in(2) ? SPAN("parked") : SPAN("gone"));
		MSG_SET(&m.sleep, now, day_one_in(2));
		break;
	default:
		m.type = MSG_YIELD;
		MSG_SET(&m.yield, bytes, day_random(DAY_PAGES) * DAY_PAGE_BYTES);
		if (day_one_in(2) && day.leased == 0) {
			day.leased = hold();
			MSG_SET(&m.yield, pid, (uint32_t)day.leased);
			day.n.leases++;
		}
	}
	ask(&m);
}

void day_press(void)
{
	assert_int_equal(write(day.fifo_fd, "x", 1), 1);
	day.n.presses++;
}

static bool safe;

static void on_safe(void *userdata)
{
	(void)userdata;
	safe = true;
}

void day_suspend(void)
{
	const uint64_t delay_us = 5 * US_PER_S, since_us = clock_us();

	safe = false;
	power_suspend(day.server->power, true, delay_us, on_safe, NULL);
	while (!safe) {
		assert_true(clock_us() - since_us <
			    delay_us); /* the machine does not wait longer */
		if (!day_turn())
			clock_advance(20 * US_PER_MS);
		day_users_hear();
	}
	assert_int_equal(executor_state(day.server->engine->executor), EXECUTOR_GONE);
	clock_advance((1 + day_random(3)) * 3600 * US_PER_S / 2);
	power_suspend(day.server->power, false, 0, NULL, NULL);
	day.n.suspends++;
}

void day_operators_open(void)
{
	for (uint32_t i = 0; i < DAY_OPERATORS; i++)
		day.operators[i].client.fd = -1;
}
