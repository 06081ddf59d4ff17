/* Checks of a step's payload: what the broker says is believed only where it cannot hurt. */
#include "daemon/exec/order.h"

#include <errno.h>
#include <stdarg.h>

#define ROW_FLAGS (ROW_SAMPLE | ROW_LOGPROBS | ROW_SCORE | ROW_KNOWN)

struct reading {
	const struct step *step;
	const char *payload;
	const struct order_limits *limits;
	uint32_t i; /* the row */
	struct err *err;
};

static int _printf_(2, 3) refuse(const struct reading *rd, const char *format, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	return err_set(rd->err, -EBADMSG, "step %llu, row %u: %s", (unsigned long long)rd->step->id,
		       rd->i, text);
}

/* Finds @n elements of @bytes each at @off. */
static int find(const struct reading *rd, const char *what, uint32_t off, uint32_t align,
		uint64_t n, uint32_t bytes, const void **ret)
{
	if (off == 0 || off % align != 0)
		return refuse(rd, "%s_off is %u; a multiple of %u is wanted", what, off, align);
	if (off > rd->step->payload_bytes || n * bytes > rd->step->payload_bytes - off)
		return refuse(rd, "%s_off is %u, and %llu bytes are not there", what, off,
			      (unsigned long long)(n * bytes));
	*ret = rd->payload + off;
	return 0;
}

static int check_ids(const struct reading *rd, const char *what, const uint32_t *ids, uint32_t n,
		     bool none_allowed)
{
	for (uint32_t i = 0; i < n; i++)
		if (ids[i] >= rd->limits->vocab && !(none_allowed && ids[i] == UINT32_MAX))
			return refuse(rd, "%s %u is id %u; the vocabulary has %u", what, i, ids[i],
				      rd->limits->vocab);
	return 0;
}

static int read_sampler(const struct reading *rd, struct order *o)
{
	const struct step_sampler *s;
	const void *at;
	int r;

	r = find(rd, "sampler", o->row.sampler_off, 8, 1, sizeof(*s), &at);
	if (r < 0)
		return r;
	s = at;
	if (s->vocab_real == 0 || s->vocab_real > rd->limits->vocab)
		return refuse(rd, "vocab_real is %u; the vocabulary has %u", s->vocab_real,
			      rd->limits->vocab);
	if (s->n_stop_ids > STEP_STOP_IDS_MAX)
		return refuse(rd, "n_stop_ids is %u; at most %u are allowed", s->n_stop_ids,
			      STEP_STOP_IDS_MAX);
	if (s->n_bias > STEP_BIAS_MAX)
		return refuse(rd, "n_bias is %u; at most %u are allowed", s->n_bias, STEP_BIAS_MAX);
	if (s->n_bias > 0) {
		r = find(rd, "bias", s->bias_off, 8, s->n_bias, 8, &at);
		if (r < 0)
			return r;
		o->bias_ids = at;
		o->bias_values = (const float *)(o->bias_ids + s->n_bias);
		r = check_ids(rd, "bias", o->bias_ids, s->n_bias, false);
		if (r < 0)
			return r;
	}
	o->sampler = s;
	return 0;
}

static int read_pages(const struct reading *rd, struct order *o)
{
	const struct order_limits *l = rd->limits;
	const uint32_t table = (l->max_context + l->page_tokens - 1) / l->page_tokens;
	const struct row *row = &o->row;
	const void *at;
	int r;

	if (row->page_at > table || row->n_pages > table - row->page_at)
		return refuse(rd, "pages %u and %u after it; a slot has %u", row->page_at,
			      row->n_pages, table);
	r = find(rd, "pages", row->pages_off, 4, row->n_pages, 4, &at);
	if (r < 0)
		return r;
	o->pages = at;
	for (uint32_t i = 0; i < row->n_pages; i++)
		if (o->pages[i] >= l->n_pages)
			return refuse(rd, "page %u; the arena has %u", o->pages[i], l->n_pages);
	return 0;
}

static int read_feed(const struct reading *rd, struct order *o)
{
	const struct row *row = &o->row;
	const void *at;
	int r;

	if (rd->step->kind == STEP_DECODE)
		return refuse(rd, "a FEED in a DECODE step");
	if (row->n_tokens == 0 || (row->n_tokens > STEP_TOKENS_MAX && !(row->flags & ROW_KNOWN)))
		return refuse(rd, "a FEED of %u tokens; 1 to %u are allowed", row->n_tokens,
			      STEP_TOKENS_MAX);
	if (row->at > rd->limits->max_context || row->n_tokens > rd->limits->max_context - row->at)
		return refuse(rd, "a FEED of %u tokens at %u; the context is %u", row->n_tokens,
			      row->at, rd->limits->max_context);
	if (row->at == 0 && row->sampler_off == 0)
		return refuse(rd, "a FEED at 0 without a sampler");
	r = find(rd, "tokens", row->tokens_off, 4, row->n_tokens, 4, &at);
	if (r < 0)
		return r;
	o->tokens = at;
	r = check_ids(rd, "token", o->tokens, row->n_tokens, false);
	if (r < 0 || !(row->flags & ROW_SCORE))
		return r;

	r = find(rd, "targets", row->targets_off, 4, row->n_tokens, 4, &at);
	if (r < 0)
		return r;
	o->targets = at;
	return check_ids(rd, "target", o->targets, row->n_tokens, true);
}

