/* Errors of steamd and of requests, as HTTP has them. */
#include "client/gateway/refusal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "client/wire/codes.h"
#include "client/wire/utf8.h"

/* A code, its status, and whether it is worth trying again although steamd does not say so. */
static const struct {
	const char *code;
	unsigned status;
} statuses[] = {
	{ CODE_BAD_REQUEST, 400 },	{ CODE_TOO_LONG, 400 },	   { CODE_NO_CHAT, 400 },
	{ CODE_NO_SUCH, 404 },		{ CODE_DENIED, 403 },	   { CODE_BUSY, 429 },
	{ CODE_DEADLINE, 408 },		{ CODE_UNAVAILABLE, 503 }, { CODE_MODEL_REFUSED, 503 },
	{ CODE_MODEL_CHANGED, 503 },	{ CODE_EXEC_FAULT, 503 },  { CODE_NO_MEMORY, 503 },
	{ STEAMD_CODE_NO_DAEMON, 503 }, { STEAMD_CODE_LOST, 503 }, { STEAMD_CODE_LOCAL, 503 },
	{ STEAMD_CODE_CANCELLED, 409 },
};

/* Foreign strings may be no UTF-8, or were cut in the middle of a character. */
static void make_printable(char *text)
{
	for (char *p = text; *p;) {
		const size_t n = utf8_length(p, strlen(p));

		if (n == 0 || (unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
		p += MAX(n, 1u);
	}
}

int refusal_set(struct refusal *ret, unsigned status, const char *code, const char *param,
		const char *format, ...)
{
	va_list ap;

	memset(ret, 0, sizeof(*ret));
	ret->status = status;
	snprintf(ret->code, sizeof(ret->code), "%s", code);
	snprintf(ret->param, sizeof(ret->param), "%s", param ? param : "");
	make_printable(ret->param);
	va_start(ap, format);
	vsnprintf(ret->text, sizeof(ret->text), format, ap);
	va_end(ap);
	make_printable(ret->text);
	ret->retryable = status == 429 || status == 503;
	return -EINVAL;
}

/* What steamd calls by other names than the APIs do, with the message that it is of. */
static const struct {
	const char *ours, *theirs;
} names[] = {
	{ "generate.bias_ids", "logit_bias" },
	{ "generate.bias_values", "logit_bias" },
	{ "generate.ids", "prompt" },
	{ "bias_ids", "logit_bias" },
	{ "bias_values", "logit_bias" },
	{ "detokenize.ids", "tokens" },
	{ "ids", "prompt" },
};

/* Puts @with in the place of the first @n bytes. */
static void replace(char *text, size_t size, size_t n, const char *with)
{
	char rest[1024];

	snprintf(rest, sizeof(rest), "%s", text + n);
	snprintf(text, size, "%s%s", with, rest);
}

/* "generate.top_p is 3; …" names our field top_p; "messages[2].role is …" messages[2].role. */
static void find_param(struct refusal *no)
{
	size_t n;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		n = strlen(names[i].ours);
		if (strncmp(no->text, names[i].ours, n) != 0 || no->text[n] != '[')
			continue;
		snprintf(no->param, sizeof(no->param), "%s", names[i].theirs);
		replace(no->text, sizeof(no->text), n, names[i].theirs);
		return;
	}
	if (strcmp(no->text, "the prompt is empty") == 0)
		snprintf(no->param, sizeof(no->param), "prompt");
	n = strlen("generate.");
	if (strncmp(no->text, "generate.", n) == 0)
		replace(no->text, sizeof(no->text), n, "");
	else if (strncmp(no->text, "messages[", 9) != 0 && strncmp(no->text, "tools ", 6) != 0)
		return;
	n = strcspn(no->text, " ");
	if (n < sizeof(no->param)) {
		memcpy(no->param, no->text, n);
		no->param[n] = '\0';
	}
}

void refusal_of(struct refusal *ret, const struct steamd_error *err)
{
	unsigned status = 500;

	for (size_t i = 0; i < ARRAY_SIZE(statuses); i++)
		if (strcmp(statuses[i].code, err->code) == 0)
			status = statuses[i].status;
	refusal_set(ret, status, err->code, NULL, "%s", err->text);
	if (status != 503 && status != 429)
		ret->retryable = err->retryable;
	ret->retry_after_ms = err->retry_after_ms;
	if (status == 400)
		find_param(ret);
	if (status == 404 && strncmp(ret->text, "no model '", 10) == 0)
		snprintf(ret->param, sizeof(ret->param), "model");
}

static const char *type_of(unsigned status)
{
	switch (status) {
	case 401:
		return "authentication_error";
	case 403:
		return "permission_error";
	case 404:
		return "not_found_error";
	case 429:
		return "rate_limit_error";
	case 501:
	case 505: /* of HTTP that is not spoken here: the client's doing */
		return "invalid_request_error";
	default:
		return status >= 500 ? "server_error" : "invalid_request_error";
	}
}

void refusal_write(const struct refusal *no, struct jsontext *to)
{
	jsontext_put(to, "{\"error\":{\"message\":");
	jsontext_quote_string(to, no->text);
	jsontext_format(to, ",\"type\":\"%s\",\"param\":", type_of(no->status));
	if (no->param[0])
		jsontext_quote_string(to, no->param);
	else
		jsontext_put(to, "null");
	jsontext_put(to, ",\"code\":");
	jsontext_quote_string(to, no->code);
	jsontext_put(to, "}}");
}

unsigned refusal_retry_s(const struct refusal *no)
{
	if (!no->retryable)
		return 0;
	return no->retry_after_ms ? (no->retry_after_ms + 999) / 1000 : 1;
}
