/* Answers listened to through the client library, all on one connection. */
#include "tests/bench/latency.h"

#include <errno.h>
#include <stdbool.h>

#include "client/steamd.h"
#include "client/wire/ownership.h"
#include "daemon/base/clock.h"

#define STREAM_PROMPT 16
#define WARM_TOKENS 8 /* of every answer, before anything counts */
#define PAUSES_MAX (1u << 20)
#define PAUSES_LEAST 20
#define WAIT_MS 100

struct pauses {
	float *ms;
	uint32_t n;
};

struct stream {
	struct listener *listener;
	double last_s;
	uint32_t n_tokens;
};

struct listener {
	struct steamd *connection;
	struct stream streams[LATENCY_STREAMS_MAX];
	struct pauses pauses;
	uint32_t context_tokens, n_read;
	bool prompt_ended, counting;
	int error;
	char why[ERR_TEXT_MAX];
};

static double now_s(void)
{
	return 1e-6 * (double)clock_us();
}

static int on_delta(void *userdata, const struct steamd_delta *delta)
{
	struct stream *s = userdata;
	struct pauses *p = &s->listener->pauses;
	const double at_s = now_s();

	if (s->listener->counting && s->last_s > 0 && p->n < PAUSES_MAX)
		p->ms[p->n++] = (float)(1000 * (at_s - s->last_s));
	s->last_s = at_s;
	s->n_tokens = delta->index + delta->n_ids;
	return 0;
}

static int start(struct listener *l, uint32_t n_ids, uint32_t max_tokens, uint32_t seed,
		 const struct steamd_handler *handler, uint64_t *ret_request, struct err *err)
{
	_cleanup_(freep) uint32_t *ids = calloc(n_ids, sizeof(*ids));
	struct steamd_error error = { 0 };
	struct steamd_generate g;
	int r;

	if (!ids)
		return -ENOMEM;
	for (uint32_t i = 0; i < n_ids; i++) {
		seed = seed * 1664525 + 1013904223;
		ids[i] = (seed >> 8) % 1000;
	}
	steamd_generate_init(&g);
	g.ids = ids;
	g.n_ids = n_ids;
	g.max_tokens = max_tokens;
	g.ignore_eos = 1;
	r = steamd_start_generate(l->connection, &g, handler, ret_request, &error);
	return r < 0 ? err_set(err, r, "%s", error.text) : 0;
}

static int begin_stream(struct stream *s, struct err *err);

/* At the context's end: begins again. */
static void on_stream_end(void *userdata, const struct steamd_result *result,
			  const struct steamd_error *error)
{
	struct stream *s = userdata;
	struct err err = { 0 };

	(void)result;
	s->last_s = 0;
	s->listener->error = error ? -EIO : begin_stream(s, &err);
	snprintf(s->listener->why, sizeof(s->listener->why), "%s", error ? error->text : err.text);
}

static int begin_stream(struct stream *s, struct err *err)
{
	const struct steamd_handler handler = {
		.on_delta = on_delta,
		.on_end = on_stream_end,
		.userdata = s,
	};
	struct listener *l = s->listener;

	return start(l, STREAM_PROMPT, l->context_tokens - STREAM_PROMPT,
		     (uint32_t)(s - l->streams) + 1, &handler, NULL, err);
}

static void on_progress(void *userdata, const struct steamd_progress *progress)
{
	struct listener *l = userdata;

	if (strcmp(progress->state, "prefill") == 0)
		l->n_read = progress->done;
}

static void on_prompt_end(void *userdata, const struct steamd_result *result,
			  const struct steamd_error *error)
{
	struct listener *l = userdata;

	l->prompt_ended = true;
	if (error) {
		l->error = -EIO;
		snprintf(l->why, sizeof(l->why), "%s", error->text);
	} else {
		l->n_read = result->n_prompt;
	}
}

static int wait_some(struct listener *l, struct err *err)
{
	struct steamd_error error = { 0 };
	const int r = steamd_wait(l->connection, WAIT_MS, &error);

	if (r < 0)
		return err_set(err, r, "%s", error.text);
	return l->error ? err_set(err, l->error, "%s", l->why) : 0;
}

