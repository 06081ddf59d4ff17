/* What comes first on a connection, as one piece and as all its beginnings. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/gateway/head.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct jsontext answer = { 0 };
	struct refusal no;
	int before = 0;

	for (size_t n = 0; n <= size && n <= HEAD_BYTES_MAX + 1; n++) {
		/* of its own size: what lies behind it is not there */
		char *bytes = malloc(n + 1);
		int r;

		assert(bytes);
		memcpy(bytes, data, n);
		bytes = realloc(bytes, n ? n : 1);
		r = head_check(bytes, n, &no);
		free(bytes);
		/* what was decided stays so, and it is decided in the end */
		assert(r == 0 || r == 1 || r == -EINVAL);
		assert(before == 0 || r == before);
		assert(r != 0 || n < HEAD_BYTES_MAX);
		before = r;
	}
	if (before == -EINVAL) {
		assert(no.status == 400 || no.status == 414 || no.status == 431 ||
		       no.status == 501 || no.status == 505);
		head_write_refusal(&no, &answer);
		assert(!answer.failed && strncmp(answer.at, "HTTP/1.1 ", 9) == 0);
		jsontext_deinit(&answer);
	}
	return 0;
}
