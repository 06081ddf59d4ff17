/* Steps on slots: apply the rows, one forward pass over all of them, then sample and score. */
#include "daemon/exec/exec.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/exec/moves.h"
#include "daemon/exec/order.h"
#include "daemon/exec/sample/devsampler.h"
#include "daemon/exec/sample/sampler.h"

#define LOGITS_ROWS STEP_ROWS_MAX /* rows whose logits are in memory at once */
_Static_assert(MODEL_SPOKEN_ROWS <= DEVSAMPLER_ROWS_MAX, "logits of a step are sampled at once");

struct slot {
	uint32_t length; /* tokens whose KV is computed */
	uint32_t n_pages;
	uint32_t *tokens;	 /* [max_context] */
	uint32_t *pages;	 /* [table] */
	struct sampler *sampler; /* has been told tokens[0 … length) */
	uint32_t vocab_real, n_stop_ids;
	uint32_t stop_ids[STEP_STOP_IDS_MAX];
	uint32_t sample; /* follows tokens[length - 1] if has_sample */
	bool has_sample, stopped;
};

/* A row of the batch whose logits are wanted. */
struct wanted {
	uint16_t row;
	uint16_t token; /* of that row */
};

struct exec {
	struct team *team; /* that computes */
	struct dev *dev;   /* of rank 0 */
	struct kv_cache arena;
	bool pinned;
	struct devsampler *devsampler; /* NULL: the host samples */
	struct order_limits limits;
	uint32_t max_batch_tokens;
	struct slot *slots;
	uint32_t *slot_memory;

	/* of the step under way */
	uint64_t *payload; /* the private copy */
	struct order orders[STEP_ROWS_MAX];
	bool ignored[STEP_ROWS_MAX];
	struct row_result results[STEP_ROWS_MAX];
	struct seq seqs[STEP_ROWS_MAX];
	uint32_t n_seqs, n_tokens, n_wanted;
	uint32_t *ids, *out;	  /* [max_batch_tokens] */
	struct wanted *wanted;	  /* [max_batch_tokens] */
	const struct wanted *now; /* of them those that are computed together */
	uint32_t n_now;
	bool sampled[MODEL_SPOKEN_ROWS]; /* of now: by the device, to */
	uint32_t sampled_ids[MODEL_SPOKEN_ROWS];
	float *logits; /* [LOGITS_ROWS][vocab] */
	float top[STEP_TOP_MAX];
	uint32_t top_ids[STEP_TOP_MAX];

	char products[256]; /* how the device computes them; "" */
};

static uint32_t table_pages(const struct exec *e)
{
	return (e->limits.max_context + e->limits.page_tokens - 1) / e->limits.page_tokens;
}

/* In slot_memory of each, in u32. */
static size_t slot_words(const struct exec *e)
{
	return (size_t)e->limits.max_context + table_pages(e);
}

static size_t slots_bytes(const struct exec *e)
{
	return e->limits.n_slots * slot_words(e) * sizeof(uint32_t);
}

static int allocate(struct exec *e, struct err *err)
{
	const size_t batch = e->max_batch_tokens;

	e->slots = calloc(e->limits.n_slots, sizeof(*e->slots));
	e->slot_memory = calloc(1, slots_bytes(e));
	e->payload = malloc(STEP_PAYLOAD_BYTES);
	e->ids = calloc(batch, sizeof(*e->ids));
	e->out = calloc(batch, sizeof(*e->out));
	e->wanted = calloc(batch, sizeof(*e->wanted));
	e->logits = calloc(MIN(batch, LOGITS_ROWS), e->limits.vocab * sizeof(float));
	if (!e->slots || !e->slot_memory || !e->payload || !e->ids || !e->out || !e->wanted ||
	    !e->logits)
		return err_set(err, -ENOMEM, "cannot allocate %u slots of %u tokens",
			       e->limits.n_slots, e->limits.max_context);
	dev_pin(e->dev, e->logits,
		MIN(batch, LOGITS_ROWS) * e->limits.vocab * sizeof(float)); /* or it is slower */

	for (uint32_t i = 0; i < e->limits.n_slots; i++) {
		e->slots[i].tokens = e->slot_memory + i * slot_words(e);
		e->slots[i].pages = e->slots[i].tokens + e->limits.max_context;
	}
	return 0;
}