static bool is_warm(const struct listener *l, uint32_t n_streams)
{
	for (uint32_t i = 0; i < n_streams; i++) {
		if (l->streams[i].n_tokens < WARM_TOKENS)
			return false;
	}
	return true;
}

static int begin_streams(struct listener *l, uint32_t n_streams, struct err *err)
{
	struct steamd_info info;
	int r = steamd_info(l->connection, &info);

	l->context_tokens = info.max_context_tokens;
	for (uint32_t i = 0; i < n_streams && r == 0; i++) {
		l->streams[i].listener = l;
		r = begin_stream(&l->streams[i], err);
	}
	while (r == 0 && !is_warm(l, n_streams))
		r = wait_some(l, err);
	return r;
}

static int by_size(const void *a, const void *b)
{
	const float x = *(const float *)a, y = *(const float *)b;

	return (x > y) - (x < y);
}

static int evaluate(struct pauses *p, double *ret_p50_ms, double *ret_p99_ms, uint32_t *ret_n,
		    struct err *err)
{
	if (p->n < PAUSES_LEAST)
		return err_set(err, -ENODATA, "only %u pauses were heard; %d are wanted", p->n,
			       PAUSES_LEAST);
	qsort(p->ms, p->n, sizeof(*p->ms), by_size);
	*ret_p50_ms = p->ms[p->n / 2];
	*ret_p99_ms = p->ms[(uint64_t)p->n * 99 / 100];
	*ret_n = p->n;
	p->n = 0;
	return 0;
}

static int listen_quietly(struct listener *l, double seconds, struct latency *ret, struct err *err)
{
	const double until_s = now_s() + seconds;
	int r = 0;

	l->counting = true;
	while (r == 0 && now_s() < until_s)
		r = wait_some(l, err);
	return r < 0 ? r
		     : evaluate(&l->pauses, &ret->quiet_p50_ms, &ret->quiet_p99_ms, &ret->n_quiet,
				err);
}

static int listen_disturbed(struct listener *l, const struct latency_options *o,
			    struct latency *ret, struct err *err)
{
	const struct steamd_handler handler = {
		.on_progress = on_progress,
		.on_end = on_prompt_end,
		.userdata = l,
	};
	const double from_s = now_s();
	int r = start(l, o->n_prompt_tokens, 1, 12345, &handler, NULL, err);

	while (r == 0 && !l->prompt_ended && now_s() < from_s + o->disturbed_s)
		r = wait_some(l, err);
	if (r < 0)
		return r;
	ret->read_s = now_s() - from_s;
	ret->n_read = l->n_read;
	return evaluate(&l->pauses, &ret->disturbed_p50_ms, &ret->disturbed_p99_ms,
			&ret->n_disturbed, err);
}

static int measure(struct listener *l, const struct latency_options *o, struct latency *ret,
		   struct err *err)
{
	int r = begin_streams(l, o->n_streams, err);

	if (r == 0)
		r = listen_quietly(l, o->quiet_s, ret, err);
	return r < 0 ? r : listen_disturbed(l, o, ret, err);
}

int latency_measure(const struct latency_options *options, struct latency *ret, struct err *err)
{
	_cleanup_(freep) struct listener *l = calloc(1, sizeof(*l));
	_cleanup_(freep) float *ms = calloc(PAUSES_MAX, sizeof(*ms));
	struct steamd_error error = { 0 };
	struct latency latency = { 0 };
	int r;

	if (!l || !ms)
		return -ENOMEM;
	if (options->n_streams == 0 || options->n_streams > LATENCY_STREAMS_MAX)
		return err_set(err, -EINVAL, "%u answers; from 1 to %d are allowed",
			       options->n_streams, LATENCY_STREAMS_MAX);
	l->pauses.ms = ms;
	r = steamd_open(options->socket, "bench", NULL, &l->connection, &error);
	if (r < 0)
		return err_set(err, r, "%s", error.text);
	r = measure(l, options, &latency, err);
	steamd_close(l->connection); /* ends what is still being written */
	if (r == 0)
		*ret = latency;
	return r;
}
