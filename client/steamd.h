/*
 * libsteamd: words from the language model that steamd keeps resident.
 *
 * A handle is one connection to the daemon. It reconnects by itself: when the
 * daemon restarts, answers that were running go on where they stopped, and
 * what was delivered once is not delivered again; questions that had not been
 * answered are asked again.
 *
 * Two ways to use it, on one handle if you like: the blocking calls below, or
 * steamd_start_…() with callbacks, steamd_fd() in an event loop of your own
 * and steamd_process() whenever it is readable.
 *
 * The library has no global state, starts no threads, installs no signal
 * handlers, raises no SIGPIPE, and all its descriptors are close-on-exec. A
 * handle may be used by one thread at a time; different handles are
 * independent. After fork() a handle belongs to the parent: in the child every
 * call returns -ECHILD, except steamd_close(), which disturbs nobody.
 *
 * Calls return 0 or a count, or a negative errno; where a person has to
 * understand the failure, struct steamd_error says more. All text is UTF-8,
 * with a length; it may contain NUL. What is not UTF-8 is refused (-EINVAL).
 */
#ifndef STEAMD_H
#define STEAMD_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define STEAMD_API __attribute__((visibility("default")))
#else
#define STEAMD_API
#endif

struct steamd;

/* For a uint32_t option: not given, the daemon's default holds. Numbers: NAN; pointers: NULL. */
#define STEAMD_UNSET UINT32_MAX

struct steamd_error {
	int error;		 /* the negative errno that was returned */
	char code[64];		 /* stable word: "busy", "too-long", "no-daemon", "cancelled", … */
	char text[1024];	 /* one sentence: cause and remedy, no newline */
	int retryable;		 /* the same request may succeed later */
	uint32_t retry_after_ms; /* … but hardly before this; 0: not known */
};

/* Codes that the library adds to those of the daemon. */
#define STEAMD_CODE_NO_DAEMON "no-daemon"     /* nobody answers at the socket */
#define STEAMD_CODE_LOST "connection-lost"    /* and it did not come back within 30 s */
#define STEAMD_CODE_CANCELLED "cancelled"     /* by steamd_cancel(), a callback or an administrator */
#define STEAMD_CODE_BAD_REQUEST "bad-request" /* an argument makes no sense */
#define STEAMD_CODE_PROTOCOL "protocol"	      /* the peer does not speak steamd's language */
#define STEAMD_CODE_LOCAL "local"	      /* out of memory or descriptors here */

/* Connection. */

/*
 * Connects and shakes hands; blocks for at most 10 s.
 *
 * socket_path	NULL: $STEAMD_SOCKET if it is set; else /run/steamd.sock if it
 *		exists; else $XDG_RUNTIME_DIR/steamd.sock
 * name		of the program, shown by `steamctl ps`; at most 64 bytes
 * label	a namespace inside the caller's uid, at most 63 bytes, or NULL
 * err		may be NULL, here and everywhere
 *
 * Returns 0, or:
 *	-ENOENT, -ECONNREFUSED	no daemon; err->text names the socket tried
 *	-EACCES			the socket is not for this user
 *	-EPROTO			the peer is no steamd, or of another protocol
 *	-ETIMEDOUT		the daemon accepted but did not answer
 */
STEAMD_API int steamd_open(const char *socket_path, const char *name, const char *label,
			   struct steamd **ret, struct steamd_error *err);

/*
 * The same for an event loop of one's own: does not block, and connects when
 * something is asked. Until steamd has said hello for the first time, requests end
 * with what steamd_open() would have said, after 10 s at most; the next one tries
 * again. Before that steamd_info() knows the path alone. Returns 0, -ENOMEM, -EMFILE.
 */
STEAMD_API int steamd_start_open(const char *socket_path, const char *name, const char *label,
				 struct steamd **ret, struct steamd_error *err);

/* Closes; requests still open are abandoned without a callback, and so cancelled. NULL is fine. Returns NULL. */
STEAMD_API struct steamd *steamd_close(struct steamd *s);

