/*
 * The device's memory is one reservation: rows, ids, a sequence's tokens on their
 * way to be counted, and of each slot its biases, stop ids and counts.
 */
#include "daemon/exec/sample/devsampler.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/sample.h"

#define ALIGN 256

struct slot {
	struct step_sampler params;
	uint32_t n_counted; /* of its tokens; 0: what stands there is to be cleared first */
	/* of the device */
	uint32_t *bias_ids, *stop_ids;
	float *bias_values;
	struct sample_count *counts;
};

struct devsampler {
	struct dev *dev;
	struct stream *st;
	uint32_t n_slots, vocab, max_context;
	struct slot *slots;
	struct sample_row *host_rows; /* [DEVSAMPLER_ROWS_MAX], on their way */

	void *memory;
	size_t bytes;
	/* of the device */
	struct sample_row *rows;
	uint32_t *ids, *tokens;
};

/* With @memory NULL it only counts. */
static void *carve(void *memory, size_t *used, size_t bytes)
{
	void *at = memory ? (char *)memory + *used : NULL;

	*used += (bytes + ALIGN - 1) / ALIGN * ALIGN;
	return at;
}

static size_t carve_slot(void *memory, size_t used, uint32_t vocab, struct slot *s)
{
	s->bias_ids = carve(memory, &used, STEP_BIAS_MAX * sizeof(*s->bias_ids));
	s->bias_values = carve(memory, &used, STEP_BIAS_MAX * sizeof(*s->bias_values));
	s->stop_ids = carve(memory, &used, STEP_STOP_IDS_MAX * sizeof(*s->stop_ids));
	s->counts = carve(memory, &used, vocab * sizeof(*s->counts));
	return used;
}

/* What all slots share. */
static size_t carve_common(void *memory, uint32_t max_context, struct devsampler *d)
{
	size_t used = 0;

	d->rows = carve(memory, &used, DEVSAMPLER_ROWS_MAX * sizeof(*d->rows));
	d->ids = carve(memory, &used, DEVSAMPLER_ROWS_MAX * sizeof(*d->ids));
	d->tokens = carve(memory, &used, max_context * sizeof(*d->tokens));
	return used;
}

size_t devsampler_bytes(uint32_t n_slots, uint32_t vocab, uint32_t max_context)
{
	struct devsampler common;
	struct slot slot;

	return carve_common(NULL, max_context, &common) +
	       n_slots * carve_slot(NULL, 0, vocab, &slot);
}

int devsampler_new(struct stream *st, uint32_t n_slots, uint32_t vocab, uint32_t max_context,
		   struct devsampler **ret)
{
	_cleanup_(devsampler_freep) struct devsampler *d = NULL;
	size_t used;
	int r;

	if (!op_samples(st_dev(st), vocab))
		return -ENOTSUP;
	d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	d->dev = st_dev(st);
	d->st = st;
	d->n_slots = n_slots;
	d->vocab = vocab;
	d->max_context = max_context;
	d->slots = calloc(n_slots, sizeof(*d->slots));
	d->host_rows = calloc(DEVSAMPLER_ROWS_MAX, sizeof(*d->host_rows));
	if (!d->slots || !d->host_rows)
		return -ENOMEM;
	dev_pin(d->dev, d->host_rows, DEVSAMPLER_ROWS_MAX * sizeof(*d->host_rows));

	d->bytes = devsampler_bytes(n_slots, vocab, max_context);
	d->memory = dev_reserve_named(d->dev, "samplers", d->bytes, DEV_CHUNK_MAX);
	r = d->memory ? dev_back(d->dev, d->memory, d->bytes) : -ENOMEM;
	if (r < 0) {
		d->memory = NULL;
		return r;
	}
	used = carve_common(d->memory, max_context, d);
	for (uint32_t i = 0; i < n_slots; i++)
		used = carve_slot(d->memory, used, vocab, &d->slots[i]);
	assert(used == d->bytes);
	*ret = steal(d);
	return 0;
}

struct devsampler *devsampler_free(struct devsampler *d)
{
	if (!d)
		return NULL;
	if (d->memory)
		dev_unback(d->dev, d->memory, d->bytes);
	if (d->host_rows)
		dev_unpin(d->dev, d->host_rows);
	free(d->host_rows);
	free(d->slots);
	free(d);
	return NULL;
}

