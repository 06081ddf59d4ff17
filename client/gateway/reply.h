/*
 * A generated answer: one exchange, one or several choices, each of them a turn
 * of steamd. What all APIs have in common is here; how it is written down is a
 * format's.
 */
#pragma once

#include "client/gateway/fields.h"
#include "client/gateway/link.h"

#define REPLY_PROMPTS_MAX 32

struct reply;
struct vocab;

/* What a choice goes on from: one of these. */
struct prompt {
	char *messages; /* JSON, owned */
	size_t messages_len;
	const json_t *text; /* a string of the body's */
	uint32_t *ids;	    /* owned */
	size_t n_ids;
};

enum choice_state { CHOICE_NEW, CHOICE_QUEUED, CHOICE_RUNNING, CHOICE_ENDED };

struct choice {
	struct reply *reply;
	uint32_t index;
	const struct prompt *prompt;
	bool is_first; /* of its prompt: the others begin when it has computed that */
	enum choice_state state;
	struct link_place place;
	uint64_t request;
	bool enough; /* what comes further is not wanted: it is no failure that it was cancelled */

	/* the whole of it, where it is not only streamed: bytes, not JSON */
	struct jsontext content, reasoning;
	json_t *calls; /* as OpenAI has them; NULL: none yet */
	uint32_t n_calls;
	/* of a format's own: the pieces of its logprobs, characters there were */
	struct jsontext logprobs[4];
	size_t text_at;
	bool begun;

	const char *finish; /* static */
	uint32_t n_prompt, n_cached, n_completion, n_reasoning;
	struct steamd_result ended; /* its pointers are not valid any more */
	char *session;		    /* owned */
};

/* What came, in OpenAI's terms. */
struct reply_delta {
	const char *reasoning, *content; /* "" if none */
	size_t reasoning_len, content_len;
	const json_t *calls; /* new ones: [{"id":…,"type":"function","function":{…}}], or NULL */
	const struct steamd_delta *raw;
};

/*
 * How an answer is written. Those of a stream append to exchange_out(r->x).
 *
 * begin	stream: it begins, with the first that comes if not before; may be NULL
 * delta	both: something came; for a whole answer only logprobs are left to do
 * end		stream: a choice is complete
 * whole	all choices are: the answer, or the stream's last words
 * fail		stream: it ends with an error
 * free		may be NULL
 * refused	a choice was, before anything came; true: it is seen to, by another way
 *		of going on or another refusal. May be NULL
 */
struct reply_format {
	void (*begin)(struct reply *r);
	void (*delta)(struct choice *c, const struct reply_delta *d);
	void (*end)(struct choice *c);
	void (*whole)(struct reply *r);
	void (*fail)(struct reply *r, const struct refusal *no);
	void (*free)(struct reply *r);
	bool (*refused)(struct reply *r, const struct steamd_error *err);
};

struct reply {
	struct exchange *x; /* NULL: the reader left, or has all */
	struct gateway *g;
	struct link *link;
	const struct reply_format *format;
	struct fields fields;
	size_t held_bytes; /* counted with the bodies */
	struct prompt *prompts;
	size_t n_prompts;
	struct choice *choices;
	uint32_t n_choices;
	char id[64];
	uint64_t created_s;
	char *model;
	struct jsontext head; /* of each chunk, up to its choices; made with the first */
	bool keeps;	      /* a stream, too, needs the whole at the end */
	bool opened;	      /* the stream is … */
	bool begun;	      /* … and the format's begin was called */
	bool unsettled; /* its id may yet be another: until something comes, the stream waits without one */
	bool held;   /* its reader is slow */
	bool in_use; /* somebody will come back to it: it is not to be freed */
	bool loading;
	uint64_t loading_since_us;
	char loading_text[256];
	sd_event_source *timer;
	const struct vocab *vocab; /* for logprobs */
	void *extra;		   /* the format's */
};

/*
 * A reply of @x with the fields of its body; NULL: the exchange was refused.
 *
 * id_prefix	of its id, "chatcmpl-"; random digits follow
 */
struct reply *reply_new(struct exchange *x, enum fields_api api, const char *id_prefix,
			const struct reply_format *format);
/* Before reply_start(): gives up, and refuses the exchange. */
void reply_refuse(struct reply *r, const struct refusal *no);

/* Room for @n prompts; 0 or -ENOMEM. */
int reply_add_prompts(struct reply *r, size_t n);
/* One choice, or fields.n of them, for each prompt; then they begin. */
void reply_start(struct reply *r);

/* As it was before reply_start(), which may follow. Nothing of it runs. */
void reply_rewind(struct reply *r);
/* Its reader left while it was in use: it is freed, if nothing of it runs. */
void reply_let_go(struct reply *r);

/* A running one is given up; its exchange gets @no, or what was said before. */
void reply_fail(struct reply *r, const struct refusal *no);
/* What has come so far is the whole of it. */
void reply_cut(struct reply *r, const char *finish);

/* Sums over the choices; a prompt counts once. */
struct reply_usage {
	uint64_t n_prompt, n_cached, n_completion, n_reasoning;
};
struct reply_usage reply_usage(const struct reply *r);

/* The members of a list of logprobs as Chat Completions and Responses have them. */
void reply_write_logprobs(const struct reply *r, const struct steamd_delta *d, bool is_first,
			  struct jsontext *to);

/* Writes @n random hexadecimal digits and a NUL. */
void reply_random(char *to, size_t n);
