/* From a request and its ids to a turn: the budget, the sampler, the stops. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "daemon/base/clock.h"
#include "daemon/server/stream.h"
#include "daemon/server/tidy.h"

static int check_length(const struct request *q, uint32_t context, uint32_t *max_tokens,
			struct err *err)
{
	const size_t n = q->ids.n;

	if (n == 0)
		return err_set(err, -EINVAL, "the prompt is empty");
	if (q->msg.type == MSG_SCORE) {
		*max_tokens = 0;
		if (n > context)
			return err_set(err, -E2BIG, "the text has %zu tokens; the context is %u", n,
				       context);
		return 0;
	}
	if (n >= context)
		return err_set(err, -E2BIG,
			       "the prompt has %zu tokens; the context is %u, and the answer needs "
			       "one at least",
			       n, context);
	if (!q->msg.generate.has_max_tokens) {
		*max_tokens = MIN(q->server->settings->max_tokens, context - (uint32_t)n);
		return 0;
	}
	*max_tokens = q->msg.generate.max_tokens;
	if (*max_tokens == 0)
		return err_set(err, -EINVAL, "generate.max_tokens is 0; at least 1 is wanted");
	if (*max_tokens > context - n)
		return err_set(err, -E2BIG,
			       "the prompt has %zu tokens and max_tokens is %u; the context is %u",
			       n, *max_tokens, context);
	return 0;
}

int generate_check_samplers(const char *of, const struct textmodel_defaults *d, struct err *err)
{
	const struct {
		const char *name;
		double value, low, high;
	} all[] = {
		{ "top_k", d->top_k.value, 0, UINT32_MAX },
		{ "temperature", d->temperature.value, 0, 100 },
		{ "top_p", d->top_p.value, 0, 1 },
		{ "min_p", d->min_p.value, 0, 1 },
		{ "repetition_penalty", d->repetition_penalty.value, 0.01, 100 },
		{ "frequency_penalty", d->frequency_penalty.value, -100, 100 },
		{ "presence_penalty", d->presence_penalty.value, -100, 100 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		if (!(all[i].value >= all[i].low && all[i].value <= all[i].high))
			return err_set(err, -EINVAL, "%s.%s is %g; %g to %g is possible", of,
				       all[i].name, all[i].value, all[i].low, all[i].high);
	return 0;
}

/* What the session says where the request says nothing. */
static void overlay_session(const struct request *q, struct textmodel_defaults *d)
{
	json_t *said = q->begun.session ? json_loads(q->begun.defaults, 0, NULL) : NULL;
	const json_t *value;

#define ONE(member, key, builtin)                                                                  \
	value = json_object_get(said, #member);                                                    \
	if (json_is_number(value))                                                                 \
		d->member = (struct textmodel_default){ json_number_value(value), "session" };
	TEXTMODEL_SAMPLERS(ONE)
#undef ONE
	json_decref(said);
}

static int fill_sampling(const struct request *q, struct step_sampler *p, struct err *err)
{
	const struct msg_generate *g = &q->msg.generate;
	struct textmodel_defaults d;
	int r;

	textmodel_defaults(q->model, q->server->settings, &d);
	overlay_session(q, &d);
#define ONE(member, key, builtin)                                                                  \
	if (g->has_##member)                                                                       \
		d.member.value = g->member;
	TEXTMODEL_SAMPLERS(ONE)
#undef ONE
	r = generate_check_samplers("generate", &d, err);
	if (r < 0)
		return r;
	p->temperature = d.temperature.value;
	p->top_p = d.top_p.value;
	p->min_p = d.min_p.value;
	p->top_k = (uint32_t)d.top_k.value;
	p->repetition = d.repetition_penalty.value;
	p->frequency = d.frequency_penalty.value;
	p->presence = d.presence_penalty.value;

	if (g->has_seed)
		p->seed = g->seed;
	else if (getrandom(&p->seed, sizeof(p->seed), 0) != (ssize_t)sizeof(p->seed))
		return err_set(err, -EIO, "no random seed could be had");
	if (!g->has_seed)
		p->seed &= (1ull << 53) - 1; /* survives a client that keeps numbers as doubles */
	return 0;
}

static int fill_stop_ids(const struct request *q, struct step_sampler *p, struct err *err)
{
	const struct msg_generate *g = &q->msg.generate;
	const struct textmodel *m = q->model;
	const size_t n = g->has_stop_ids ? g->stop_ids.len / 4 : 0;

	if (!(g->has_ignore_eos && g->ignore_eos)) {
		p->n_stop_ids = q->layout == CHAT_NONE ? m->n_stop_ids : m->n_chat_stop_ids;
		memcpy(p->stop_ids, m->stop_ids, p->n_stop_ids * sizeof(*p->stop_ids));
	}
	if (g->has_stop_ids && g->stop_ids.len % 4 != 0)
		return err_set(err, -EINVAL, "generate.stop_ids has %zu bytes; 4 an id are wanted",
			       g->stop_ids.len);
	for (size_t i = 0; i < n; i++) {
		uint32_t id;

		memcpy(&id, g->stop_ids.data + 4 * i, sizeof(id));
		if (id >= m->vocab_real)
			return err_set(err, -EINVAL,
				       "generate.stop_ids[%zu] is %u; the vocabulary has %u", i, id,
				       m->vocab_real);
		if (p->n_stop_ids == STEP_STOP_IDS_MAX)
			return err_set(err, -EINVAL, "more than %d stop ids", STEP_STOP_IDS_MAX);
		p->stop_ids[p->n_stop_ids++] = id;
	}
	return 0;
}

static int fill_stops(const struct request *q, struct turn_record *rec, struct err *err)
{
	const struct strs *stops = &q->msg.generate.stop;

	if (!q->msg.generate.has_stop)
		return 0;
	for (uint32_t i = 0; i < stops->n; i++) {
		const struct span s = stops->at[i];

		if (s.len == 0 || memchr(s.data, '\0', s.len))
			return err_set(err, -EINVAL, "generate.stop[%u] is empty or holds a NUL",
				       i);
		if (rec->stops_len + s.len + 1 > TURN_STOP_BYTES)
			return err_set(err, -EINVAL, "generate.stop has more than %d bytes",
				       TURN_STOP_BYTES);
		memcpy(rec->stops + rec->stops_len, s.data, s.len);
		rec->stops[rec->stops_len + s.len] = '\0';
		rec->stops_len += (uint32_t)s.len + 1;
		rec->n_stops++;
	}
	return 0;
}

static int fill_bias(const struct request *q, struct turn_record *rec, struct err *err)
{
	const struct msg_generate *g = &q->msg.generate;
	const struct span ids = g->has_bias_ids ? g->bias_ids : SPAN("");
	const struct span values = g->has_bias_values ? g->bias_values : SPAN("");

	if (ids.len != values.len || ids.len % 4 != 0 || ids.len / 4 > STEP_BIAS_MAX)
		return err_set(err, -EINVAL,
			       "generate.bias_ids has %zu bytes and bias_values %zu; as many of 4 "
			       "bytes are wanted, at most %d",
			       ids.len, values.len, STEP_BIAS_MAX);
	rec->n_bias = (uint32_t)(ids.len / 4);
	memcpy(rec->bias_ids, ids.data, ids.len);
	memcpy(rec->bias_values, values.data, values.len);
	for (uint32_t i = 0; i < rec->n_bias; i++) {
		if (rec->bias_ids[i] >= q->model->vocab_real)
			return err_set(err, -EINVAL,
				       "generate.bias_ids[%u] is %u; the vocabulary has %u", i,
				       rec->bias_ids[i], q->model->vocab_real);
		if (!isfinite(rec->bias_values[i]))
			return err_set(err, -EINVAL, "generate.bias_values[%u] is not finite", i);
	}
	rec->sampler.n_bias = rec->n_bias;
	return 0;
}

static int fill_class(const struct request *q, struct turn_record *rec, struct err *err)
{
	const struct msg_generate *g = &q->msg.generate;

	if (!g->has_class || span_is(g->class, "interactive"))
		return 0;
	if (!span_is(g->class, "batch"))
		return err_set(err, -EINVAL,
			       "generate.class is '%.*s'; interactive or batch is wanted",
			       SPAN_ARG(g->class));
	rec->batch = 1;
	return 0;
}

static int fill_generate(const struct request *q, struct turn_record *rec, struct err *err)
{
	const struct msg_generate *g = &q->msg.generate;
	int r;

	r = fill_sampling(q, &rec->sampler, err);
	if (r < 0)
		return r;
	r = fill_stop_ids(q, &rec->sampler, err);
	if (r < 0)
		return r;
	r = fill_stops(q, rec, err);
	if (r < 0)
		return r;
	r = fill_bias(q, rec, err);
	if (r < 0)
		return r;
	r = fill_class(q, rec, err);
	if (r < 0)
		return r;
	if (g->has_min_tokens && g->min_tokens > rec->max_tokens)
		return err_set(err, -EINVAL, "generate.min_tokens is %u; max_tokens is %u",
			       g->min_tokens, rec->max_tokens);
	rec->sampler.min_tokens = g->has_min_tokens ? g->min_tokens : 0;
	rec->n_top = g->has_n_top ? (uint16_t)g->n_top : 0;
	rec->logprobs = (g->has_logprobs && g->logprobs) || rec->n_top > 0;
	rec->detach = g->has_detach && g->detach;
	rec->ignore_eos = g->has_ignore_eos && g->ignore_eos;
	rec->chat_layout = (uint8_t)q->layout;
	rec->thinking = q->thinking;
	rec->in_reasoning = q->in_reasoning;
	if (q->string_args_len > TURN_STRING_ARGS_BYTES)
		return err_set(err, -EINVAL,
			       "the tools' string arguments have names of %zu bytes; at most %d "
			       "are allowed",
			       q->string_args_len, TURN_STRING_ARGS_BYTES);
	memcpy(rec->string_args, q->string_args ? q->string_args : "", q->string_args_len);
	rec->string_args_len = (uint32_t)q->string_args_len;
	return 0;
}

static int fill(const struct request *q, struct turns *turns, struct turn_record *rec,
		struct err *err)
{
	const bool score = q->msg.type == MSG_SCORE;
	const uint32_t deadline_ms = score ? q->msg.score.deadline_ms : q->msg.generate.deadline_ms;
	int r;

	r = check_length(q, q->server->engine->plan.max_context, &rec->max_tokens, err);
	if (r < 0)
		return r;
	rec->uid = q->peer->uid;
	snprintf(rec->label, sizeof(rec->label), "%s", q->peer->label);
	snprintf(rec->client, sizeof(rec->client), "%s", q->peer->name);
	rec->accepted_us = q->received_us;
	if (deadline_ms > 0)
		rec->deadline_us = q->received_us + deadline_ms * US_PER_MS;
	rec->slot = TURN_NO_SLOT;
	rec->stop_id = UINT32_MAX;
	rec->n_prompt = rec->n_ids = (uint32_t)q->ids.n;
	rec->session = q->begun.session;
	rec->session_turn = q->begun.turn;
	rec->sampler.n_prompt = rec->n_prompt;
	rec->sampler.vocab_real = q->model->vocab_real;
	rec->sampler.repetition = 1;
	rec->sampler.top_p = 1;
	memcpy(turn_ids(turns, rec), q->ids.at, q->ids.n * sizeof(*q->ids.at));
	if (!score)
		return fill_generate(q, rec, err);
	rec->score = 1;
	rec->logprobs = 1;
	rec->n_top = q->msg.score.has_n_top ? (uint16_t)q->msg.score.n_top : 0;
	return 0;
}

/* Nobody has more turns than are left for others: so there are some for whoever comes. */
static int check_share(const struct request *q, struct err *err)
{
	struct turns *turns = q->server->engine->turns;
	struct turn_record *rec = NULL;
	uint32_t n_own = 0, n_left = TURNS_MAX;

	while ((rec = turns_next(turns, rec))) {
		if (rec->state == TURN_ENDED || rec->tidy)
			continue; /* it makes room when there is none */
		n_left--;
		n_own += rec->uid == q->peer->uid;
	}
	if (n_own < n_left)
		return 0;
	return err_set(err, -EAGAIN,
		       "user %u has %u turns queued and running; %u of %u are left, and nobody has "
		       "more than that",
		       q->peer->uid, n_own, n_left, TURNS_MAX);
}

int generate_submit(struct request *q, struct err *err)
{
	struct server *s = q->server;
	struct turn_record *rec;
	struct stream *st;
	int r;

	/* long text work may have ended after the model was taken away */
	r = server_refuses(s, err);
	if (r < 0)
		return r;
	if (!s->engine || q->model != s->model)
		return err_set(err, -EHOSTDOWN, "the model is being loaded again");

	r = check_share(q, err);
	if (r < 0)
		return r;
	rec = turns_take(s->engine->turns);
	if (!rec && stream_evict(s))
		rec = turns_take(s->engine->turns);
	if (!rec)
		return err_set(err, -EAGAIN, "%d turns are queued and running; no more can be",
			       TURNS_MAX);
	r = fill(q, s->engine->turns, rec, err);
	if (r >= 0) {
		r = stream_new(s, rec, &st);
		if (r < 0)
			err_set(err, r, "out of memory");
	}
	if (r < 0) {
		turns_drop(s->engine->turns, rec);
		return r;
	}
	tidy_keep(st, q);
	return stream_submit(st, q, err);
}
