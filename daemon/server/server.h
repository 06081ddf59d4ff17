/*
 * The broker as its clients see it: connections, users, the model in service,
 * requests that wait for it, and the turns that answer them. Everything here
 * belongs to the loop's thread.
 */
#pragma once

#include <sys/queue.h>
#include <systemd/sd-event.h>

#include "daemon/base/settings.h"
#include "daemon/base/worker.h"
#include "daemon/kv/tiers.h"
#include "daemon/power/sleeper.h"
#include "daemon/server/engine.h"
#include "daemon/server/textmodel.h"

#define SERVER_EXIT_REFUSED 65		      /* a foreground start whose model was refused */
#define SERVER_USER_HELD_BYTES_MAX (256u << 20) /* of requests not yet submitted, per user */
#define SERVER_CREDIT_TOKENS 1024	      /* what hello advises */
#define SERVER_STOP_US (5 * 1000000ull)	      /* of TimeoutStopSec=, which is 30 s */
#define SERVER_KEEP_US (600 * 1000000ull)     /* an ended turn that nobody reads */

struct opening;
struct peer;
struct power;
struct sharedprompts;
struct request;
struct stream;
struct explained;
struct sessions;
struct tidy;
struct warm;

struct server_options {
	struct settings *settings; /* outlives the server, which changes it on reload */
	const char *program;	   /* the executor to fork, or */
	const char *unit_socket;   /* the socket of its unit; NULL: fork */
	const char *state_dir;	   /* where sessions are kept; NULL: they are not */
	bool foreground;	   /* a refused model ends the loop with SERVER_EXIT_REFUSED */
	/* Reads all settings afresh into an empty struct. NULL: there is nothing to read. */
	int (*reread)(struct settings *ret, void *userdata, struct err *err);
	void (*on_ready)(void *userdata); /* once: the model is loaded; may be NULL */
	void *userdata;
};

/* What one uid holds of the daemon. Exists while it holds anything. */
struct user {
	uid_t uid;
	uint32_t n_peers, n_requests, n_left; /* left: turns that go on without a reader */
	uint64_t held_bytes;
	LIST_ENTRY(user) link;
	TAILQ_HEAD(, peer) takers; /* those of its connections that have frames */
	TAILQ_ENTRY(user) take;	   /* while there are any */
};

enum server_state {
	SERVER_LOADING,
	SERVER_READY,
	SERVER_WAITING,
	SERVER_REFUSED,
	SERVER_ASLEEP,
	SERVER_NO_GPU,
};

struct server {
	sd_event *loop;
	struct server_options options;
	struct settings *settings;
	struct worker *worker;
	struct worker *long_worker; /* for requests of more than REQUEST_LONG_BYTES */
	struct sessions *sessions;
	struct spans *spans; /* what was sampled, by its text */
	struct tidy *tidy;   /* NULL: at the end */
	struct warm *warm;   /* NULL: at the end */
	struct textmodel *model; /* NULL until it is open */
	struct engine *engine;	 /* NULL until then, too */
	struct sharedprompts *shared; /* as last read; NULL: not yet */
	struct err refusal;	 /* why the model is not served; code 0: it is, or will be */
	struct opening *opening;
	bool was_ready, stopping, leaving;
	struct tiers_flush last_flush; /* when it stops */
	bool without_gpu;	 /* it was said that there is none */
	uint32_t deaths_told;	 /* of the executor, in a row */
	bool waking;		 /* it loads because it slept, not because something died */
	struct power *power;
	struct sleeper sleeper; /* of the engine: see sleep_set_engine() */
	char boot_id[33];
	uint64_t started_us;
	gid_t admin_gid;	 /* (gid_t)-1: there is no such group */
	uint32_t n_peers;
	LIST_HEAD(, user) users;
	TAILQ_HEAD(, peer) peers;
	TAILQ_HEAD(, peer) held; /* got messages since peer_hold() */
	bool holding;
	TAILQ_HEAD(, user) takers; /* see taking.h */
	int taking_fd;		   /* rings while there are any */
	bool is_ringing;
	sd_event_source *taker;
	TAILQ_HEAD(, request) waiting; /* for the model to be open */
	TAILQ_HEAD(, request) looking; /* for what its devices are like */
	sd_event_source *looking_timer;
	TAILQ_HEAD(streams, stream) streams;
	sd_event_source *reaper;       /* frees what ended, outside all callbacks */
	int listen_fd;
	sd_event_source *listener, *accept_again;
	char *socket_path; /* of a socket that we made; NULL otherwise */
	struct health *health;
	TAILQ_HEAD(explaineds, explained) explained; /* turns that ended, see explain.h */
	uint32_t n_explained;
	uint64_t n_served; /* requests that ended, of all kinds */
	uint64_t n_prompt_tokens, n_completion_tokens;
};

/* Makes a server that knows no model yet and listens nowhere. */
int server_new(sd_event *loop, const struct server_options *options, struct server **ret,
	       struct err *err);

/*
 * Ends the loop with 0, once the KV that is only in memory is on disk, at most
 * SERVER_STOP_US from now; called again, at once. Until then all goes on.
 */
void server_stop(struct server *s);

/* Closes every connection; turns go on in a parked executor, if there is one. */
struct server *server_free(struct server *s);

/*
 * Opens the model named in the settings on the worker, then starts or adopts the
 * executor. What fails on the way and may pass is tried again, as an executor that
 * dies is; all else is a refusal, until server_reload().
 */
int server_load(struct server *s, struct err *err);

/*
 * Listens at the socket passed by systemd under the name "api", or at
 * Socket= (empty: /run/steamd.sock for root, else $XDG_RUNTIME_DIR/steamd.sock).
 * A socket file that nobody listens at is replaced; -EADDRINUSE if somebody does.
 */
int server_listen(struct server *s, struct err *err);

/* Serves one connected socket; taken over also on failure. -EAGAIN: limits; the peer was told. -EACCES: its uid is none that a user can have. */
int server_add(struct server *s, int fd);

/*
 * Reads the settings again and applies what can change. Where the model was
 * refused, or could not be opened, it is tried again with the new settings;
 * where it sleeps and its files changed, it is loaded as they are now.
 *
 * *@ret: malloc'd JSON object {"applied":n,"kept":[{"key":…,"needs":…}]}.
 */
int server_reload(struct server *s, char **ret, struct err *err);

enum server_state server_state(const struct server *s);
const char *server_state_name(enum server_state state); /* loading, ready, waiting, model-refused, asleep, no-gpu */

/* Until what died, or could not be opened, is tried again; 0: nothing is waited for. */
uint64_t server_retry_us(const struct server *s);

/* Why nothing is computed now: the code for codes.h in *@ret_code, 0: it is, or a wait will do. */
int server_refuses(const struct server *s, struct err *err);

/* The user's record, made on demand. NULL: out of memory. user_drop() when a count went down. */
struct user *server_user(struct server *s, uid_t uid);
void server_user_drop(struct user *user);

/* The model is not served until a reload; whoever waits is told. */
void server_refuse(struct server *s, int code, const char *text);
/* The executor's state or progress changed; @userdata: the server, which may still be making its engine. */
void server_engine_changed(void *userdata);
void server_steps_applied(void *userdata); /* the scheduler's on_applied */

/* Something became free to be freed. */
void server_reap_later(struct server *s);
/* Work began or ended: the watchdog is armed while there is any. */
void server_busy_changed(struct server *s);
bool server_is_busy(const struct server *s);
bool server_has_jobs(const struct server *s); /* on its workers */

static inline void server_freep(struct server **s)
{
	*s = server_free(*s);
}
