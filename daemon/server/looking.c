/* A queue of requests, and a timer while there are any. */
#include "daemon/server/looking.h"

#include <errno.h>

#include "client/wire/ownership.h"
#include "daemon/server/report.h"

static int answer(struct request *q)
{
	_cleanup_(freep) char *json = report_status(q->server, q->peer);
	struct msg m = { .type = MSG_DONE };

	if (!json)
		return -ENOMEM;
	MSG_SET(&m.done, json, span_of(json));
	request_done(q, &m);
	return 0;
}

void looking_seen(struct server *s)
{
	struct err err = { 0 };
	struct request *q;

	sd_event_source_set_enabled(s->looking_timer, SD_EVENT_OFF);
	while ((q = TAILQ_FIRST(&s->looking))) {
		looking_forget(q);
		if (answer(q) < 0) {
			err_set(&err, -ENOMEM, "out of memory");
			request_error(q, -ENOMEM, &err);
		}
	}
}

static int on_time(sd_event_source *source, uint64_t usec, void *userdata)
{
	(void)source, (void)usec;
	looking_seen(userdata);
	return 0;
}

static int arm(struct server *s)
{
	int r;

	if (!s->looking_timer)
		return sd_event_add_time_relative(s->loop, &s->looking_timer, CLOCK_MONOTONIC,
						  LOOKING_US, 0, on_time, s);
	r = sd_event_source_set_time_relative(s->looking_timer, LOOKING_US);
	return r < 0 ? r : sd_event_source_set_enabled(s->looking_timer, SD_EVENT_ONESHOT);
}

int looking_on_status(struct request *q, struct err *err)
{
	struct server *s = q->server;

	(void)err;
	if (!s->engine || executor_look(s->engine->executor) < 0)
		return answer(q);
	/* whoever comes later waits with the first, and makes it wait no longer */
	if (TAILQ_EMPTY(&s->looking) && arm(s) < 0)
		return answer(q);
	TAILQ_INSERT_TAIL(&s->looking, q, look);
	q->is_looking = true;
	return 0;
}

void looking_forget(struct request *q)
{
	if (q->is_looking)
		TAILQ_REMOVE(&q->server->looking, q, look);
	q->is_looking = false;
}

void looking_close(struct server *s)
{
	s->looking_timer = sd_event_source_disable_unref(s->looking_timer);
}
