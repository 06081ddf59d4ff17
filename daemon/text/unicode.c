/* One byte of classes per code point, spread out from the ranges once per process. */
#include <pthread.h>
#include <string.h>

#include "daemon/text/unicode.h"

static uint8_t classes[UNICODE_END];

static void spread(void)
{
	for (uint32_t i = 0; i < unicode_n_ranges; i++) {
		const struct unicode_range *r = &unicode_ranges[i];

		memset(classes + r->first, r->classes, r->last - r->first + 1);
	}
}

const uint8_t *unicode_classes(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, spread);
	return classes;
}
