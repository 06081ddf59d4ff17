/*
 * Why a request is refused, in OpenAI's form: {"error":{"message":…,"type":…,
 * "param":…,"code":…}}. The code is steamd's own stable one.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/gateway/jsontext.h"
#include "client/steamd.h"

struct refusal {
	unsigned status; /* of HTTP; 0: there is none */
	char code[64];
	char param[128]; /* the field; "": none */
	char text[1024];
	bool retryable;
	uint32_t retry_after_ms;
};

/* Codes that the gateway adds to those of steamd. */
#define REFUSAL_NOT_FOUND "no-such"
#define REFUSAL_BAD "bad-request"
#define REFUSAL_DENIED "denied"
#define REFUSAL_BUSY "busy"
#define REFUSAL_NOT_YET "not-yet"
#define REFUSAL_KEY "no-key"

/* Fills @ret, and returns a negative errno so that it fits in a return. */
int refusal_set(struct refusal *ret, unsigned status, const char *code, const char *param,
		const char *format, ...) _printf_(5, 6);

/* What is wrong with field @param: 400. */
#define refusal_of_field(ret, param, ...) refusal_set(ret, 400, REFUSAL_BAD, param, __VA_ARGS__)

/* What libsteamd or steamd said. */
void refusal_of(struct refusal *ret, const struct steamd_error *err);

/* Appends the object. */
void refusal_write(const struct refusal *no, struct jsontext *to);

/* Seconds for Retry-After; 0: it is no use. */
unsigned refusal_retry_s(const struct refusal *no);
