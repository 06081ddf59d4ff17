/* Philox 4x32-10, and the uniform number that a draw takes from it. */
#include "daemon/exec/sample/philox.h"

#include "daemon/exec/sample/sampler.h"

#define MULTIPLIER_0 0xD2511F53u
#define MULTIPLIER_1 0xCD9E8D57u
#define WEYL_0 0x9E3779B9u
#define WEYL_1 0xBB67AE85u

void philox_4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
	uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
	uint32_t k0 = key[0], k1 = key[1];

	for (int round = 0; round < 10; round++) {
		const uint64_t product_0 = (uint64_t)MULTIPLIER_0 * c0;
		const uint64_t product_1 = (uint64_t)MULTIPLIER_1 * c2;

		c0 = (uint32_t)(product_1 >> 32) ^ c1 ^ k0;
		c1 = (uint32_t)product_1;
		c2 = (uint32_t)(product_0 >> 32) ^ c3 ^ k1;
		c3 = (uint32_t)product_0;
		k0 += WEYL_0;
		k1 += WEYL_1;
	}

	out[0] = c0;
	out[1] = c1;
	out[2] = c2;
	out[3] = c3;
}

double sampler_uniform(uint64_t seed, uint64_t position)
{
	const uint32_t counter[4] = { (uint32_t)position, (uint32_t)(position >> 32), 0, 0 };
	const uint32_t key[2] = { (uint32_t)seed, (uint32_t)(seed >> 32) };
	uint32_t out[4];

	philox_4x32_10(counter, key, out);
	return (double)(((uint64_t)out[1] << 32 | out[0]) >> 11) * 0x1p-53;
}
