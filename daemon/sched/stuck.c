/*
 * The executor that computes one step for ever: a kernel that hangs, a driver that
 * does not return. Time is counted in ticks of a quarter of StepTimeout=, so that
 * nothing is done for a step, and a broker that was stopped, or a machine that
 * slept, counts as a tick at most.
 */
#include "client/wire/ownership.h"
#include "daemon/base/clock.h"
#include "daemon/sched/queue.h"

#define TICKS 4
#define OF_EXPECTED 4 /* a step may take so many times what it was expected to */

static struct ring *busy_ring(const struct sched *s)
{
	struct ring *ring = executor_ring(s->executor);

	return ring && ring_in_flight(ring) > 0 ? ring : NULL;
}

static uint64_t tick_us(const struct sched *s)
{
	return s->settings->step_timeout * US_PER_S / TICKS;
}

/* What the oldest step in flight was expected to take; 0: nobody knows. */
static double expected_us(const struct sched *s)
{
	return s->n_flights > 0 && !s->flights[0].is_move
		       ? pace_step_us(&s->pace, &s->flights[0].load)
		       : 0;
}

static void arm(struct sched *s)
{
	if (sd_event_source_set_time_relative(s->stuck.timer, tick_us(s)) >= 0)
		sd_event_source_set_enabled(s->stuck.timer, SD_EVENT_ONESHOT);
}

static int on_tick(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct sched *s = userdata;
	struct stuck *stuck = &s->stuck;
	char why[128];

	(void)source, (void)usec;
	sched_executor_changed(s); /* what came while nobody looked */
	if (!busy_ring(s) || s->settings->step_timeout == 0) {
		stuck->n_ticks = 0;
		stuck->was_busy = false;
	} else if (!stuck->was_busy || stuck->done != s->done ||
		   stuck->generation != s->generation) {
		stuck->n_ticks = 0;
		stuck->was_busy = true;
		stuck->done = s->done;
		stuck->generation = s->generation;
	} else if (++stuck->n_ticks >= TICKS &&
		   (double)stuck->n_ticks * tick_us(s) >= OF_EXPECTED * expected_us(s)) {
		snprintf(why, sizeof(why), "step %llu has not ended after %llu s (StepTimeout=)",
			 (unsigned long long)(s->n_flights > 0 ? s->flights[0].id : s->done + 1),
			 (unsigned long long)(stuck->n_ticks * tick_us(s) / US_PER_S));
		stuck->was_busy = false;
		executor_fail(s->executor, why);
	}
	stuck_look(s);
	return 0;
}

int stuck_begin(struct sched *s)
{
	int r;

	r = sd_event_add_time_relative(s->loop, &s->stuck.timer, CLOCK_MONOTONIC, 0, US_PER_S,
				       on_tick, s);
	return r < 0 ? r : sd_event_source_set_enabled(s->stuck.timer, SD_EVENT_OFF);
}

void stuck_end(struct sched *s)
{
	s->stuck.timer = sd_event_source_disable_unref(s->stuck.timer);
}

void stuck_look(struct sched *s)
{
	/* also between two steps of turns that go on, so that no timer is set for a step */
	const bool wanted = s->settings->step_timeout > 0 && executor_ring(s->executor) &&
			    (busy_ring(s) || sched_work(s) > 0);
	int enabled = SD_EVENT_OFF;

	sd_event_source_get_enabled(s->stuck.timer, &enabled);
	if (wanted && enabled == SD_EVENT_OFF)
		arm(s);
	else if (!wanted && enabled != SD_EVENT_OFF)
		sd_event_source_set_enabled(s->stuck.timer, SD_EVENT_OFF);
}
