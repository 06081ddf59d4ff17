/* The model under measurement, loaded the real way, and steps of it. */
#pragma once

#include "client/wire/err.h"
#include "daemon/exec/weights/weights.h"

#define SUBJECT_CHUNK_TOKENS 512 /* as the daemon cuts a prompt */
#define SUBJECT_SEQS_MAX 16
#define SUBJECT_CONTEXT_MAX 8192

struct subject;

/* Loads @c with all threads of @dev; both outlive the subject. Returns 0 or an error of loading. */
int subject_new(struct dev *dev, const struct checkpoint *c, struct subject **ret, struct err *err);
struct subject *subject_free(struct subject *s);

/* Seconds that weights_load() took. */
double subject_load_s(const struct subject *s);
/* Positions of a sequence: SUBJECT_CONTEXT_MAX, or less if the model has less. */
uint32_t subject_context(const struct subject *s);

/* What a step did. */
struct subject_step {
	double seconds;
	double bytes; /* that it had to read: weights outside of experts, those chosen, keys and values */
	double flops;
};

/*
 * One more token each for @n_seqs sequences, random ones, all at position @at;
 * the sequences' past is random too. 0 or a negative errno.
 */
int subject_decode(struct subject *s, uint32_t n_seqs, uint32_t at, struct subject_step *ret);
/* @n_tokens random tokens of a prompt from position @at on, logits of the last if it @is_last. */
int subject_prefill(struct subject *s, uint32_t at, uint32_t n_tokens, bool is_last,
		    struct subject_step *ret);

static inline void subject_freep(struct subject **s)
{
	*s = subject_free(*s);
}
