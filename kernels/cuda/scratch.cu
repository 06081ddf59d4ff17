/* The scratch of the largest operation; each family reckons its own. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/matrix.h"

size_t op_scratch(const struct dev *dev, const struct op_limits *limits)
{
	const size_t needs[] = { matrix_scratch(dev, limits), attention_scratch(dev, limits),
				 sample_scratch(limits) };
	size_t most = 0;

	for (size_t need : needs)
		most = need > most ? need : most;
	return most;
}
