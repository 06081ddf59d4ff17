/* The table of frequencies behind every rotation, the same for all backends. */
#include "kernels/attention.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

int rope_table_init(struct rope_table *t, double theta, uint32_t rotary, uint32_t positions)
{
	if (rotary < 2 || rotary % 2 != 0 || !isfinite(theta) || theta <= 0 || positions == 0)
		return -EINVAL;

	t->inv_freq = malloc(rotary / 2 * sizeof(*t->inv_freq));
	if (!t->inv_freq)
		return -ENOMEM;
	/* power and reciprocal are each rounded to F32, as they were when such models were trained */
	for (uint32_t i = 0; i < rotary / 2; i++)
		t->inv_freq[i] = 1.0f / powf((float)theta, (float)(2 * i) / (float)rotary);
	t->rotary = rotary;
	t->positions = positions;
	return 0;
}

void rope_table_deinit(struct rope_table *t)
{
	if (!t)
		return;
	free(t->inv_freq);
	*t = (struct rope_table){ 0 };
}
