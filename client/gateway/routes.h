/* What is served where: one table. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct exchange;

struct route {
	const char *method, *path; /* {id}: a part of the path that is the exchange's */
	bool has_body;
	bool is_open; /* without a key, too */
	void (*handle)(struct exchange *x);
	const char *summary;
	const char *schema; /* of its body; NULL: none, or that of @api */
	unsigned api;	    /* enum fields_api; 0: none of the tables */
	const char *type;   /* of its answer, if it is not JSON */
};

#define ROUTES_ALLOWED_BYTES 32

/*
 * The route of @method (HEAD is GET) and @path, and what stands for {id}. NULL:
 * there is none; @ret_allowed, of ROUTES_ALLOWED_BYTES, then has the methods that
 * @path is for ("GET, DELETE"), or is empty.
 */
const struct route *routes_find(const char *method, const char *path, char *id, size_t id_size,
				char *ret_allowed);

/* One a line: method and path. */
void routes_print(FILE *f);
/* The OpenAPI description of all of them. */
void routes_print_openapi(FILE *f);

/* health.c */
void route_health(struct exchange *x);
void route_ready(struct exchange *x);
void route_metrics(struct exchange *x);
/* models.c */
void route_models(struct exchange *x);
void route_model(struct exchange *x);
void route_embeddings(struct exchange *x);
/* completions.c: Chat Completions and Completions */
void route_chat(struct exchange *x);
void route_completions(struct exchange *x);
/* tokens.c */
void route_tokenize(struct exchange *x);
void route_detokenize(struct exchange *x);
/* responses.c, and of stored ones responses-stored.c */
void route_response_create(struct exchange *x);
void route_response_get(struct exchange *x);
void route_response_delete(struct exchange *x);
void route_response_cancel(struct exchange *x);
void route_response_items(struct exchange *x);
