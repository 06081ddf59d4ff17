/*
 * Connections to steamd, one for each label, and what is asked over them. All
 * answers of the gateway share them: those beyond what a connection may carry
 * wait here, in order.
 */
#pragma once

#include "client/gateway/exchange.h"
#include "client/steamd.h"

struct vocab;

#define LINK_SPARE_REQUESTS 8 /* of what a connection may carry, kept for questions */

/* One answer's place in the line. */
struct link_place {
	TAILQ_ENTRY(link_place) link;
	bool waits;
	void (*start)(struct link_place *place); /* its turn has come */
};

struct link {
	LIST_ENTRY(link) link;
	struct gateway *g;
	char *label; /* NULL: none */
	struct steamd *s;
	bool met;	 /* steamd has said what it is, and what the connection carries */
	bool is_greeting; /* and was asked to */
	TAILQ_HEAD(, exchange) parked;
	TAILQ_HEAD(, link_place) waiting;
	unsigned n_waiting, n_running;
	unsigned n_late; /* questions that steamd should have answered */
	uint64_t heard_us; /* when something last came of it */
	uint64_t probe_us; /* when it was asked whether it is there; 0: it was not, or has answered */
	uint64_t expired_us; /* when old stored responses were looked for; 0: not yet */
	uint64_t n_stored;   /* responses since then */
	struct vocab *vocab; /* the newest; NULL: none was wanted yet */
};

/* The link of @label, made if need be: it connects when something is asked. NULL: @no says why. */
struct link *link_get(struct gateway *g, const char *label, struct refusal *no);
/* Takes what has come. */
void link_read(struct link *l);
bool link_is_of(const struct link *l, const char *label);
/*
 * Whether steamd says nothing any more, not even when it is asked. Whoever waits
 * for it looks once a second: it is asked when nothing came for a while.
 */
bool link_is_silent(struct link *l);
/* … and is told so, worth another try later. */
void link_set_silent(struct link *l, struct refusal *no);
/* Has @on_late called in a second, if @x waits for steamd still. */
void link_look_soon(struct exchange *x, void (*on_late)(struct exchange *x));
void link_close_all(struct gateway *g);

/* exchange_go_on() when steamd has said hello, which is at once as a rule; or it is refused. */
void link_await(struct exchange *x);

/* Starts, or waits. -EAGAIN: too many wait; nothing was done. */
int link_enter(struct link *l, struct link_place *place, struct refusal *no);
/* It ended, or waits no longer; the next one's turn comes. */
void link_leave(struct link *l, struct link_place *place);

/*
 * A question of steamd on behalf of an exchange. @then gets how it ended, unless
 * the reader left before: it answers, or asks again.
 */
typedef void (*link_then_fn)(struct exchange *x, const struct steamd_result *result,
			     const struct steamd_error *err);

struct ask {
	struct exchange *x; /* NULL: the reader left, or was told that it is late */
	bool is_late;
	struct link *link;
	uint64_t request;
	link_then_fn then;
	struct steamd_handler handler; /* for steamd_start_…() */
};

/* NULL: the exchange was refused. Then steamd_start_…() with ask->handler and &ask->request … */
struct ask *link_ask(struct exchange *x, link_then_fn then);
/* … and what that returned: a failure refuses the exchange. */
void link_asked(struct ask *ask, int r, const struct steamd_error *err);

/* The whole of it for the simplest questions, which steamd has to answer soon. */
void link_query(struct exchange *x, enum steamd_query what, link_then_fn then);
