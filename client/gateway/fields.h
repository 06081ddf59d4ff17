/*
 * The fields of a request's body, of all APIs in one table: what each wants to
 * be, where it goes, and which are accepted without having a meaning here.
 */
#pragma once

#include <jansson.h>
#include <stdio.h>

#include "client/gateway/refusal.h"
#include "client/steamd.h"

#define FIELDS_CHOICES_MAX 8 /* n */
#define FIELDS_BIAS_MAX 1024
#define FIELDS_STOPS_MAX 16
#define FIELDS_VALUES_BYTES (32u << 20) /* most that a body's values may take, beside its text */

enum fields_api { FIELDS_CHAT = 1, FIELDS_TEXT = 2, FIELDS_RESPONSES = 4, FIELDS_ALL = 7 };

/* What was asked for. Strings and values belong to @body. */
struct fields {
	json_t *body;
	size_t held_bytes; /* at most that much is held for it, the prompt that is made of it included */
	struct steamd_generate g; /* without the prompt */
	const char *stops[FIELDS_STOPS_MAX];
	uint32_t *bias_ids; /* owned; with bias_values in the same allocation */
	float *bias_values;
	uint32_t n;
	uint32_t best_of; /* 0: not given */
	bool stream, include_usage, logprobs, echo, one_call, no_tools, background;
	int think;			/* -1: not said */
	bool store;			/* responses: keep it; not said: true */
	const json_t *messages, *tools; /* tools: NULL or an array */
	const json_t *prompt, *input, *metadata, *tool_choice;
	const char *instructions, *previous, *effort; /* responses: effort as it was given */
};

/*
 * Reads the @n bytes at @text as the body of a request of @api. On failure @no
 * says which field is wrong: 400. @ignore_unknown: fields that no row has are
 * passed over.
 */
int fields_read(struct fields *f, enum fields_api api, const char *text, size_t n,
		bool ignore_unknown, struct refusal *no);
void fields_deinit(struct fields *f);
/* What only made the prompt is let go: messages, tools, prompt. */
void fields_drop_prompt(struct fields *f);

/*
 * The body alone, which must be an object. *@ret: to be released. Before it is
 * parsed, a linear pass bounds what it becomes: three bytes of text may be a
 * value of more than two hundred.
 */
int fields_parse(const char *text, size_t n, json_t **ret, struct refusal *no);

/* "a string", "null", …: what a value is, for sentences. */
const char *fields_type(const json_t *value);

void fields_print_ignored(FILE *f);
void fields_print_limited(FILE *f);
/* The JSON schema of an API's body. */
void fields_write_schema(enum fields_api api, struct jsontext *to);