/* What the daemon said when it was last connected to; valid until the next call on the handle. */
struct steamd_info {
	const char *socket_path, *version, *boot_id, *features, *model; /* "" if not said */
	uint32_t max_frame_bytes, max_requests, max_context_tokens;	/* 0 if not said */
};
STEAMD_API int steamd_info(struct steamd *s, struct steamd_info *ret);

/* What a generation gives. */

/* Tokens index .. index + n_ids of the answer; everything is valid during the callback only. */
struct steamd_delta {
	uint32_t index, n_ids;
	const uint32_t *ids;
	const char *reasoning, *content; /* text that these tokens completed; "" if none; terminated too */
	size_t reasoning_len, content_len;
	const char *tool_calls; /* JSON array of {"name":…,"arguments":{…}}, or NULL */
	size_t tool_calls_len;
	const float *logprobs; /* [n_ids] or NULL; NAN: there is none */
	uint32_t n_top;
	const uint32_t *top_ids;   /* [n_ids][n_top], best first, or NULL */
	const float *top_logprobs; /* [n_ids][n_top] or NULL */
};

struct steamd_progress {
	const char *state; /* loading, queued, prefill, restarting, asleep or reconnecting; of sleep: busy, sealing, parking, leaving, yielded */
	const char *text;  /* for a person; "" if none */
	uint32_t done, total;
};

/* How a request ended; everything is valid during the callback only. */
struct steamd_result {
	const char *text, *json; /* NULL if the request has none */
	size_t text_len, json_len;
	const uint32_t *ids; /* of steamd_start_tokenize() */
	size_t n_ids;
	const char *finish;	 /* stop, length, tool_calls, deadline; NULL if not a generation */
	const char *stop_string; /* the one that matched, or NULL */
	uint32_t stop_id;	 /* the one sampled, or STEAMD_UNSET */
	uint32_t n_prompt, n_cached, n_completion;
	uint64_t prefill_us, decode_us;
	uint64_t turn, seed; /* 0 if it was never accepted */
	/*
	 * A session's turn: the session's id ("" if it was none), the turn's number
	 * in it, whether it survives a power cut, and if not, why.
	 */
	const char *session;
	uint32_t session_turn;
	int saved;
	const char *not_saved;
	const void *data; /* of STEAMD_SESSION_EXPORT or STEAMD_EACH, or NULL */
	size_t data_len;
	uint32_t n_cached_disk; /* of n_cached, read from disk */
	uint32_t n_recomputed;	/* tokens computed again after their KV was lost */
};

/*
 * Callbacks of a request, called from steamd_process() and the blocking calls.
 * They may start and cancel requests, and must not close the handle or process it.
 *
 * on_progress	while the request waits; may be NULL
 * on_delta	generate and score; a result other than 0 cancels the request.
 *		The daemon does not run ahead of it by more than its credit.
 *		May be NULL
 * on_end	once for each request started, and last. @err is NULL if it
 *		succeeded; else @result holds the counts that are known
 */
struct steamd_handler {
	void (*on_progress)(void *userdata, const struct steamd_progress *progress);
	int (*on_delta)(void *userdata, const struct steamd_delta *delta);
	void (*on_end)(void *userdata, const struct steamd_result *result,
		       const struct steamd_error *err);
	void *userdata;
};

/*
 * What to answer, and how. Exactly one of messages, prompt and ids is set.
 * Start from steamd_generate_init(), which leaves all to the daemon.
 */
