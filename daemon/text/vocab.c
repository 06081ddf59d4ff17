/* An arena of bytes, a dense table by id, an open hash by bytes. */
#include <errno.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "daemon/text/codepoint.h"
#include "daemon/text/vocab.h"

void vocab_deinit(struct vocab *v)
{
	free(v->tokens);
	free(v->bytes);
	free(v->slots);
	*v = (struct vocab){ 0 };
}

/* Printable Latin-1 stands for itself; the other 68 bytes, ascending, for U+0100 onward. */
static int byte_of(uint32_t code)
{
	if ((code >= 33 && code <= 126) || (code >= 161 && code <= 172) ||
	    (code >= 174 && code <= 255))
		return code;
	if (code < 0x100 || code > 0x143)
		return -1;
	code -= 0x100;
	if (code <= 32)
		return code;
	return code < 67 ? 127 + (code - 33) : 173;
}

long vocab_from_alphabet(struct span key, char *out)
{
	size_t n = 0, len;

	for (size_t i = 0; i < key.len; i += len) {
		const int byte = byte_of(codepoint_read(key.data + i, &len));

		if (byte < 0)
			return -1;
		out[n++] = byte;
	}
	return n;
}

static int make_room(struct vocab *v, uint32_t id, size_t n_bytes)
{
	if (id >= v->cap) {
		const uint32_t cap = MAX(id + 1, MAX(v->cap + v->cap / 2, 1024u));
		struct vocab_token *tokens = realloc(v->tokens, cap * sizeof(*tokens));

		if (!tokens)
			return -ENOMEM;
		memset(tokens + v->cap, 0, (cap - v->cap) * sizeof(*tokens));
		v->tokens = tokens;
		v->cap = cap;
	}
	if (!v->bytes || v->n_bytes + n_bytes > v->cap_bytes) {
		const size_t cap = v->n_bytes + n_bytes + v->cap_bytes / 2 + 4096;
		char *bytes = realloc(v->bytes, cap);

		if (!bytes)
			return -ENOMEM;
		v->bytes = bytes;
		v->cap_bytes = cap;
	}
	return 0;
}

int vocab_add(struct vocab *v, uint32_t id, struct span bytes, uint8_t flags, struct err *err)
{
	int r;

	if (id >= VOCAB_IDS_MAX)
		return err_set(err, -EBADMSG, "token id %u is over the limit of %u", id,
			       VOCAB_IDS_MAX - 1);
	if (id < v->size && v->tokens[id].flags)
		return err_set(err, -EBADMSG, "token id %u is given twice", id);
	r = make_room(v, id, bytes.len);
	if (r < 0)
		return r;

	if (bytes.len)
		memcpy(v->bytes + v->n_bytes, bytes.data, bytes.len);
	v->tokens[id] = (struct vocab_token){ v->n_bytes, bytes.len, flags | VOCAB_USED };
	v->n_bytes += bytes.len;
	v->size = MAX(v->size, id + 1);
	v->n_used++;
	if (!(flags & VOCAB_LITERAL))
		v->longest = MAX(v->longest, (uint32_t)bytes.len);
	return 0;
}

static uint32_t *slot_of(const struct vocab *v, struct span bytes, uint8_t literal)
{
	uint32_t i = XXH3_64bits(bytes.data, bytes.len) & (v->n_slots - 1);

	for (;; i = (i + 1) & (v->n_slots - 1)) {
		const uint32_t id = v->slots[i];
		const struct vocab_token *token = &v->tokens[id == VOCAB_NONE ? 0 : id];

		if (id == VOCAB_NONE ||
		    (token->len == bytes.len && (token->flags & VOCAB_LITERAL) == literal &&
		     memcmp(v->bytes + token->at, bytes.data, bytes.len) == 0))
			return &v->slots[i];
	}
}

int vocab_index(struct vocab *v, struct err *err)
{
	for (v->n_slots = 1024; v->n_slots / 2 < v->n_used;)
		v->n_slots *= 2;
	v->slots = malloc(v->n_slots * sizeof(*v->slots));
	if (!v->slots)
		return -ENOMEM;
	memset(v->slots, 0xff, v->n_slots * sizeof(*v->slots));

	for (uint32_t id = 0; id < v->size; id++) {
		const struct vocab_token *token = &v->tokens[id];
		uint32_t *slot;

		if (!token->flags)
			continue;
		slot = slot_of(v, vocab_bytes(v, id), token->flags & VOCAB_LITERAL);
		if (*slot != VOCAB_NONE)
			return err_set(err, -EBADMSG, "tokens %u and %u are the same", *slot, id);
		*slot = id;
	}
	return 0;
}

uint32_t vocab_find(const struct vocab *v, struct span bytes, uint8_t literal)
{
	return v->n_slots ? *slot_of(v, bytes, literal) : VOCAB_NONE;
}
