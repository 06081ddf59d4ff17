/* model.safetensors.index.json: no file name that is accepted leaves the directory. */
#include <assert.h>
#include <string.h>

#include "daemon/exec/weights/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_(st_index_freep) struct st_index *x = NULL;
	struct err err = { 0 };
	int r;

	r = st_index_parse((const char *)data, size, &x, &err);
	assert(r == 0 || (r < 0 && !x && err.text[0]));
	if (r < 0)
		return 0;
	assert(x->n_tensors > 0 && x->n_files > 0 && x->n_files <= ST_INDEX_FILES_MAX);
	for (uint32_t i = 0; i < x->n_files; i++)
		assert(x->files[i][0] && !strchr(x->files[i], '/') && !strstr(x->files[i], ".."));
	for (uint32_t i = 0; i < x->n_tensors; i++)
		assert(x->in[i] < x->n_files && x->tensors[i]);
	return 0;
}