struct steamd_generate {
	size_t struct_bytes;  /* set by steamd_generate_init() */
	const char *messages; /* JSON: {"messages":[…],"tools":[…],"enable_thinking":bool,…} */
	size_t messages_len;
	const char *prompt; /* raw text; the model's special tokens are recognised */
	size_t prompt_len;
	const uint32_t *ids;
	size_t n_ids;
	const char *model; /* name or alias; NULL: the one in service */
	double temperature, top_p, min_p;
	double repetition_penalty, frequency_penalty, presence_penalty;
	uint32_t top_k; /* 0: off */
	uint32_t max_tokens, min_tokens;
	uint32_t deadline_ms; /* 0: none */
	uint64_t seed;
	int has_seed;
	int ignore_eos; /* the model's own stop ids do not stop */
	int logprobs;
	uint32_t n_top;		 /* alternatives per token, at most 20 */
	const char *const *stop; /* stop strings, terminated */
	size_t n_stop;		 /* at most 16 */
	const uint32_t *stop_ids;
	size_t n_stop_ids;	  /* at most 16 */
	const uint32_t *bias_ids; /* logit_bias */
	const float *bias_values;
	size_t n_bias; /* at most 1024 */
	int detach;    /* goes on when this connection closes */
	int batch;     /* nobody waits for it: behind the same user's other requests */
	/*
	 * A session of this uid and label, by name or id: messages holds what is new,
	 * the daemon knows the rest, and keeps the turn when it ends. NULL: none.
	 */
	const char *session;
	int session_create; /* makes the session if there is none */
	/*
	 * The turn that this one is to follow, 0 for the first; where the session's last
	 * one is another, or one is running, it ends with "moved" (-EREMCHG).
	 * STEAMD_UNSET: it follows whatever is there.
	 */
	uint32_t session_after;
};

static inline void steamd_generate_init(struct steamd_generate *g)
{
	memset(g, 0, sizeof(*g));
	g->struct_bytes = sizeof(*g);
	g->temperature = g->top_p = g->min_p = NAN;
	g->repetition_penalty = g->frequency_penalty = g->presence_penalty = NAN;
	g->top_k = g->max_tokens = g->min_tokens = g->session_after = STEAMD_UNSET;
}

/* Log-probabilities of a text or of ids: one delta element a token; the first one's is NAN. */
struct steamd_score {
	size_t struct_bytes; /* sizeof(struct steamd_score) */
	const char *prompt;  /* or ids, not both */
	size_t prompt_len;
	const uint32_t *ids;
	size_t n_ids;
	uint32_t n_top;	      /* at most 20 */
	uint32_t deadline_ms; /* 0: none */
};

enum steamd_flags {
	STEAMD_PLAIN = 1,	 /* tokenize: recognise no special token */
	STEAMD_SKIP_SPECIAL = 2, /* detokenize: leave them out */
	/*
	 * steamd_start_detokenize(): the result's data, not its text: for each id a
	 * u32 (little-endian) and so many bytes, which may be part of a character
	 */
	STEAMD_EACH = 4,
};

enum steamd_query { STEAMD_STATUS, STEAMD_PS, STEAMD_MODELS, STEAMD_RELOAD, STEAMD_LIMITS };

/* What can be done with a session; see struct steamd_session for what each wants. */
enum steamd_session_verb {
	STEAMD_SESSION_LIST,   /* nothing */
	STEAMD_SESSION_SHOW,   /* session */
	STEAMD_SESSION_NEW,    /* name or NULL; sampler defaults of its turns */
	STEAMD_SESSION_FORK,   /* session, name of the copy, turn: the last one copied */
	STEAMD_SESSION_REWIND, /* session, turn: the last one kept; 0: none */
	STEAMD_SESSION_RENAME, /* session, name */
	STEAMD_SESSION_PIN,    /* session: is spared by GC */
	STEAMD_SESSION_UNPIN,  /* session */
	STEAMD_SESSION_RM,     /* session */
	STEAMD_SESSION_EXPORT, /* session; gives bytes, not JSON. kv: put; gives JSON */
	STEAMD_SESSION_IMPORT, /* data or get; name or NULL: as the file says */
	STEAMD_SESSION_GC,     /* days: removes what is not pinned and was not used for so long */
};

struct steamd_session {
	size_t struct_bytes; /* set by steamd_session_init() */
	const char *session; /* name or id */
	const char *name;
	uint32_t turn, days; /* STEAMD_UNSET: not given */
	const void *data;
	size_t data_len;
	double temperature, top_p, min_p;
	double repetition_penalty, frequency_penalty, presence_penalty;
	uint32_t top_k;
	/*
	 * A file in pieces, as large as it may be: with @kv an export has the KV of
	 * the session, too, and an import takes it in where model, instruction set and
	 * sizes are the same, and says in "not_taken" what it left out and why. Both
	 * are called like the handler's; a negative errno ends the request with it.
	 *
	 * put	export: takes the next bytes of the file; 0
	 * get	import: gives at most @max of the next bytes; how many, 0 at the end
	 */
	int kv;
	int (*put)(void *userdata, const void *data, size_t len);
	long (*get)(void *userdata, void *data, size_t max);
	void *userdata;
};

