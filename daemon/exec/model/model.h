/*
 * The forward pass, written once over the operations of kernels/.
 */
#pragma once

#include "client/wire/err.h"
#include "daemon/exec/weights/weights.h"
#include "kernels/attention.h"
#include "kernels/comm.h"

struct model;

#define MODEL_SPOKEN_ROWS 128 /* whose logits are in the device's memory at once */

/*
 * @max_tokens	rows of one batch;  @max_context	positions of one slot
 * @w, @dev	outlive the model;  @kv	copied; its memory outlives the model
 *
 * Returns 0, -EINVAL, -ENOMEM.
 */
int model_new(struct dev *dev, const struct weights *w, const struct kv_cache *kv,
	      uint32_t max_tokens, uint32_t max_context, struct model **ret, struct err *err);
/*
 * The model of one of several ranks: @w is its share, @comm its handle, and @kv
 * has its heads alone (kv_heads_of()). Each call below is then made on all
 * ranks, with the same arguments but for the model, each on its own thread; a
 * failure of one is -EIO on the others.
 */
int model_new_rank(struct dev *dev, const struct weights *w, struct comm *comm,
		   const struct kv_cache *kv, uint32_t max_tokens, uint32_t max_context,
		   struct model **ret, struct err *err);
struct model *model_free(struct model *m);

/*
 * Has the device choose how it computes products of many tokens, on the model's own
 * matrices and buffers, see op_linears_choose(). Before anything is recorded or
 * computed. 0, -ENOMEM or -EIO.
 */
int model_choose(struct model *m, const char *path, char *ret_text, size_t text_bytes);

/*
 * Records steps of 1 … @n_rows rows of one token each, all of which are wanted,
 * where the device records: so that none is recorded while they are waited for,
 * and the memory of all is taken. 0, -ENOMEM or -EIO.
 */
int model_prepare(struct model *m, uint32_t n_rows);

/*
 * Computes @n_tokens rows: their KV goes to the pages of their sequences, and
 * for each of the @n_out rows listed in @out (rising indices into the batch)
 * the logits to logits[i * vocab …], F32, all vocab rows, unmasked. With
 * @logits NULL they can be had from model_logits() afterwards.
 *
 * ids	each below vocab (-EINVAL, nothing written)
 * seqs	cover the tokens without gap, each with pages for all its positions
 *
 * On a GPU the rows are only queued if @logits is NULL, and a step of one token
 * a row is recorded when that number of rows comes for the first time. On CPUs it
 * allocates nothing. Returns 0 or -EINVAL, or what the device returns: -EIO, -ENOMEM.
 */
int model_forward(struct model *m, const uint32_t *ids, uint32_t n_tokens, const struct seq *seqs,
		  uint32_t n_seqs, const uint32_t *out, uint32_t n_out, float *logits);

/*
 * Logits of the rows out[first] … out[first + n - 1] of the last
 * model_forward(): for scores, whose logits together would fill the memory.
 * Waits for the device. Of several ranks each writes the logits of its part of
 * the vocabulary: there are all when all have returned. Returns 0, -EINVAL if the
 * last forward pass listed fewer rows, or -EIO.
 */
int model_logits(struct model *m, uint32_t first, uint32_t n, float *logits);

/*
 * Where the device has the logits of all rows that the last model_forward()
 * listed, F32 [1, n_out, vocab], at most MODEL_SPOKEN_ROWS of them. False: they
 * are nowhere until model_logits() is called, as on CPUs, or with several ranks.
 */
bool model_spoken(const struct model *m, struct tensor *ret);

/* The stream that it queues on, for copies that are to keep its order. */
struct stream *model_stream(struct model *m);

/*
 * What passes by, for tests: called with F32 rows if set. Of several ranks each
 * has the whole of HIDDEN, FINAL_NORM and ROUTER, and the heads of its own else.
 */
enum model_tap { TAP_HIDDEN, TAP_Q, TAP_K, TAP_V, TAP_ATTENTION, TAP_FINAL_NORM, TAP_ROUTER };
struct model_tap_data {
	enum model_tap tap;
	uint32_t layer;			/* HIDDEN: 0 is the embedding, i the stream after layer i - 1 */
	uint32_t n_tokens, width;
	const float *values;		/* [n_tokens][width]; ROUTER: the weights */
	const uint32_t *experts;	/* ROUTER: [n_tokens][width] */
};
void model_set_tap(struct model *m, void (*tap)(const struct model_tap_data *data, void *userdata),
		   void *userdata);

static inline void model_freep(struct model **m)
{
	*m = model_free(*m);
}
