/*
 * A day of a desktop: the real broker, from a client's frame to the executor's
 * ring, on a virtual clock, with a scripted executor behind it, the service
 * manager's store beside it, and users before it who know what they were told.
 * Nothing has a thread but the manager's end of a socket: a seed is a day.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "client/wire/frame.h"
#include "client/wire/msg.h"
#include "client/wire/ownership.h"
#include "daemon/base/clock.h"
#include "daemon/power/power.h"
#include "daemon/server/server.h"
#include "tests/unit/computer.h"
#include "tests/unit/manager.h"

#define DAY_REQUESTS 1000
#define DAY_SESSIONS 20
#define DAY_TALKS 26 /* the sessions, and conversations that the broker does not keep */
#define DAY_USERS 3
#define DAY_UID 1000 /* of the first */
#define DAY_CONTEXT 512
#define DAY_PAGE_TOKENS 16
#define DAY_PAGES 224
#define DAY_PAGE_BYTES (16ull << 10) /* of the model in tests/golden/air */
#define DAY_STRIPS 16
#define DAY_STOP_ID 6000
#define DAY_DISK_BYTES (48ull << 20)
#define DAY_QUOTA_BYTES (20ull << 20) /* of one user */
#define DAY_US (24 * 3600 * US_PER_S)
#define DAY_TURNS_MAX 400
#define DAY_OPERATORS 4

/* A connection; fd -1: none. */
struct day_client {
	int fd;
	struct frame_in in;
	uint32_t deliverable; /* bytes that are still to be read once its broker is dead */
	bool limited;	      /* only those */
};

/* A turn that a session has. */
struct day_turn {
	char *question, *reasoning, *content;
	uint32_t n_tokens; /* prompt and answer; 0: it was seen in the store alone */
};

struct day_talk {
	struct day_client client;
	uid_t uid;
	const char *label;
	char name[16]; /* of the session; "": the broker keeps none */

	/* the request under way, or the last one */
	bool asked, accepted, cancelled, left, has_deadline, stalls;
	uint64_t id, turn, seed;
	uint32_t max_tokens, n_prompt, n_got, deadline_ms;
	struct day_turn running;
	uint32_t ids[DAY_CONTEXT + 1]; /* the prompt as the broker has it, then what was told */
	bool unsure;    /* it ended, and only the store knows how */
	bool again;     /* it was asked a second time */
	bool prompt_is_known;
	bool has_tail; /* was told text that no token came with */
	bool loose_end; /* the one before may still run */

	/* a session: the turns that were told to be saved, or seen in the store */
	struct day_turn turns[DAY_TURNS_MAX];
	uint32_t n_turns;
	/* no session: what was said */
	uint32_t said[DAY_CONTEXT + 1], n_said;
};

/* Somebody who wants it to sleep, wake up, or give memory back. */
struct day_operator {
	struct day_client client;
	bool asked, reloads;
	uint64_t id;
};

struct day {
	uint64_t rng;
	char system[600]; /* what some begin with: the editor's rules, which are marked */
	char dir[64], state[80], prompts[80], fifo[80], db[96];
	sd_event *loop;
	struct settings settings;
	struct server *server;
	struct manager manager;
	struct computer computer;
	struct day_talk talks[DAY_TALKS];
	struct day_operator operators[DAY_OPERATORS];
	uid_t connecting_uid; /* of who connects now */
	uint64_t begun_us, at_us[DAY_REQUESTS];
	uint32_t n_asked, n_kills_since;
	bool bits_flip;
	pid_t leased; /* a process that holds a lease; 0: none */
	int fifo_fd;
	enum executor_state was;
	struct day_counts {
		uint32_t done, stops_at, cancelled, deadlines, faults, lost, refused, too_long;
		uint32_t resumed, again, checked, appeared, rewinds, forks, removed, queries;
		uint32_t restarts, stops, kills_broker, inside, before_orders, reboots;
		uint32_t kills, parks, leaves, wakes, flips, stalls;
		uint32_t wishes, refused_wishes, reloads, leases, presses, suspends, timers, quiet;
		uint32_t evicted, damaged, left_uncleared;
		uint64_t written, read, prompt_tokens, cached, cached_disk, sampled;
	} n;
};

extern struct day day;

uint32_t day_random(uint32_t n); /* below @n */
bool day_one_in(uint32_t n);

/* day-broker.c: the machine, and the lives of the broker on it. */
void day_boot(void);	   /* the first broker begins */
void day_shut_down(void);  /* the last one ends, and all is freed */
bool day_run_loop(void); /* all that the broker can do now; false: nothing */
bool day_turn(void);	   /* whatever can be done now, and a step of the executor; false: nothing can */
void day_stop_broker(void);	   /* systemctl restart */
enum day_moment {
	DAY_NOW,
	DAY_IN_RESULT,	   /* one of its tokens is stored, and that is all; if a result waits */
	DAY_BEFORE_ORDERS, /* pages are granted, and the orders to clear them are not given; if there are any */
};
void day_kill_broker(enum day_moment moment); /* SIGKILL */
void day_cut_power(void);
void day_kill_executor(void);
void day_keep_counts(void);

/* day-users.c: who asks, and what they know. */
void day_users_open(void);
void day_users_close(void);
bool day_users_hear(void); /* all that arrived; false: nothing did */
void day_users_died(void); /* the broker is gone: what had left it arrives, and connections end */
void day_users_return(void); /* they connect again, and want the rest of their answers */
void day_ask(void);
void day_cancel(void);
void day_leave(void);
void day_stall_or_read(void);
void day_all_read(void);
bool day_is_waiting(void); /* somebody waits for an answer */

/* day-sessions.c: what the store must have. */
void day_sessions_check(void);
bool day_session_prepare(struct day_talk *t); /* before its next turn: sure of what it has, with room for more; false: not now */
void day_session_keep(struct day_talk *t); /* the running turn was told to be saved */
void day_turn_forget(struct day_turn *turn);
void day_query(struct day_talk *t);
const char *day_question(void); /* of random words */
char *day_append(char *to, const char *text, size_t len); /* as realloc() */

/* day-operators.c: who wants it to sleep, to wake up, to give memory back. */
void day_operators_open(void);
bool day_operators_hear(void);
void day_operators_died(void);
void day_wish(void);
void day_wake(void);
void day_withdraw_all(void);
void day_reload(void);	/* of the settings, which are others */
void day_press(void);	/* the machine lacks memory */
void day_suspend(void); /* and comes back hours later */
void day_lease_ends(void);

/* day-clients.c: frames. */
void day_connect(struct day_client *c, uid_t uid, const char *label);
void day_disconnect(struct day_client *c);
void day_send(struct day_client *c, const struct msg *m);
int day_receive(struct day_client *c, struct msg *ret); /* 1, 0: nothing more, -EPIPE: it ended */
/* Sends, and runs the broker until the terminal frame; DONE or ERROR. Others are not expected. */
void day_call(struct day_client *c, struct msg *m, struct msg *ret);

/* day-holds.c: what must hold after every step, and when all is quiet. */
void day_assert_all(void);
void day_assert_quiet(void);
uint32_t day_say(uint64_t seed, const uint32_t *ids, uint32_t n); /* what the toy model says after these */
