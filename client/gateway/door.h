/*
 * Listening sockets, the visitors that come in through them, and how many and
 * how long they may be there.
 */
#pragma once

#include "client/gateway/gateway.h"
#include "client/gateway/refusal.h"

/* Who has connections: a user of this machine, or an address. */
struct peer {
	LIST_ENTRY(peer) link;
	char name[64]; /* "uid 1000" or the address */
	unsigned n;    /* connections */
};

enum visitor_stage {
	VISITOR_ARRIVING, /* request line and headers are coming: see head.h */
	VISITOR_SERVED,	  /* libmicrohttpd has it, and owns the descriptor */
	VISITOR_REFUSED,  /* it was told that it speaks no HTTP, and may read that before it ends */
};

/* One connection. */
struct visitor {
	LIST_ENTRY(visitor) link;
	struct gateway *g;
	struct peer *peer;
	struct MHD_Connection *http;
	int fd;
	enum visitor_stage stage;
	bool is_unix;	    /* no web page reaches it: its Host is not looked at */
	bool is_local;	    /* of this machine */
	bool gone;	    /* it hung up while its connection was suspended */
	bool sends_no_more; /* it closed its side, and may still read */
	size_t n_discarded; /* bytes of one that is refused */
	uint32_t n_requests;
	uint64_t since_us;	   /* when it came, or its last exchange ended */
	struct exchange *exchange; /* NULL: none is under way */
	struct refusal *no;	   /* it is told this and nothing else; NULL: it is welcome */
	sd_event_source *io; /* something came, it hung up, or has room: see door_want_room() */
	bool wants_room;
};

/*
 * Takes systemd's sockets and opens those of the setup. -EINVAL: a place makes
 * no sense, there is none, or one is open to other machines and there are no
 * keys; or what the system says. Every failure has its sentence.
 */
int door_open_all(struct gateway *g, struct err *err);
void door_close_all(struct gateway *g);

/* libmicrohttpd has made the connection of the visitor that just came, or ends one. */
void door_notify(void *userdata, struct MHD_Connection *http, void **context,
		 enum MHD_ConnectionNotificationCode code);

/*
 * libmicrohttpd is about to answer with a page what it cannot read: a body's
 * chunks, or else a request. It does not say whose: where only one connection
 * can be meant, that gets @status and our form instead.
 */
void door_refuse_broken(struct gateway *g, unsigned status, bool in_chunks);

/* Whether exchange_send_more() is to be called when the socket has room. */
void door_want_room(struct visitor *v, bool wanted);

/* Closes connections that took too long over what they are at. */
void door_sweep(struct gateway *g);
