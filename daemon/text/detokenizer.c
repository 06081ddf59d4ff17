/* Ids back to text: bytes are joined across ids first, characters are formed afterwards. */
#include <errno.h>
#include <string.h>

#include "daemon/text/codepoint.h"
#include "daemon/text/tokenizer-parts.h"

/* Takes one byte; writes what has become certain. */
static size_t take(struct detokenizer *d, char byte, char *out)
{
	size_t n_out = 0;
	uint32_t code;
	int n;

	d->held[d->n_held++] = byte;
	while (d->n_held) {
		n = codepoint_decode(d->held, d->n_held, &code);
		if (n == 0)
			break;
		if (n > 0) {
			memcpy(out + n_out, d->held, n);
			n_out += n;
		} else {
			memcpy(out + n_out, CODEPOINT_REPLACEMENT, CODEPOINT_REPLACEMENT_LEN);
			n_out += CODEPOINT_REPLACEMENT_LEN;
			n = -n;
		}
		d->n_held -= n;
		memmove(d->held, d->held + n, d->n_held);
	}
	return n_out;
}

size_t detokenizer_push(struct detokenizer *d, const struct tokenizer *t, uint32_t id, char *out)
{
	const struct span bytes = tokenizer_bytes(t, id);
	size_t n = 0;

	if (d->skip_special && tokenizer_is_special(t, id))
		return 0;
	for (size_t i = 0; i < bytes.len; i++) {
		if (!d->n_held && !((uint8_t)bytes.data[i] & 0x80))
			out[n++] = bytes.data[i];
		else
			n += take(d, bytes.data[i], out + n);
	}
	return n;
}

size_t detokenizer_flush(struct detokenizer *d, char *out)
{
	if (!d->n_held)
		return 0;
	d->n_held = 0; /* the beginning of one character: one replacement */
	memcpy(out, CODEPOINT_REPLACEMENT, CODEPOINT_REPLACEMENT_LEN);
	return CODEPOINT_REPLACEMENT_LEN;
}

int tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t n, bool skip_special,
		     char **ret, size_t *ret_len)
{
	struct detokenizer d = { .skip_special = skip_special };
	size_t room = 16, len = 0;
	char *out, *fitted;

	for (size_t i = 0; i < n; i++)
		if (__builtin_add_overflow(room, 3 * tokenizer_bytes(t, ids[i]).len, &room))
			return -ENOMEM;
	out = malloc(room);
	if (!out)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		len += detokenizer_push(&d, t, ids[i], out + len);
	len += detokenizer_flush(&d, out + len);
	out[len] = '\0';
	fitted = realloc(out, len + 1);
	*ret = fitted ? fitted : out;
	*ret_len = len;
	return 0;
}
