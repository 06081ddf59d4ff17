/*
 * config.json and generation_config.json of a glm4_moe model, with the
 * fallbacks that real files need. Parsing allocates nothing that outlives it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/wire/err.h"

#define CONFIG_TEXT_MAX (16u << 20)
#define CONFIG_EOS_MAX 16
#define CONFIG_WARNINGS_MAX 8

struct config {
	uint32_t dim, ffn_dim, moe_ffn_dim, shared_experts; /* shared MLP's width: moe_ffn_dim * shared_experts */
	uint32_t layers, dense_layers, mtp_layers;	    /* mtp_layers: as config says; tensors may be missing */
	uint32_t heads, kv_heads;
	uint32_t head_dim, rotary; /* 0: not given, see config_set_head_dim() */
	double partial_rotary;	   /* rotary = head_dim * partial_rotary */
	uint32_t experts, top_k, groups, top_groups;
	bool normalise_top_k, qk_norm, attention_bias, tied_head;
	double routed_scale, norm_eps, rope_theta;
	uint32_t vocab, max_positions;
	uint32_t eos[CONFIG_EOS_MAX], n_eos;
	bool quantised;			    /* a quantization_config is there */
	uint32_t group;			    /* columns that share a scale; 0: one a row */
	char warnings[CONFIG_WARNINGS_MAX][160]; /* such as a missing rope_theta */
	uint32_t n_warnings;
};

/*
 * Reads the text of a config.json. Integral floats are taken for integers;
 * rope_parameters.X before a top-level X.
 *
 * Returns 0; -EBADMSG if it is no JSON object or a key is missing, of the
 * wrong type or out of range; -ENOTSUP for another architecture, activation,
 * quantisation or rope scaling. The sentence names key, found and wanted.
 */
int config_parse(const char *text, size_t len, struct config *ret, struct err *err);

/*
 * Sets head_dim and with it rotary: for a file that leaves head_dim out, which
 * then follows from the rows of the query projection. Returns 0; -ENOTSUP if
 * it is no multiple of 16 (matrices are packed in strips of 16 rows); -EBADMSG
 * if it is out of range or rotary comes out odd or zero.
 */
int config_set_head_dim(struct config *c, uint64_t head_dim, struct err *err);

/* Adds a warning, cut to fit; beyond CONFIG_WARNINGS_MAX it is dropped. */
void config_warn(struct config *c, const char *format, ...) _printf_(2, 3);

/* KV bytes of one token when an element takes @element_bytes. */
uint64_t config_kv_bytes(const struct config *c, uint32_t element_bytes);

/* Sampler defaults that generation_config.json sets; NAN and UINT32_MAX where it does not. */
struct generation_config {
	double temperature, top_p, min_p, repetition_penalty;
	uint32_t top_k;
	uint32_t eos[CONFIG_EOS_MAX], n_eos;
	bool greedy; /* do_sample is false */
};
/* Returns 0, or -EBADMSG with the key, what was found and what was wanted. */
int generation_config_parse(const char *text, size_t len, struct generation_config *ret,
			    struct err *err);
