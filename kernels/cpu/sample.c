/* The host samples by itself: nothing is queued for it. */
#include <errno.h>

#include "kernels/sample.h"

bool op_samples(const struct dev *dev, uint32_t vocab)
{
	(void)dev, (void)vocab;
	return false;
}

int op_sample(struct stream *st, uint32_t *ret_ids, const struct tensor *logits,
	      const struct sample_row *rows)
{
	(void)st, (void)ret_ids, (void)logits, (void)rows;
	return -ENOTSUP;
}

int op_count(struct stream *st, struct sample_count *counts, uint32_t vocab, const uint32_t *ids,
	     uint32_t n, bool output)
{
	(void)st, (void)counts, (void)vocab, (void)ids, (void)n, (void)output;
	return -ENOTSUP;
}