/*
 * Of a device that is not the host: it samples where it has whole rows of logits,
 * and reaches what is copied often.
 */
static int make_aside(struct exec *e, struct err *err)
{
	int r;

	e->pinned = dev_pin(e->dev, e->arena.base, e->arena.n_pages * kv_page_bytes(&e->arena)) ==
		    0;
	if (team_ranks(e->team) > 1)
		return 0;
	r = model_prepare(team_model(e->team, 0), MIN(e->limits.n_slots, e->max_batch_tokens));
	if (r < 0)
		return err_set(err, r, "cannot record steps of %u rows", e->limits.n_slots);
	r = devsampler_new(model_stream(team_model(e->team, 0)), e->limits.n_slots, e->limits.vocab,
			   e->limits.max_context, &e->devsampler);
	if (r < 0 && r != -ENOTSUP)
		return err_set(err, r, "no memory on the device for the samplers of %u slots",
			       e->limits.n_slots);
	if (e->devsampler)
		dev_pin(e->dev, e->slot_memory, slots_bytes(e));
	return 0;
}

int exec_new(struct team *team, const struct kv_cache *kv, const struct exec_limits *limits,
	     struct exec **ret, struct err *err)
{
	_cleanup_(exec_freep) struct exec *e = NULL;
	int r;

	if (limits->n_slots == 0 || limits->n_slots > UINT16_MAX || limits->max_batch_tokens == 0 ||
	    limits->max_batch_tokens > STEP_TOKENS_MAX)
		return err_set(err, -EINVAL, "%u slots with batches of %u tokens make no executor",
			       limits->n_slots, limits->max_batch_tokens);

	e = calloc(1, sizeof(*e));
	if (!e)
		return err_wrap(err, -ENOMEM, "cannot allocate the executor");
	e->team = team;
	e->dev = team_dev(team, 0);
	e->arena = *kv;
	e->max_batch_tokens = limits->max_batch_tokens;
	e->limits = (struct order_limits){
		.n_slots = limits->n_slots,
		.max_context = limits->max_context,
		.page_tokens = kv->page_tokens,
		.n_pages = kv->n_pages,
		.vocab = team_weights(team, 0)->config.vocab,
	};
	r = allocate(e, err);
	if (r == 0)
		r = team_make_models(team, kv, limits->max_batch_tokens, limits->max_context, err);
	if (r == 0 && limits->chooses) {
		r = team_choose(team, limits->cache_dir, e->products, sizeof(e->products));
		if (r < 0)
			err_set(err, r, "cannot choose how products are computed");
	}
	if (r == 0 && !dev_is_host(e->dev))
		r = make_aside(e, err);
	if (r == 0) /* last: it takes what there is */
		r = exec_resize(e, limits->pool_bytes ? limits->pool_bytes : UINT64_MAX, err);
	if (r < 0)
		return r;
	*ret = steal(e);
	return 0;
}

struct exec *exec_free(struct exec *e)
{
	if (!e)
		return NULL;
	if (e->slots)
		for (uint32_t i = 0; i < e->limits.n_slots; i++)
			sampler_free(e->slots[i].sampler);
	if (e->devsampler)
		dev_unpin(e->dev, e->slot_memory);
	devsampler_free(e->devsampler);
	if (e->pinned)
		dev_unpin(e->dev, e->arena.base);
	free(e->slots);
	free(e->slot_memory);
	free(e->payload);
	free(e->ids);
	free(e->out);
	free(e->wanted);
	if (e->logits)
		dev_unpin(e->dev, e->logits);
	free(e->logits);
	free(e);
	return NULL;
}

