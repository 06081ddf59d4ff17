/* Takes activations into the forms of kernels/cpu/layout.h. */
#include <errno.h>
#include <string.h>

#include "kernels/cpu/acts.h"

/* Elements below which waking the other threads costs more than their help brings. */
#define ALONE_MAX 32768

struct taking {
	struct acts *acts;
	const struct linear_kernels *kernels;
	const float *x;
};

static void take_row(const struct taking *t, enum act form, uint32_t token)
{
	const struct acts *a = t->acts;
	const float *x = t->x + (size_t)token * a->cols;
	uint8_t *row = a->rows[form] + token * a->row_bytes[form];
	const uint32_t whole = a->cols / GROUP_COLS, rest = a->cols % GROUP_COLS;
	float last[GROUP_COLS] = { 0 };

	t->kernels->act[form](row, 0, groups_of(a->cols), x, whole);
	if (!rest)
		return;
	memcpy(last, x + (size_t)whole * GROUP_COLS, rest * sizeof(float));
	t->kernels->act[form](row, whole, groups_of(a->cols), last, 1);
}

static void take_rows(void *userdata, uint32_t thread, uint32_t n_threads)
{
	const struct taking *t = userdata;
	uint32_t from, to;

	share_of(t->acts->tokens, thread, n_threads, &from, &to);
	for (int form = 0; form < ACT_N; form++)
		for (uint32_t token = from; t->acts->rows[form] && token < to; token++)
			take_row(t, (enum act)form, token);
}

int acts_take(struct stream *st, struct acts *ret, size_t *scratch_at, const float *x,
	      uint32_t tokens, uint32_t cols, uint32_t forms)
{
	struct taking taking = { .acts = ret, .kernels = st->dev->linear, .x = x };

	*ret = (struct acts){ .tokens = tokens, .cols = cols };
	for (int form = 0; form < ACT_N; form++) {
		if (!(forms & 1u << form))
			continue;
		ret->row_bytes[form] = act_bytes((enum act)form, cols);
		ret->rows[form] = scratch_take(st, scratch_at, tokens * ret->row_bytes[form]);
		ret->at[form] = scratch_take(st, scratch_at, tokens * sizeof(*ret->at[form]));
		if (!ret->rows[form] || !ret->at[form])
			return -EINVAL;
		for (uint32_t t = 0; t < tokens; t++)
			ret->at[form][t] = ret->rows[form] + t * ret->row_bytes[form];
	}
	if ((size_t)tokens * cols <= ALONE_MAX)
		take_rows(&taking, 0, 1);
	else
		pool_run(st->dev, take_rows, &taking);
	return 0;
}

uint32_t acts_form(const struct dev *dev, enum weight_kind kind, uint32_t n_tokens)
{
	return 1u << product_of(dev->linear, kind, n_tokens)->act;
}
