/* xxh3-128 by every variant against the library's own, around its block sizes. */
#include "daemon/base/digest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <xxhash.h>

static void is_that_of_the_library(digest_fn fn)
{
	static const size_t sizes[] = { 0,   1,	  3,   4,    8,	   9,	 16,   17,    128,
					129, 240, 241, 1023, 1024, 1025, 4096, 65536, 100003 };
	uint8_t *data = malloc(100003 + 7);

	assert_non_null(data);
	for (size_t i = 0; i < 100003 + 7; i++)
		data[i] = (uint8_t)(i * 2654435761u >> 11);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		for (uint64_t seed = 0; seed < 3; seed++) {
			const XXH128_hash_t want = XXH3_128bits_withSeed(data + 7 * seed / 2,
									 sizes[i], seed << 40);
			const struct digest got = fn(data + 7 * seed / 2, sizes[i], seed << 40);

			assert_int_equal(got.low, want.low64);
			assert_int_equal(got.high, want.high64);
		}
	}
	free(data);
}

static void every_variant_says_what_the_library_says(void **state)
{
	(void)state;
	is_that_of_the_library(digest_plain());
	is_that_of_the_library(digest_of);
	if (digest_avx2())
		is_that_of_the_library(digest_avx2());
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_variant_says_what_the_library_says),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