const char *exec_products(const struct exec *e)
{
	return e->products;
}

int exec_resize(struct exec *e, uint64_t pool_bytes, struct err *err)
{
	return team_resize(e->team, pool_bytes, err);
}

static bool has_flag(const struct order *o, enum row_flags flag)
{
	return o->row.flags & flag;
}

/* Tokens that a row adds to the batch. */
static uint32_t computed_by(const struct exec *e, uint32_t i)
{
	const struct order *o = &e->orders[i];

	if (e->ignored[i] || has_flag(o, ROW_KNOWN))
		return 0;
	return o->row.kind == ROW_FEED ? o->row.n_tokens : 1;
}

static bool does_nothing(const struct slot *s, const struct order *o)
{
	return o->row.kind == ROW_CONT && (s->stopped || !s->has_sample);
}

/* Checks a row against its slot as the step finds it. */
static int admit(struct exec *e, const struct order *o, uint32_t i, struct err *err)
{
	const struct slot *s = &e->slots[o->row.slot];
	const bool opens = o->row.kind == ROW_FEED && o->row.at == 0;
	const uint32_t pages = opens ? 0 : s->n_pages;
	const uint64_t at = o->row.kind == ROW_FEED ? o->row.at : s->length;
	const uint64_t end = at + (o->row.kind == ROW_FEED ? o->row.n_tokens : 1);
	const uint32_t have = MAX(pages, o->row.page_at + o->row.n_pages);
	const uint32_t vocab_real = o->sampler ? o->sampler->vocab_real : s->vocab_real;

	if (o->row.n_pages > 0 && o->row.page_at > pages)
		return err_set(err, -EBADMSG, "row %u: pages from %u on, but slot %u has %u", i,
			       o->row.page_at, o->row.slot, pages);
	if (o->row.kind == ROW_FEED && at > s->length)
		return err_set(err, -EBADMSG, "row %u: a FEED at %llu, but slot %u has %u tokens",
			       i, (unsigned long long)at, o->row.slot, s->length);
	if (does_nothing(s, o))
		return 0;
	if (end > e->limits.max_context)
		return err_set(err, -EBADMSG, "row %u: slot %u is full", i, o->row.slot);
	if (end > (uint64_t)(o->row.n_pages > 0 ? have : pages) * e->limits.page_tokens)
		return err_set(err, -EBADMSG, "row %u: slot %u has no page for position %llu", i,
			       o->row.slot, (unsigned long long)end - 1);
	if (o->row.n_top > vocab_real)
		return err_set(err, -EBADMSG, "row %u: n_top is %u of %u ids", i, o->row.n_top,
			       vocab_real);
	return 0;
}

/* Log-probabilities that a row gives back. */
static uint32_t logprobs_of(const struct exec *e, uint32_t i)
{
	if (has_flag(&e->orders[i], ROW_SCORE))
		return e->orders[i].row.n_tokens;
	return has_flag(&e->orders[i], ROW_LOGPROBS) && !e->ignored[i] ? 1 : 0;
}

/* Lays out the results' payload; returns its bytes. */
static size_t lay_out(struct exec *e, uint32_t n_rows)
{
	size_t used = n_rows * sizeof(struct row_result);

	for (uint32_t i = 0; i < n_rows; i++) {
		const uint32_t n = logprobs_of(e, i);

		e->results[i].logprobs_off = n > 0 ? used : 0;
		used += (size_t)n * (1 + 2 * e->orders[i].row.n_top) * 4;
	}
	return used;
}