static int read_row(const struct reading *rd, struct order *o)
{
	const struct row *row = &o->row;
	int r;

	if (row->slot >= rd->limits->n_slots)
		return refuse(rd, "slot %u; there are %u", row->slot, rd->limits->n_slots);
	if (row->flags & ~ROW_FLAGS)
		return refuse(rd, "flags are 0x%x", row->flags);
	if ((row->flags & ROW_LOGPROBS) && (!(row->flags & ROW_SAMPLE) || (row->flags & ROW_SCORE)))
		return refuse(rd, "ROW_LOGPROBS goes with ROW_SAMPLE and without ROW_SCORE");
	if ((row->flags & ROW_KNOWN) && (row->flags != ROW_KNOWN || row->kind != ROW_FEED))
		return refuse(rd, "ROW_KNOWN in kind %u with flags 0x%x", row->kind, row->flags);
	if (row->n_top > STEP_TOP_MAX)
		return refuse(rd, "n_top is %u; at most %u is allowed", row->n_top, STEP_TOP_MAX);

	if (row->kind == ROW_FEED)
		r = read_feed(rd, o);
	else if (row->kind == ROW_CONT && row->n_tokens == 0 && !(row->flags & ROW_SCORE))
		r = 0;
	else
		r = refuse(rd, "kind %u with %u tokens and flags 0x%x", row->kind, row->n_tokens,
			   row->flags);
	if (r < 0)
		return r;

	if (row->n_pages > 0) {
		r = read_pages(rd, o);
		if (r < 0)
			return r;
	}
	return row->sampler_off ? read_sampler(rd, o) : 0;
}

int order_read(const struct step *step, const void *payload, const struct order_limits *limits,
	       struct order *ret, struct err *err)
{
	struct reading rd = { .step = step, .payload = payload, .limits = limits, .err = err };
	const struct row *rows = payload;

	if (step->kind != STEP_DECODE && step->kind != STEP_MIXED)
		return err_set(err, -EBADMSG, "step %llu is of kind %u",
			       (unsigned long long)step->id, step->kind);
	if (step->n_rows > STEP_ROWS_MAX || step->payload_bytes > STEP_PAYLOAD_BYTES ||
	    step->n_rows * sizeof(*rows) > step->payload_bytes)
		return err_set(err, -EBADMSG, "step %llu has %u rows in %u bytes",
			       (unsigned long long)step->id, step->n_rows, step->payload_bytes);

	for (rd.i = 0; rd.i < step->n_rows; rd.i++) {
		struct order *o = &ret[rd.i];
		int r;

		*o = (struct order){ .row = rows[rd.i] };
		for (uint32_t j = 0; j < rd.i; j++)
			if (ret[j].row.slot == o->row.slot)
				return refuse(&rd, "slot %u has row %u already", o->row.slot, j);
		r = read_row(&rd, o);
		if (r < 0)
			return r;
	}
	return 0;
}

int order_read_moves(const struct step *step, const void *payload,
		     const struct order_limits *limits, struct err *err)
{
	const struct step_move *moves = payload;

	if (step->n_rows > STEP_MOVES_MAX || step->payload_bytes > STEP_PAYLOAD_BYTES ||
	    step->n_rows * sizeof(*moves) > step->payload_bytes)
		return err_set(err, -EBADMSG, "step %llu has %u moves in %u bytes",
			       (unsigned long long)step->id, step->n_rows, step->payload_bytes);
	for (uint32_t i = 0; i < step->n_rows; i++) {
		const struct step_move *m = &moves[i];

		if (m->to >= limits->n_pages ||
		    (m->from >= limits->n_pages && m->from != STEP_NO_PAGE) || m->n_tokens == 0 ||
		    m->n_tokens > limits->page_tokens)
			return err_set(err, -EBADMSG,
				       "step %llu, move %u: %u tokens of page %u to page %u; there "
				       "are %u pages of %u",
				       (unsigned long long)step->id, i, m->n_tokens, m->from, m->to,
				       limits->n_pages, limits->page_tokens);
	}
	return 0;
}
