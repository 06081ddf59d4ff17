/* Handles of libsteamd in the gateway's loop. */
#include "client/gateway/link.h"

#include <errno.h>
#include <string.h>

#include "client/gateway/responses.h"
#include "client/gateway/vocab.h"

#define ANSWER_US (5 * 1000 * 1000) /* in which steamd answers the simplest questions */
#define QUIET_US (10 * 1000 * 1000) /* it said nothing for so long: it is asked one of those */
#define LOOK_US (1000 * 1000)
#define DRAIN_US (1000 * 1000)
#define DRAIN_MS 50

void link_read(struct link *l)
{
	gateway_begin_turn(l->g);
	l->heard_us = gateway_now_us();
	steamd_process(l->s, NULL);
	gateway_end_turn(l->g);
}

/* What was asked and is still open was cancelled before: its end comes soon, if it comes. */
static void drain(struct link *l)
{
	const uint64_t end_us = gateway_now_us() + DRAIN_US;

	while (steamd_wait(l->s, DRAIN_MS, NULL) > 0 && gateway_now_us() < end_us)
		;
}

static void link_free(struct link *l)
{
	if (l->s) {
		gateway_watch(l->g, l, false);
		drain(l);
	}
	steamd_close(l->s);
	vocab_free_all(l->vocab);
	free(l->label);
	free(l);
}

bool link_is_of(const struct link *l, const char *label)
{
	return label ? l->label && strcmp(l->label, label) == 0 : !l->label;
}

struct link *link_get(struct gateway *g, const char *label, struct refusal *no)
{
	struct steamd_error err = { 0 };
	struct link *l;

	LIST_FOREACH(l, &g->links, link)
	if (link_is_of(l, label)) {
		if (l->met)
			responses_look(l);
		return l;
	}
	l = calloc(1, sizeof(*l));
	if (!l || (label && !(l->label = strdup(label)))) {
		free(l);
		refusal_set(no, 503, "no-memory", NULL, "out of memory");
		return NULL;
	}
	l->g = g;
	l->heard_us = gateway_now_us();
	TAILQ_INIT(&l->waiting);
	TAILQ_INIT(&l->parked);
	if (steamd_start_open(g->setup->socket, "steamd-gateway", label, &l->s, &err) < 0) {
		refusal_of(no, &err);
		link_free(l);
		return NULL;
	}
	if (gateway_watch(g, l, true) < 0) {
		refusal_set(no, 503, "no-memory", NULL, "out of memory");
		link_free(l);
		return NULL;
	}
	LIST_INSERT_HEAD(&g->links, l, link);
	return l;
}

void link_close_all(struct gateway *g)
{
	struct link *l;

	while ((l = LIST_FIRST(&g->links))) {
		LIST_REMOVE(l, link);
		link_free(l);
	}
}

/* Silence. */

static void set_late(const struct link *l, struct steamd_error *ret)
{
	struct steamd_info info;

	*ret = (struct steamd_error){ .error = -ETIMEDOUT,
				      .code = STEAMD_CODE_NO_DAEMON,
				      .retryable = 1 };
	snprintf(ret->text, sizeof(ret->text),
		 "steamd at '%.512s' does not answer: it is stopped, or hangs",
		 steamd_info(l->s, &info) == 0 ? info.socket_path : "");
}

static void on_probed(void *userdata, const struct steamd_result *result,
		      const struct steamd_error *err)
{
	struct link *l = userdata;

	(void)result, (void)err;
	l->probe_us = 0;
}

static bool was_asked_in_vain(const struct link *l)
{
	return l->probe_us > 0 && gateway_now_us() - l->probe_us > ANSWER_US;
}

bool link_is_silent(struct link *l)
{
	const struct steamd_handler handler = { .on_end = on_probed, .userdata = l };
	const uint64_t now_us = gateway_now_us();

	if (l->probe_us == 0 && now_us - l->heard_us > QUIET_US &&
	    steamd_start_query(l->s, STEAMD_STATUS, &handler, NULL, NULL) == 0)
		l->probe_us = now_us;
	return was_asked_in_vain(l);
}

void link_set_silent(struct link *l, struct refusal *no)
{
	struct steamd_error err;

	set_late(l, &err);
	refusal_of(no, &err);
}

void link_look_soon(struct exchange *x, void (*on_late)(struct exchange *x))
{
	x->on_late = on_late;
	x->until_us = gateway_now_us() + LOOK_US;
}

/* Hello. */

static void meet(struct link *l)
{
	if (l->met)
		return;
	l->met = true;
	responses_look(l);
}

static void unpark(struct exchange *x)
{
	struct link *l = x->work;

	TAILQ_REMOVE(&l->parked, x, parked);
	x->work = NULL;
	x->on_left = NULL;
	x->on_late = NULL;
}

/* It said hello, perhaps, and nothing since. */
static void refuse_parked(struct exchange *x)
{
	struct link *l = x->work;
	struct refusal no;

	if (!link_is_silent(l)) {
		link_look_soon(x, refuse_parked);
		return;
	}
	unpark(x);
	link_set_silent(l, &no);
	exchange_refuse(x, &no);
}

static void on_greeted(void *userdata, const struct steamd_result *result,
		       const struct steamd_error *err)
{
	struct link *l = userdata;
	struct exchange *x;
	struct refusal no;

	(void)result;
	l->is_greeting = false;
	if (!err)
		meet(l);
	while ((x = TAILQ_FIRST(&l->parked))) {
		unpark(x);
		if (l->met) {
			exchange_go_on(x);
			continue;
		}
		refusal_of(&no, err);
		exchange_refuse(x, &no);
	}
}