static int admit_all(struct exec *e, const struct step *step, size_t *ret_bytes, struct err *err)
{
	uint32_t n_tokens = 0;

	for (uint32_t i = 0; i < step->n_rows; i++) {
		const struct order *o = &e->orders[i];
		int r;

		r = admit(e, o, i, err);
		if (r < 0)
			return err_wrap(err, r, "step %llu", (unsigned long long)step->id);
		e->ignored[i] = does_nothing(&e->slots[o->row.slot], o);
		e->results[i] = (struct row_result){ .slot = o->row.slot };
		n_tokens += computed_by(e, i);
	}
	if (n_tokens > e->max_batch_tokens)
		return err_set(err, -EBADMSG, "step %llu has %u tokens; at most %u are allowed",
			       (unsigned long long)step->id, n_tokens, e->max_batch_tokens);

	*ret_bytes = lay_out(e, step->n_rows);
	if (*ret_bytes > STEP_RESULT_BYTES)
		return err_set(err, -EBADMSG, "step %llu asks for %zu bytes of results",
			       (unsigned long long)step->id, *ret_bytes);
	return 0;
}

/* A new sampler learns what the old one knew: the slot's first @length tokens. */
static int replace_sampler(struct exec *e, struct slot *s, const struct order *o, uint32_t length)
{
	struct sampler *sampler;
	int r;

	r = sampler_new(o->sampler, o->bias_ids, o->bias_values, e->limits.vocab, &sampler);
	if (r < 0)
		return r == -EINVAL ? -EBADMSG : r;
	sampler_free(s->sampler);
	s->sampler = sampler;
	if (e->devsampler) {
		r = devsampler_set(e->devsampler, o->row.slot, o->sampler, o->bias_ids,
				   o->bias_values);
		if (r < 0)
			return r;
	}
	s->vocab_real = o->sampler->vocab_real;
	s->n_stop_ids = o->sampler->n_stop_ids;
	memcpy(s->stop_ids, o->sampler->stop_ids, sizeof(s->stop_ids));
	return sampler_push(s->sampler, s->tokens, length);
}

static void want(struct exec *e, uint32_t row, uint32_t token)
{
	e->wanted[e->n_wanted] = (struct wanted){ row, token };
	e->out[e->n_wanted++] = e->seqs[e->n_seqs].first + token;
}

/* Puts a row's tokens into its slot and into the batch. */
static int apply(struct exec *e, uint32_t i)
{
	const struct order *o = &e->orders[i];
	struct slot *s = &e->slots[o->row.slot];
	const uint32_t at = o->row.kind == ROW_FEED ? o->row.at : s->length;
	const uint32_t n = o->row.kind == ROW_FEED ? o->row.n_tokens : 1;
	const uint32_t *tokens = o->row.kind == ROW_FEED ? o->tokens : &s->sample;
	int r;

	if (o->row.kind == ROW_FEED && at == 0)
		s->n_pages = 0;
	if (o->row.n_pages > 0) {
		memcpy(s->pages + o->row.page_at, o->pages, o->row.n_pages * sizeof(*o->pages));
		s->n_pages = MAX(s->n_pages, o->row.page_at + o->row.n_pages);
	}
	if (at < s->length && !o->sampler) {
		sampler_truncate(s->sampler, at);
		if (e->devsampler)
			devsampler_truncate(e->devsampler, o->row.slot, at);
	}
	s->length = at + (e->ignored[i] ? 0 : n);
	if (o->sampler) {
		r = replace_sampler(e, s, o, at);
		if (r < 0)
			return r;
	}
	if (e->ignored[i])
		return 0;

	r = sampler_push(s->sampler, tokens, n);
	if (r < 0)
		return r;
	memcpy(s->tokens + at, tokens, n * sizeof(*tokens));
	s->has_sample = s->stopped = false;
	if (computed_by(e, i) == 0)
		return 0;

	memcpy(e->ids + e->n_tokens, tokens, n * sizeof(*tokens));
	e->seqs[e->n_seqs] = (struct seq){
		.first = e->n_tokens,
		.n_tokens = n,
		.at = at,
		.n_pages = s->n_pages,
		.pages = s->pages,
	};
	if (has_flag(o, ROW_SCORE))
		for (uint32_t t = 0; t < n; t++)
			want(e, i, t);
	else if (has_flag(o, ROW_SAMPLE))
		want(e, i, n - 1);
	e->n_seqs++;
	e->n_tokens += n;
	return 0;
}

