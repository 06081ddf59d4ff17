/* What the files of the sessions share: the store's thread, and jobs for it. */
#pragma once

#include "daemon/server/sessions.h"
#include "daemon/session/store.h"

struct sessions {
	struct server *server;
	struct worker *thread;
	struct store *store;	    /* the thread's once it runs; NULL: see off */
	struct err off;		    /* why there is none */
	uint64_t again_at_us;	    /* it is not tried again before */
	struct store_counts counts; /* as they were when the last job came home */
	bool settled, settle_again; /* settle_again: it failed */
	uint64_t check_at_us; /* the thread's: a database that could not be mended is not tried again before */
	bool recalling; /* what sessions said: see sessions_recall() */
	uint64_t recalled_vocab, n_recalled;
	sd_event_source *idle; /* armed while there is a log to write into the database */
};

/* One call of the store. */
struct recall;
struct job {
	struct sessions *x;
	struct request *request; /* NULL: of no client */
	int (*run)(struct job *job);
	void (*home)(struct job *job);
	int result;
	struct err err;
	struct store_counts counts;

	char label[64];
	uid_t uid;
	bool has_uid; /* else it is the daemon's own */
	uint64_t vocab, turn; /* turn: the record's id, to find its stream again */
	uint32_t vocab_size;
	struct store_limits limits;
	struct bytes out, file;
	size_t n_ids;
	char *defaults;
	struct store_begun begun;

	struct store_end end;
	char *answer;
	uint32_t *ids;
	struct store_live *live;
	size_t n_live;
	struct recall *recall;
	struct store_usage *usage;
	size_t n_usage;
};

/* For the namespace of @q, or of nobody yet; *@ret is to be pushed, or freed. */
int job_new(struct server *s, struct request *q, int (*run)(struct job *),
	    void (*home)(struct job *), struct job **ret, struct err *err);
/* It waits for @uid's turn, as those of its requests do. */
void job_for(struct job *job, uid_t uid);
void job_free(struct job *job);
struct store_who job_who(const struct job *job);
/* A request's end comes with its job's; until then it outlives its peer. */
int job_push(struct job *job);
/* Takes @job over. */
int job_push_request(struct job *job, struct err *err);
/* One without a client; what cannot be pushed is only logged, as the next life repairs it. */
void job_push_own(struct job *job, const char *what);
void job_log_failure(struct job *job); /* a home for those of which nothing else is to be said */
