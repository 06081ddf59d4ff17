/*
 * steamd-gateway: one thread, one event loop. Visitors (connections) come in
 * through doors (listening sockets); libmicrohttpd reads their requests, each of
 * which is an exchange; routes answer it with what links (connections to steamd)
 * bring.
 */
#pragma once

#include <microhttpd.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <systemd/sd-event.h>

#include "client/gateway/setup.h"

#define GATEWAY_DOORS_MAX 16
#define GATEWAY_SPARE_CONNECTIONS 256 /* that are told that there are too many */

struct door;
struct keys;
struct link;
struct responses;

/* What /metrics tells, besides what steamd knows itself. */
struct gateway_counts {
	uint64_t n_visitors, n_turned_away;
	uint64_t n_requests, n_status[6]; /* by hundreds */
	uint64_t n_cancelled;		  /* answers whose reader left */
	uint64_t n_tokens, n_prompt_tokens, n_cached_tokens;
};

LIST_HEAD(visitor_list, visitor);
LIST_HEAD(exchange_list, exchange);
LIST_HEAD(link_list, link);
LIST_HEAD(peer_list, peer);

struct gateway {
	const struct setup *setup;
	sd_event *loop;
	int wait_fd;	   /* an epoll of what is waited for: the loop, and past it the links */
	bool loop_changed; /* a timer was set, or something is to be done: the loop is to look */
	struct MHD_Daemon *http;
	sd_event_source *http_io, *http_again, *sweep;
	bool in_turn, kicked; /* see gateway_begin_turn() */
	struct door *doors[GATEWAY_DOORS_MAX];
	unsigned n_doors;
	bool activated; /* systemd holds the sockets */
	struct visitor_list visitors;
	struct visitor *arriving;    /* while libmicrohttpd makes its connection */
	struct exchange_list unsent; /* streams with something new in this turn */
	struct peer_list peers;
	uint64_t n_visitors, n_unwelcome, last_visit_us; /* unwelcome: those that are turned away */
	uint64_t body_bytes; /* held, of all exchanges and replies that wait */
	struct keys *keys;   /* NULL: only one's own user is served */
	struct link_list links;
	struct responses *responses; /* what is known of stored responses */
	uint64_t started_s;	     /* of the real time */
	struct gateway_counts counts;
};

/* Microseconds of the monotonic clock. */
uint64_t gateway_now_us(void);

/* Whether link_read() is called when something of @l is there to be read. 0 or a negative errno. */
int gateway_watch(struct gateway *g, struct link *l, bool wanted);

/*
 * Opens the doors, says that it is ready, and serves until SIGTERM, SIGINT, or
 * until it was idle for long enough. 0, or a negative errno with a sentence.
 */
int gateway_run(const struct setup *setup, struct err *err);

/* Has libmicrohttpd look after its connections soon … */
void gateway_kick(struct gateway *g);
/*
 * … and in between these two at the end, at once: a turn of the loop saved for
 * every token, and one call for all that a stream got in it.
 */
void gateway_begin_turn(struct gateway *g);
void gateway_end_turn(struct gateway *g);
/* A visitor came: see to it that it does not stay for ever. */
void gateway_sweep_on(struct gateway *g);
