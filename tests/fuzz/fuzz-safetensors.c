/*
 * safetensors headers. The first 8 bytes of an input are the bytes of data
 * behind the header, so that the fuzzer can make files too short and too long.
 */
#include <assert.h>
#include <string.h>

#include "daemon/exec/weights/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Accepted: the tensors cover the data exactly and are found by their names. */
static void check_file(const struct st_file *f, uint64_t header_bytes, uint64_t data_bytes)
{
	uint64_t at = 8 + header_bytes;
	char text[128];

	for (uint32_t i = 0; i < st_file_count(f); i++) {
		const struct st_tensor *t = st_file_at(f, i);

		assert(t->offset == at && t->bytes <= data_bytes &&
		       t->rank <= SAFETENSORS_RANK_MAX);
		assert(st_file_find(f, t->name) == t);
		assert(st_tensor_describe(t, text, sizeof(text)) == text);
		at += t->bytes;
	}
	assert(at == 8 + header_bytes + data_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_(st_file_closep) struct st_file *f = NULL;
	struct err err = { 0 };
	uint64_t data_bytes;
	int r;

	if (size < sizeof(data_bytes))
		return 0;
	memcpy(&data_bytes, data, sizeof(data_bytes));
	r = st_header_parse((const char *)data + 8, size - 8, data_bytes, &f, &err);
	assert(r == 0 || (r < 0 && !f && err.text[0]));
	if (r == 0)
		check_file(f, size - 8, data_bytes);
	return 0;
}