void link_await(struct exchange *x)
{
	struct refusal no = { 0 };
	struct link *l = link_get(x->g, x->label, &no);
	const struct steamd_handler handler = { .on_end = on_greeted, .userdata = l };
	struct steamd_error err = { 0 };

	if (l && was_asked_in_vain(l)) {
		link_set_silent(l, &no);
	} else if (l && l->met) {
		exchange_go_on(x);
		return;
	}
	if (!no.status && !l->is_greeting &&
	    steamd_start_query(l->s, STEAMD_STATUS, &handler, NULL, &err) < 0)
		refusal_of(&no, &err);
	if (no.status) {
		exchange_refuse(x, &no);
		return;
	}
	l->is_greeting = true;
	x->work = l;
	x->on_left = unpark;
	link_look_soon(x, refuse_parked);
	TAILQ_INSERT_TAIL(&l->parked, x, parked);
}

static unsigned room(const struct link *l)
{
	struct steamd_info info;

	if (steamd_info(l->s, &info) < 0 || info.max_requests <= LINK_SPARE_REQUESTS)
		return 1;
	return info.max_requests - LINK_SPARE_REQUESTS;
}

int link_enter(struct link *l, struct link_place *place, struct refusal *no)
{
	if (l->n_running < room(l) && l->n_waiting == 0) {
		l->n_running++;
		place->start(place);
		return 0;
	}
	if (l->n_waiting >= l->g->setup->max_queued) {
		refusal_set(no, 429, REFUSAL_BUSY, NULL,
			    "%u answers are being computed and %u wait; no more can", l->n_running,
			    l->n_waiting);
		return -EAGAIN;
	}
	place->waits = true;
	TAILQ_INSERT_TAIL(&l->waiting, place, link);
	l->n_waiting++;
	return 0;
}

void link_leave(struct link *l, struct link_place *place)
{
	struct link_place *next;

	if (place->waits) {
		place->waits = false;
		TAILQ_REMOVE(&l->waiting, place, link);
		l->n_waiting--;
		return;
	}
	l->n_running--;
	while (l->n_running < room(l) && (next = TAILQ_FIRST(&l->waiting))) {
		next->waits = false;
		TAILQ_REMOVE(&l->waiting, next, link);
		l->n_waiting--;
		l->n_running++;
		next->start(next);
	}
}

/* Questions. */

static void ask_left(struct exchange *x)
{
	struct ask *ask = x->work;

	ask->x = NULL;
	steamd_cancel(ask->link->s, ask->request);
}

/* The exchange has nothing to do with it any more. */
static struct exchange *detach(struct ask *ask)
{
	struct exchange *x = ask->x;

	x->work = NULL;
	x->on_left = NULL;
	x->on_late = NULL;
	ask->x = NULL;
	return x;
}

static void on_ask_end(void *userdata, const struct steamd_result *result,
		       const struct steamd_error *err)
{
	struct ask *ask = userdata;
	struct exchange *x = ask->x ? detach(ask) : NULL;
	const link_then_fn then = ask->then;

	if (!err)
		meet(ask->link);
	ask->link->n_late -= ask->is_late;
	free(ask);
	if (x)
		then(x, result, err);
}

/* Its answer is not waited for any more. */
static void give_up(struct exchange *x)
{
	static const struct steamd_result none = { 0 };
	struct ask *ask = x->work;
	struct steamd_error err;

	set_late(ask->link, &err);
	ask->is_late = true;
	ask->link->n_late++;
	steamd_cancel(ask->link->s, ask->request);
	ask->then(detach(ask), &none, &err);
}

static void on_late(struct exchange *x)
{
	const struct ask *ask = x->work;

	if (link_is_silent(ask->link))
		give_up(x);
	else
		link_look_soon(x, on_late);
}

struct ask *link_ask(struct exchange *x, link_then_fn then)
{
	struct refusal no = { 0 };
	struct link *l = link_get(x->g, x->label, &no);
	struct ask *ask = l ? calloc(1, sizeof(*ask)) : NULL;

	if (l && !ask)
		refusal_set(&no, 503, "no-memory", NULL, "out of memory");
	if (!ask) {
		exchange_refuse(x, &no);
		return NULL;
	}
	*ask = (struct ask){ .x = x,
			     .link = l,
			     .then = then,
			     .handler = { .on_end = on_ask_end, .userdata = ask } };
	x->work = ask;
	x->on_left = ask_left;
	link_look_soon(x, on_late);
	return ask;
}

void link_asked(struct ask *ask, int r, const struct steamd_error *err)
{
	struct exchange *x = ask->x;
	struct refusal no;

	if (r >= 0)
		return;
	detach(ask);
	free(ask);
	refusal_of(&no, err);
	exchange_refuse(x, &no);
}

void link_query(struct exchange *x, enum steamd_query what, link_then_fn then)
{
	static const struct steamd_result none = { 0 };
	struct ask *ask = link_ask(x, then);
	struct steamd_error err = { 0 };

	if (!ask)
		return;
	if (ask->link->n_late > 0) {
		set_late(ask->link, &err);
		then(detach(ask), &none, &err);
		free(ask);
		return;
	}
	x->on_late = give_up;
	x->until_us = gateway_now_us() + ANSWER_US;
	link_asked(ask, steamd_start_query(ask->link->s, what, &ask->handler, &ask->request, &err),
		   &err);
}