int devsampler_set(struct devsampler *d, uint32_t slot, const struct step_sampler *params,
		   const uint32_t *bias_ids, const float *bias_values)
{
	struct slot *s = &d->slots[slot];
	int r = 0;

	s->params = *params;
	s->n_counted = 0;
	/* at once: no kernel that reads them is queued, for whoever samples waits */
	if (params->n_bias > 0) {
		r = dev_write(d->dev, s->bias_ids, bias_ids, params->n_bias * sizeof(*bias_ids));
		if (r == 0)
			r = dev_write(d->dev, s->bias_values, bias_values,
				      params->n_bias * sizeof(*bias_values));
	}
	if (r == 0 && params->n_stop_ids > 0 && params->min_tokens > 0)
		r = dev_write(d->dev, s->stop_ids, params->stop_ids,
			      params->n_stop_ids * sizeof(*params->stop_ids));
	return r;
}

void devsampler_truncate(struct devsampler *d, uint32_t slot, uint32_t length)
{
	if (length < d->slots[slot].n_counted)
		d->slots[slot].n_counted = 0;
}

static bool is_penalised(const struct step_sampler *p)
{
	return p->repetition != 1 || p->frequency != 0 || p->presence != 0;
}

/* Tokens @from … @to - 1 of a sequence, which are all prompt or all output. */
static int count_some(struct devsampler *d, struct slot *s, uint32_t from, uint32_t to, bool output)
{
	return from < to ? op_count(d->st, s->counts, d->vocab, d->tokens + from, to - from, output)
			 : 0;
}

/* Queues the counting of what a slot's row has more than was counted. */
static int count(struct devsampler *d, struct slot *s, const struct devsampler_row *row)
{
	const uint32_t from = s->n_counted, n_prompt = s->params.n_prompt;
	const size_t bytes = (size_t)(row->length - from) * sizeof(*row->tokens);
	const struct tensor all = { s->counts, DT_F32, { 1, 1, 2 * d->vocab } };
	int r = 0;

	if (from == 0)
		r = op_clear(d->st, &all);
	if (r == 0)
		r = st_copy2d(d->st, d->tokens + from, bytes, row->tokens + from, bytes, bytes, 1);
	if (r == 0)
		r = count_some(d, s, from, MIN(row->length, n_prompt), false);
	if (r == 0)
		r = count_some(d, s, MAX(from, n_prompt), row->length, true);
	if (r == 0)
		s->n_counted = row->length;
	return r;
}

static bool stops_are_masked(const struct step_sampler *p, uint32_t length)
{
	const uint32_t n_output = length > p->n_prompt ? length - p->n_prompt : 0;

	return p->n_stop_ids > 0 && n_output < p->min_tokens;
}

static struct sample_row row_of(const struct slot *s, uint32_t length)
{
	const struct step_sampler *p = &s->params;

	return (struct sample_row){
		.temperature = p->temperature,
		.top_p = p->top_p,
		.min_p = p->min_p,
		.repetition = p->repetition,
		.frequency = p->frequency,
		.presence = p->presence,
		.seed = p->seed,
		.position = length,
		.top_k = p->top_k,
		.vocab_real = p->vocab_real,
		.n_masked = stops_are_masked(p, length) ? p->n_stop_ids : 0,
		.n_bias = p->n_bias,
		.masked = s->stop_ids,
		.bias_ids = s->bias_ids,
		.bias_values = s->bias_values,
		.counts = is_penalised(p) ? s->counts : NULL,
	};
}

int devsampler_sample(struct devsampler *d, const struct tensor *logits,
		      const struct devsampler_row *rows, uint32_t *ret_ids)
{
	const uint32_t n = logits->shape[1];
	const size_t bytes = n * sizeof(*d->rows);
	int r;

	assert(n <= DEVSAMPLER_ROWS_MAX && logits->shape[2] == d->vocab);
	for (uint32_t i = 0; i < n; i++) {
		struct slot *s;

		/* the largest of one: the least that can be asked of a row */
		d->host_rows[i] = (struct sample_row){ .vocab_real = 1 };
		if (rows[i].slot == DEVSAMPLER_NONE)
			continue;
		s = &d->slots[rows[i].slot];
		d->host_rows[i] = row_of(s, rows[i].length);
		if (d->host_rows[i].counts && s->n_counted < rows[i].length) {
			r = count(d, s, &rows[i]);
			if (r < 0)
				return r;
		}
	}
	r = st_copy2d(d->st, d->rows, bytes, d->host_rows, bytes, bytes, 1);
	if (r == 0)
		r = op_sample(d->st, d->ids, logits, d->rows);
	return r < 0 ? r : st_read(d->st, ret_ids, d->ids, n * sizeof(*ret_ids));
}
