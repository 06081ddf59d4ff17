/* Both hashes are over fixed fields one after the other, so that no two inputs run together. */
#include "daemon/kv/chain.h"

#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#define LABEL_MAX 64
#define ISA_MAX 32

struct root_input {
	char purpose[16];
	uint32_t layout, element_bytes;
	uint64_t fingerprint[2];
	uint32_t uid, pad;
	char label[LABEL_MAX];
};
_Static_assert(sizeof(struct root_input) == 112, "the input has no gaps");

struct model_input {
	uint8_t fingerprint[16];
	char isa[ISA_MAX];
};
_Static_assert(sizeof(struct model_input) == 48, "the input has no gaps");

struct page_input {
	struct kv_hash root, parent;
	uint32_t n_tokens, pad;
};
_Static_assert(sizeof(struct page_input) == 40, "the input has no gaps");

void chain_model(const uint8_t fingerprint[16], const char *isa, uint64_t ret[2])
{
	struct model_input in = { 0 };
	XXH128_hash_t h;

	memcpy(in.fingerprint, fingerprint, sizeof(in.fingerprint));
	memcpy(in.isa, isa, strnlen(isa, ISA_MAX));
	h = XXH3_128bits(&in, sizeof(in));
	ret[0] = h.low64;
	ret[1] = h.high64;
}

static struct kv_hash root_of(const char *purpose, const uint64_t fingerprint[2],
			      uint32_t element_bytes, uint32_t uid, const char *label)
{
	struct root_input in = {
		.layout = CHAIN_LAYOUT,
		.element_bytes = element_bytes,
		.fingerprint = { fingerprint[0], fingerprint[1] },
		.uid = uid,
	};
	XXH128_hash_t h;

	memcpy(in.purpose, purpose, strnlen(purpose, sizeof(in.purpose) - 1));
	memcpy(in.label, label, strnlen(label, LABEL_MAX - 1));
	h = XXH3_128bits(&in, sizeof(in));
	return (struct kv_hash){ h.low64, h.high64 };
}

struct kv_hash chain_root(const uint64_t fingerprint[2], uint32_t element_bytes, uid_t uid,
			  const char *label)
{
	return root_of("steamd-kv", fingerprint, element_bytes, uid, label);
}

struct kv_hash chain_shared_root(const uint64_t fingerprint[2], uint32_t element_bytes)
{
	return root_of("steamd-shared", fingerprint, element_bytes, CHAIN_SHARED_UID, "");
}

struct kv_hash chain_next(struct kv_hash root, struct kv_hash parent, const uint32_t *tokens,
			  uint32_t n_tokens)
{
	const struct page_input in = { .root = root, .parent = parent, .n_tokens = n_tokens };
	XXH3_state_t state;
	XXH128_hash_t h;

	XXH3_INITSTATE(&state);
	XXH3_128bits_reset(&state);
	XXH3_128bits_update(&state, &in, sizeof(in));
	XXH3_128bits_update(&state, tokens, n_tokens * sizeof(*tokens));
	h = XXH3_128bits_digest(&state);
	return (struct kv_hash){ h.low64, h.high64 };
}
