/* The stream, whose operations are complete when they return, and what is plain copying here. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/cpu.h"

struct replay {
	int (*body)(struct stream *st, void *userdata);
	void *userdata;
};

int st_open(struct dev *dev, size_t scratch_bytes, struct stream **ret)
{
	struct stream *st = calloc(1, sizeof(*st));

	if (!st)
		return -ENOMEM;
	st->dev = dev;
	st->scratch_bytes = scratch_bytes;
	st->scratch = mmap(NULL, scratch_bytes ? scratch_bytes : 1, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (st->scratch == MAP_FAILED) {
		free(st);
		return -ENOMEM;
	}
	*ret = st;
	return 0;
}

struct stream *st_close(struct stream *st)
{
	if (st)
		munmap(st->scratch, st->scratch_bytes ? st->scratch_bytes : 1);
	free(st);
	return NULL;
}

struct dev *st_dev(struct stream *st)
{
	return st->dev;
}

int st_batch_room(struct stream *st, uint32_t n_tokens, uint32_t n_seqs, uint32_t n_pages)
{
	(void)st, (void)n_tokens, (void)n_seqs, (void)n_pages;
	return 0;
}

int st_batch(struct stream *st, const uint32_t *ids, uint32_t n_tokens, const struct seq *seqs,
	     uint32_t n_seqs, const uint32_t *rows, uint32_t n_rows)
{
	(void)st, (void)ids, (void)n_tokens, (void)seqs, (void)n_seqs, (void)rows, (void)n_rows;
	return 0;
}

int st_read(struct stream *st, void *to, const void *from, size_t bytes)
{
	(void)st;
	memcpy(to, from, bytes);
	return 0;
}

int st_copy2d(struct stream *st, void *to, size_t to_pitch, const void *from, size_t from_pitch,
	      size_t width, size_t rows)
{
	(void)st;
	for (size_t i = 0; i < rows; i++)
		memcpy((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
	return 0;
}

int st_wait(struct stream *st)
{
	(void)st;
	return 0;
}

int st_record(struct stream *st, int (*body)(struct stream *st, void *userdata), void *userdata,
	      struct replay **ret)
{
	struct replay *replay = malloc(sizeof(*replay));

	(void)st;
	if (!replay)
		return -ENOMEM;
	*replay = (struct replay){ body, userdata };
	*ret = replay;
	return 0;
}

int st_replay(struct stream *st, const struct replay *replay)
{
	return replay->body(st, replay->userdata);
}

struct replay *replay_free(struct replay *replay)
{
	free(replay);
	return NULL;
}

int op_gather(struct stream *st, const struct tensor *y, const struct tensor *x,
	      const uint32_t *rows)
{
	const size_t dim = x->shape[2];

	(void)st;
	if (x->type != DT_F32 || y->type != DT_F32 || x->shape[0] != 1 || y->shape[0] != 1 ||
	    y->shape[2] != dim)
		return -EINVAL;
	for (uint32_t i = 0; i < y->shape[1]; i++)
		if (rows[i] >= x->shape[1])
			return -EINVAL;
	for (uint32_t i = 0; i < y->shape[1]; i++)
		memcpy((float *)y->data + i * dim, (const float *)x->data + rows[i] * dim,
		       dim * sizeof(float));
	return 0;
}

int op_clear(struct stream *st, const struct tensor *y)
{
	(void)st;
	if (y->type != DT_F32)
		return -EINVAL;
	if (tensor_elements(y) > 0)
		memset(y->data, 0, tensor_elements(y) * sizeof(float));
	return 0;
}