static inline void steamd_session_init(struct steamd_session *q)
{
	memset(q, 0, sizeof(*q));
	q->struct_bytes = sizeof(*q);
	q->turn = q->days = q->top_k = STEAMD_UNSET;
	q->temperature = q->top_p = q->min_p = NAN;
	q->repetition_penalty = q->frequency_penalty = q->presence_penalty = NAN;
}

/* Blocking calls. What they return in *ret is malloc'd and terminated: free() it. A signal does not end them. */

/* Answers; @handler may leave out on_end. Returns 0 when the answer is complete. */
STEAMD_API int steamd_generate(struct steamd *s, const struct steamd_generate *g,
			       const struct steamd_handler *handler, struct steamd_error *err);
STEAMD_API int steamd_score(struct steamd *s, const struct steamd_score *q,
			    const struct steamd_handler *handler, struct steamd_error *err);
STEAMD_API int steamd_tokenize(struct steamd *s, const char *text, size_t len, unsigned flags,
			       uint32_t **ret, size_t *ret_n, struct steamd_error *err);
STEAMD_API int steamd_detokenize(struct steamd *s, const uint32_t *ids, size_t n_ids, unsigned flags,
				 char **ret, size_t *ret_len, struct steamd_error *err);
/* The exact prompt that a conversation (JSON as steamd_generate.messages) becomes. */
STEAMD_API int steamd_render(struct steamd *s, const char *json, size_t len, char **ret,
			     size_t *ret_len, struct steamd_error *err);
/*
 * One JSON object. STEAMD_LIMITS tells of one's own user, and administrators of
 * all. STEAMD_RELOAD reads the settings and the model again; administrators only.
 */
STEAMD_API int steamd_query(struct steamd *s, enum steamd_query what, char **ret,
			    struct steamd_error *err);
/*
 * Sessions of this uid and the handle's label. *ret is one JSON object, or the
 * file of an export; what it says was done survives a power cut. Another's
 * session and one that does not exist are the same -ENOENT.
 */
STEAMD_API int steamd_session(struct steamd *s, enum steamd_session_verb verb,
			      const struct steamd_session *q, char **ret, size_t *ret_len,
			      struct steamd_error *err);
/* Ends a turn by its number; of another user's: administrators only. -ENOENT: there is none. */
STEAMD_API int steamd_cancel_turn(struct steamd *s, uint64_t turn, struct steamd_error *err);

/*
 * Why a prompt of one's own was not all found in the cache, as one JSON object:
 * of a turn by its number, or, @session not NULL, of the session's last turn.
 * -ENOENT: there is none that is running or ended not long ago.
 */
STEAMD_API int steamd_cache_explain(struct steamd *s, uint64_t turn, const char *session, char **ret,
				    struct steamd_error *err);

/*
 * Sleep: administrators only, but for waking. Each gives a JSON object in *ret,
 * if that is not NULL; @handler's on_progress says what is waited for, and may
 * be left out with the rest of it (NULL).
 *
 * steamd_sleep()	once nothing is to be computed: down to at least @rung,
 *			"parked" (NULL) or "gone"; returns when it is there.
 *			@now: answers pause rather than end first, and go on at the
 *			next request or steamd_wake()
 * steamd_wake()	up; returns when the model is ready. Ends all leases
 * steamd_yield()	gives memory back until @bytes are free, or all that can be.
 *			@pid: returns then; it stays free until that process ends.
 *			0: on_progress says "yielded" then; returns at a wake-up, or
 *			with the connection
 */
STEAMD_API int steamd_sleep(struct steamd *s, const char *rung, int now,
			    const struct steamd_handler *handler, char **ret,
			    struct steamd_error *err);
STEAMD_API int steamd_wake(struct steamd *s, const struct steamd_handler *handler, char **ret,
			   struct steamd_error *err);
STEAMD_API int steamd_yield(struct steamd *s, uint64_t bytes, uint32_t pid,
			    const struct steamd_handler *handler, char **ret,
			    struct steamd_error *err);

