/* The first difference, and what stands there on both sides. */
#include "daemon/text/diverge.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/wire/ownership.h"
#include "daemon/text/places.h"

static const char *const names[DIVERGE_N] = {
	[DIVERGE_NONE] = "none",
	[DIVERGE_SYSTEM] = "system-prompt",
	[DIVERGE_REASONING_STRIPPED] = "reasoning-stripped",
	[DIVERGE_REASONING_ADDED] = "reasoning-added",
	[DIVERGE_SPACE] = "white-space",
	[DIVERGE_TOKENS] = "tokens",
	[DIVERGE_TEXT] = "text",
};

const char *diverge_cause_name(enum diverge_cause cause)
{
	return cause < DIVERGE_N ? names[cause] : "?";
}

void divergence_deinit(struct divergence *d)
{
	free(d->before);
	free(d->now);
	memset(d, 0, sizeof(*d));
}

struct side {
	const struct tokenizer *t;
	const uint32_t *ids;
	size_t n;
};

/* The text between two markers that @from is the beginning of. */
static int span_text(const struct side *side, size_t from, char **ret, struct span *ret_text)
{
	size_t to = from, len;
	int r;

	while (to < side->n && !tokenizer_is_added(side->t, side->ids[to]))
		to++;
	r = tokenizer_decode(side->t, side->ids + from, to - from, true, ret, &len);
	if (r == 0)
		*ret_text = (struct span){ *ret, len };
	return r;
}

static struct span strip(struct span s)
{
	while (s.len > 0 && (unsigned char)s.data[s.len - 1] <= ' ')
		s.len--;
	while (s.len > 0 && (unsigned char)s.data[0] <= ' ')
		s.data++, s.len--;
	return s;
}

static bool is_same(struct span a, struct span b)
{
	return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

/* One side opens reasoning, or goes on with it, where the other closes it. */
static bool has_reasoning_where(const struct places *at, uint32_t with, uint32_t without)
{
	if (!at->in_answer || !places_is_end_think(at, without))
		return false;
	return at->kind == PLACE_REASONING || places_is_think(at, with);
}

static int find_cause(const struct places *at, const struct side *before, const struct side *now,
		      size_t begin, size_t index, enum diverge_cause *ret)
{
	_cleanup_(freep) char *text_before = NULL, *text_now = NULL;
	struct span a, b;
	int r;

	*ret = DIVERGE_TEXT;
	if (index == before->n || index == now->n)
		*ret = DIVERGE_NONE;
	else if (has_reasoning_where(at, before->ids[index], now->ids[index]))
		*ret = DIVERGE_REASONING_STRIPPED;
	else if (has_reasoning_where(at, now->ids[index], before->ids[index]))
		*ret = DIVERGE_REASONING_ADDED;
	else if (at->in_system || index <= 2) /* behind [gMASK]<sop> */
		*ret = DIVERGE_SYSTEM;
	if (*ret != DIVERGE_TEXT)
		return 0;
	r = span_text(before, begin, &text_before, &a);
	if (r == 0)
		r = span_text(now, begin, &text_now, &b);
	if (r < 0)
		return r;
	if (is_same(a, b) && a.len > 0)
		*ret = DIVERGE_TOKENS;
	else if (is_same(strip(a), strip(b)) && a.len + b.len > 0)
		*ret = DIVERGE_SPACE;
	return 0;
}

static int show(const struct side *side, size_t index, char **ret, size_t *ret_len)
{
	const size_t n = MIN(side->n - index, (size_t)DIVERGE_SHOWN_IDS);

	return tokenizer_decode(side->t, side->ids + index, n, false, ret, ret_len);
}

int diverge_find(const struct tokenizer *t, const uint32_t *before, size_t n_before,
		 const uint32_t *now, size_t n_now, struct divergence *ret)
{
	const struct side a = { t, before, n_before }, b = { t, now, n_now };
	_cleanup_(divergence_deinit) struct divergence d = { 0 };
	size_t begin = 0; /* of the text that the difference is in */
	struct places at;
	int r;

	places_begin(&at, t);
	for (; d.index < MIN(n_before, n_now) && before[d.index] == now[d.index]; d.index++) {
		places_pass(&at, now[d.index]);
		if (tokenizer_is_added(t, now[d.index]))
			begin = d.index + 1;
	}
	r = find_cause(&at, &a, &b, begin, d.index, &d.cause);
	if (r == 0)
		r = show(&a, d.index, &d.before, &d.before_len);
	if (r == 0)
		r = show(&b, d.index, &d.now, &d.now_len);
	if (r < 0)
		return r;
	*ret = d;
	memset(&d, 0, sizeof(d));
	return 0;
}