/* Writes log-probability number @k of row @i into the results' payload. */
static void write_logprobs(struct exec *e, uint32_t i, uint32_t k, const float *logits, uint32_t id,
			   char *room)
{
	const struct order *o = &e->orders[i];
	const struct slot *s = &e->slots[o->row.slot];
	const uint32_t n = logprobs_of(e, i), n_top = o->row.n_top;
	char *at = room + e->results[i].logprobs_off;
	float logprob;

	/* an id that is no token has no probability; one that is nobody's has none to tell */
	const bool padded = id != UINT32_MAX && id >= s->vocab_real;

	sampler_logprobs(logits, s->vocab_real, padded ? UINT32_MAX : id, n_top, &logprob,
			 e->top_ids, e->top);
	if (padded)
		logprob = -INFINITY;
	memcpy(at + k * 4, &logprob, 4);
	memcpy(at + (n + (size_t)k * n_top) * 4, e->top_ids, n_top * 4);
	memcpy(at + (n + (size_t)(n + k) * n_top) * 4, e->top, n_top * 4);
}

static bool is_stop(const struct slot *s, uint32_t id)
{
	for (uint32_t i = 0; i < s->n_stop_ids; i++)
		if (s->stop_ids[i] == id)
			return true;
	return false;
}

static void keep_sample(struct exec *e, uint32_t i, uint32_t id)
{
	struct slot *s = &e->slots[e->orders[i].row.slot];
	struct row_result *result = &e->results[i];

	s->sample = id;
	s->has_sample = true;
	s->stopped = is_stop(s, id);
	result->tokens[0] = id;
	result->n_tokens = 1;
	result->flags = RESULT_SAMPLED | (s->stopped ? RESULT_STOPPED : 0);
}

/* Whether a token of the batch is the one that its row is sampled after. */
static bool is_sampled(const struct exec *e, const struct wanted *w)
{
	const struct order *o = &e->orders[w->row];

	return has_flag(o, ROW_SAMPLE) &&
	       (o->row.kind == ROW_CONT || w->token == o->row.n_tokens - 1);
}

/*
 * Whose logits the host has to see, it samples itself: of scores, and of samples
 * that come with log-probabilities. All others the device samples, if it can.
 */
static bool leaves_sampling(const struct exec *e, const struct wanted *w)
{
	const struct order *o = &e->orders[w->row];

	return is_sampled(e, w) && !has_flag(o, ROW_LOGPROBS) && !has_flag(o, ROW_SCORE);
}

/* Sets sampled[], of whose rows the host need not see the logits. */
static int sample_on_device(struct exec *e)
{
	struct devsampler_row rows[MODEL_SPOKEN_ROWS];
	struct tensor logits;
	uint32_t n = 0;

	memset(e->sampled, 0, sizeof(e->sampled));
	if (!e->devsampler || !model_spoken(team_model(e->team, 0), &logits))
		return 0;
	for (uint32_t j = 0; j < e->n_now; j++) {
		const struct wanted *w = &e->now[j];
		const uint32_t slot = e->orders[w->row].row.slot;

		e->sampled[j] = leaves_sampling(e, w);
		n += e->sampled[j];
		rows[j] = (struct devsampler_row){
			.slot = e->sampled[j] ? slot : DEVSAMPLER_NONE,
			.length = e->slots[slot].length,
			.tokens = e->slots[slot].tokens,
		};
	}
	return n > 0 ? devsampler_sample(e->devsampler, &logits, rows, e->sampled_ids) : 0;
}

