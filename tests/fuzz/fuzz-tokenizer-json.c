/* Any bytes as tokenizer.json: refused with a sentence, or a tokenizer that encodes and decodes. */
#include <stdint.h>
#include <stdlib.h>

#include "daemon/text/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct span text = SPAN("Hi  there <|user|>\n\n123 \xc3\xa9\xff aaaaaaaa");
	struct tokenizer *t = NULL;
	struct err err = { 0 };
	struct ids ids = { 0 };
	char *decoded = NULL;
	size_t len;
	int r;

	r = tokenizer_parse((const char *)data, size, &t, &err);
	if (r < 0 && !err.text[0])
		abort();
	if (r < 0)
		return 0;
	if (tokenizer_encode_processed(t, text, &ids) < 0 ||
	    tokenizer_decode(t, ids.at, ids.n, true, &decoded, &len) < 0)
		abort();
	free(decoded);
	ids_deinit(&ids);
	tokenizer_free(t);
	return 0;
}
