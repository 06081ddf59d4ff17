/* The scratch of the largest operation; each family reckons its own. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/matrix.h"

size_t op_scratch(const struct dev *dev, const struct op_limits *limits)
{
	const size_t matrices = matrix_scratch(dev, limits);
	const size_t attention = attention_scratch(dev, limits);

	return matrices > attention ? matrices : attention;
}