/* Whether the device sampled what is wanted now of row @j. */
static bool is_done(const struct exec *e, uint32_t j)
{
	return j < MODEL_SPOKEN_ROWS && e->sampled[j];
}

/* What the host makes of the logits of wanted row @j. */
static void look(struct exec *e, uint32_t j, const float *logits, char *room)
{
	const struct wanted w = e->now[j];
	const struct order *o = &e->orders[w.row];
	struct slot *s = &e->slots[o->row.slot];

	if (has_flag(o, ROW_SCORE))
		write_logprobs(e, w.row, w.token, logits, o->targets[w.token], room);
	if (!is_sampled(e, &w))
		return;
	keep_sample(e, w.row, sampler_sample(s->sampler, logits, s->length));
	if (has_flag(o, ROW_LOGPROBS))
		write_logprobs(e, w.row, 0, logits, s->sample, room);
}

/* The head is read once for every LOGITS_ROWS rows, whichever slots they are of; or is there already. */
static int finish(struct exec *e, char *room)
{
	uint32_t n;
	int r;

	r = sample_on_device(e);
	if (r < 0)
		return r;
	for (uint32_t first = 0; first < e->n_now; first += n) {
		if (is_done(e, first)) {
			keep_sample(e, e->now[first].row, e->sampled_ids[first]);
			n = 1;
			continue;
		}
		n = 1;
		while (n < LOGITS_ROWS && first + n < e->n_now && !is_done(e, first + n))
			n++;
		r = team_logits(e->team, first, n, e->logits);
		if (r < 0)
			return r;
		for (uint32_t j = 0; j < n; j++)
			look(e, first + j, e->logits + (size_t)j * e->limits.vocab, room);
	}
	return 0;
}

static uint32_t pages_of(const struct exec *e, const struct seq *seq)
{
	return (seq->at + seq->n_tokens + e->limits.page_tokens - 1) / e->limits.page_tokens;
}

/* Sequences from @first on whose pages a device has room for at once: at least one. */
static uint32_t fitting(const struct exec *e, uint32_t first)
{
	const uint32_t room = team_pages(e->team);
	uint64_t pages = pages_of(e, &e->seqs[first]);
	uint32_t n = 1;

	while (first + n < e->n_seqs && (pages += pages_of(e, &e->seqs[first + n])) <= room)
		n++;
	return n;
}

/* A forward pass over @n sequences from @first on, as if they were a batch of their own, and what is wanted of them. */
static int pass(struct exec *e, uint32_t first, uint32_t n, char *room)
{
	struct seq *seqs = e->seqs + first;
	const uint32_t token = seqs->first;
	const uint32_t n_tokens = seqs[n - 1].first + seqs[n - 1].n_tokens - token;
	uint32_t *out = e->out + (e->now - e->wanted);
	const uint32_t n_left = e->n_wanted - (uint32_t)(e->now - e->wanted);
	int r;

	for (uint32_t i = 0; i < n; i++)
		seqs[i].first -= token;
	for (e->n_now = 0; e->n_now < n_left && out[e->n_now] < token + n_tokens; e->n_now++)
		out[e->n_now] -= token;
	r = team_forward(e->team, e->ids + token, n_tokens, seqs, n, out, e->n_now, NULL);
	if (r == 0)
		r = finish(e, room);
	e->now += e->n_now;
	return r;
}

/* In one pass, unless the pages are more than a device has room for. */
static int compute_batch(struct exec *e, char *room)
{
	int r = 0;

	e->now = e->wanted;
	for (uint32_t first = 0, n; r == 0 && first < e->n_seqs; first += n) {
		n = fitting(e, first);
		r = pass(e, first, n, room);
	}
	return r;
}

