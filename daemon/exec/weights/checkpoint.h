/*
 * A checkpoint directory: config, generation config, index and the headers of
 * all shards, and for every tensor of the model where it is and of what type.
 * Opening it checks everything that can be checked without reading weights.
 * Both the broker (to refuse early, to inspect) and the executor (to load) use it.
 */
#pragma once

#include <stdio.h>

#include "daemon/exec/weights/config.h"
#include "daemon/exec/weights/safetensors.h"

/* Where a tensor's bytes are. */
struct ck_tensor {
	const struct st_file *file; /* NULL: there is no such tensor */
	const struct st_tensor *t;
};

/* The matrix of a Linear: plain, or packed int4 with scales. Shapes are checked. */
struct ck_linear {
	uint32_t rows, cols;
	struct ck_tensor plain;		/* .weight, or */
	struct ck_tensor packed, scales; /* .weight_packed and .weight_scale */
	struct ck_tensor shape;		/* .weight_shape, whose content weights_load() checks */
	uint32_t group;			/* packed: columns that share a scale */
	struct ck_tensor bias;		/* optional; of q, k, v and o only */
};

struct ck_layer {
	struct ck_tensor input_norm, post_norm, q_norm, k_norm;
	struct ck_linear q, k, v, o;
	bool dense;
	struct ck_linear gate, up, down;		/* dense MLP */
	struct ck_tensor router, router_bias;		/* [experts, dim], [experts] */
	struct ck_linear *expert_gate, *expert_up, *expert_down; /* [experts] */
	struct ck_linear shared_gate, shared_up, shared_down;
};

struct checkpoint {
	char *dir;
	char *config_text;	 /* config.json as it was read */
	size_t config_len;
	struct config config;
	struct generation_config generation;
	struct st_file **files;
	uint32_t n_files;
	struct ck_tensor embed, norm;
	struct ck_linear head; /* tied: plain is embed */
	struct ck_layer *layers;
	uint64_t bytes;		 /* of the tensors in use */
	uint64_t parameters, active_parameters; /* of the main model; active: per token */
	uint32_t n_tensors, n_ignored_mtp;
	uint32_t n_unknown;	 /* tensors nobody asked for; a warning each in --inspect */
};

/*
 * Opens @dir. Returns 0; -EBADMSG or -ENOTSUP with one sentence: file, tensor,
 * found, wanted; -ENOENT; or errno of reading.
 */
int checkpoint_open(const char *dir, struct checkpoint **ret, struct err *err);
struct checkpoint *checkpoint_free(struct checkpoint *c);

/*
 * The same, but goes on after a problem: calls @on_problem with the sentence
 * of each, at most CHECKPOINT_PROBLEMS_MAX times. Returns the first one.
 */
#define CHECKPOINT_PROBLEMS_MAX 50
typedef void (*checkpoint_problem_fn)(const char *sentence, void *userdata);
int checkpoint_examine(const char *dir, checkpoint_problem_fn on_problem, void *userdata,
		       struct checkpoint **ret, struct err *err);

/* The whole of @dir/@name, at most @bytes_max; the text ends in a NUL that is not counted. */
int checkpoint_read_text(const char *dir, const char *name, size_t bytes_max, char **ret,
			 size_t *ret_len, struct err *err);

/*
 * Prints what the model in @dir is: architecture, parameters, bytes by part
 * and type, KV bytes per token, the context that fits in @memory_bytes (0: a
 * few usual sizes), sampler defaults, and every problem found, not just the
 * first. Returns 0, or the error of checkpoint_open() after printing.
 */
int checkpoint_inspect(const char *dir, uint64_t memory_bytes, FILE *f, struct err *err);

static inline void checkpoint_freep(struct checkpoint **c)
{
	*c = checkpoint_free(*c);
}