/*
 * The non-blocking form. Each start copies what it is given, queues a request
 * and writes its number to *ret (NULL allowed); how it ends is told to
 * on_end(). Returns 0, or a negative errno and then no callback will come:
 *	-EINVAL	an argument is out of range
 *	-ENOMEM, -EMFILE
 *
 * Without a connection the request waits for one, for up to 30 s.
 */
STEAMD_API int steamd_start_generate(struct steamd *s, const struct steamd_generate *g,
				     const struct steamd_handler *handler, uint64_t *ret,
				     struct steamd_error *err);
STEAMD_API int steamd_start_score(struct steamd *s, const struct steamd_score *q,
				  const struct steamd_handler *handler, uint64_t *ret,
				  struct steamd_error *err);
STEAMD_API int steamd_start_tokenize(struct steamd *s, const char *text, size_t len, unsigned flags,
				     const struct steamd_handler *handler, uint64_t *ret,
				     struct steamd_error *err);
STEAMD_API int steamd_start_detokenize(struct steamd *s, const uint32_t *ids, size_t n_ids,
				       unsigned flags, const struct steamd_handler *handler,
				       uint64_t *ret, struct steamd_error *err);
STEAMD_API int steamd_start_render(struct steamd *s, const char *json, size_t len,
				   const struct steamd_handler *handler, uint64_t *ret,
				   struct steamd_error *err);
STEAMD_API int steamd_start_query(struct steamd *s, enum steamd_query what,
				  const struct steamd_handler *handler, uint64_t *ret,
				  struct steamd_error *err);
STEAMD_API int steamd_start_session(struct steamd *s, enum steamd_session_verb verb,
				    const struct steamd_session *q,
				    const struct steamd_handler *handler, uint64_t *ret,
				    struct steamd_error *err);
STEAMD_API int steamd_start_cancel_turn(struct steamd *s, uint64_t turn,
					const struct steamd_handler *handler, uint64_t *ret,
					struct steamd_error *err);

STEAMD_API int steamd_start_cache_explain(struct steamd *s, uint64_t turn, const char *session,
					  const struct steamd_handler *handler, uint64_t *ret,
					  struct steamd_error *err);
STEAMD_API int steamd_start_sleep(struct steamd *s, const char *rung, int now,
				  const struct steamd_handler *handler, uint64_t *ret,
				  struct steamd_error *err);
STEAMD_API int steamd_start_wake(struct steamd *s, const struct steamd_handler *handler,
				 uint64_t *ret, struct steamd_error *err);
STEAMD_API int steamd_start_yield(struct steamd *s, uint64_t bytes, uint32_t pid,
				  const struct steamd_handler *handler, uint64_t *ret,
				  struct steamd_error *err);

/* Asks for the end of a request of this handle; on_end() follows. 0, also if it ended already. */
STEAMD_API int steamd_cancel(struct steamd *s, uint64_t request);

/*
 * For a reader that is slower than the answer: while @on is not 0 the daemon is
 * given no more credit for @request, and so pauses it once the window is full:
 * on_delta() may still be called for that, about a thousand tokens. 0 lets it
 * go on. 0, also if the request ended already.
 */
STEAMD_API int steamd_hold(struct steamd *s, uint64_t request, int on);

/*
 * The descriptor to wait on: poll it for POLLIN, and for nothing else. It stays
 * the same for the life of the handle, through reconnections, and tells about
 * room to write and about back-off timers as well. An epoll may watch it with
 * EPOLLET, which is cheaper: one steamd_process() for each time it says so.
 */
STEAMD_API int steamd_fd(const struct steamd *s);

/*
 * Does what can be done without blocking, callbacks included. Returns the
 * number of requests still open, or -EBUSY from inside a callback.
 */
STEAMD_API int steamd_process(struct steamd *s, struct steamd_error *err);

/* Waits up to @timeout_ms (-1: for ever) and processes. As steamd_process(), and -EINTR after a signal. */
STEAMD_API int steamd_wait(struct steamd *s, int timeout_ms, struct steamd_error *err);

#ifdef __cplusplus
}
#endif

#endif