static int compute(struct exec *e, uint32_t n_rows, char *room)
{
	int r;

	e->n_seqs = e->n_tokens = e->n_wanted = 0;
	for (uint32_t i = 0; i < n_rows; i++) {
		r = apply(e, i);
		if (r < 0)
			return r;
	}
	r = compute_batch(e, room);
	if (r < 0)
		return r;

	for (uint32_t i = 0; i < n_rows; i++) {
		e->results[i].length = e->slots[e->orders[i].row.slot].length;
		if (e->ignored[i])
			e->results[i].flags = RESULT_IGNORED;
	}
	memcpy(room, e->results, n_rows * sizeof(*e->results));
	return 0;
}

static int run_moves(struct exec *e, const struct step *step, void *room, size_t *ret_bytes,
		     struct err *err)
{
	int r;

	r = order_read_moves(step, e->payload, &e->limits, err);
	if (r < 0)
		return r;
	if (team_has_mirrors(e->team)) {
		r = team_move(e->team, (const struct step_move *)e->payload, step->n_rows);
		if (r < 0)
			return err_wrap(err, r, "cannot do the moves of step %llu",
					(unsigned long long)step->id);
		moves_sum(e->dev, &e->arena, (const struct step_move *)e->payload, step->n_rows,
			  room);
	} else {
		moves_run(e->dev, &e->arena, (const struct step_move *)e->payload, step->n_rows,
			  room);
	}
	*ret_bytes = step->n_rows * sizeof(struct step_moved);
	return 0;
}

static int run_step(struct exec *e, const struct step *step, const void *payload, void *room,
		    size_t *ret_bytes, struct err *err)
{
	int r;

	if (step->payload_bytes > STEP_PAYLOAD_BYTES)
		return err_set(err, -EBADMSG, "step %llu has %u bytes",
			       (unsigned long long)step->id, step->payload_bytes);
	memcpy(e->payload, payload, step->payload_bytes);
	if (step->kind == STEP_MOVE)
		return run_moves(e, step, room, ret_bytes, err);
	r = order_read(step, e->payload, &e->limits, e->orders, err);
	if (r < 0)
		return r;
	r = admit_all(e, step, ret_bytes, err);
	if (r < 0)
		return r;
	r = compute(e, step->n_rows, room);
	if (r < 0)
		return err_wrap(err, r, "cannot compute step %llu", (unsigned long long)step->id);
	return 0;
}

int exec_step(struct exec *e, const struct step *step, const void *payload, void *room,
	      struct step_result *ret, struct err *err)
{
	const uint64_t begun = clock_us();
	size_t bytes = 0;
	int r;

	team_set_serving(e->team, true);
	r = run_step(e, step, payload, room, &bytes, err);
	team_set_serving(e->team, false);
	*ret = (struct step_result){
		.id = step->id,
		.error = r,
		.device_us = MIN(clock_us() - begun, UINT32_MAX),
		.n_rows = r < 0 ? 0 : step->n_rows,
		.kind = step->kind,
		.payload_bytes = r < 0 ? 0 : bytes,
	};
	return r;
}

int exec_drain(struct exec *e, struct ring *ring, struct err *err)
{
	const struct step *shared;
	const void *payload;
	int n = 0, r;

	while ((shared = ring_next(ring, &payload))) {
		const struct step step = *(const volatile struct step *)shared;
		struct step_result result;

		r = exec_step(e, &step, payload, ring_result_room(ring), &result, err);
		ring_done(ring, &result);
		if (r < 0)
			return r;
		n++;
	}
	return n;
}

int exec_run(struct exec *e, struct ring *ring, const _Atomic uint32_t *interrupt, struct err *err)
{
	uint64_t rung;
	int r;

	for (;;) {
		/* looked at first: steps that were pushed before it was set are done before it counts */
		const bool interrupted = atomic_load(interrupt) != 0;

		r = exec_drain(e, ring, err);
		if (r < 0 || interrupted)
			return MIN(r, 0);
		if (read(ring->down_fd, &rung, sizeof(rung)) < 0 && errno != EINTR &&
		    errno != EAGAIN)
			return err_wrap(err, -errno, "cannot wait for the step ring's bell");
	}
}
