/* Blocks of a segment's file: made and checked. */
#include "daemon/kv/segfile.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#define MAGIC_HEADER 0x31304745534b5453ull /* "STKSEG01" */
#define MAGIC_RECORD 0x31304345524b5453ull /* "STKREC01" */
#define MAGIC_FOOTER 0x3130544f464b5453ull /* "STKFOT01" */

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are little-endian");

static uint64_t whole_blocks(uint64_t bytes)
{
	return (bytes + SEGFILE_BLOCK - 1) / SEGFILE_BLOCK * SEGFILE_BLOCK;
}

struct segfile_layout segfile_layout(uint64_t page_bytes, uint32_t page_tokens, uint64_t file_bytes)
{
	struct segfile_layout l = {
		.page_bytes = page_bytes,
		.page_tokens = page_tokens,
		.stride = SEGFILE_BLOCK + whole_blocks(page_bytes),
		.n_slots = 1,
	};
	const uint64_t n = file_bytes / (l.stride + sizeof(struct segments_key));

	l.n_slots = (uint32_t)MIN(MAX(n, 1), SEGFILE_SLOTS_MAX);
	while (l.n_slots > 1 && segfile_bytes(&l) > file_bytes)
		l.n_slots--;
	return l;
}

uint64_t segfile_slot(const struct segfile_layout *l, uint32_t slot)
{
	return SEGFILE_BLOCK + slot * l->stride;
}

uint64_t segfile_footer_at(const struct segfile_layout *l)
{
	return segfile_slot(l, l->n_slots);
}

uint64_t segfile_footer_bytes(const struct segfile_layout *l)
{
	return whole_blocks(sizeof(struct segfile_footer) +
			    l->n_slots * sizeof(struct segments_key));
}

uint64_t segfile_bytes(const struct segfile_layout *l)
{
	return segfile_footer_at(l) + segfile_footer_bytes(l);
}

void segfile_name(uint32_t uid, uint64_t seq, char *ret)
{
	snprintf(ret, SEGFILE_NAME_MAX, "%u/seg-%016llx.kv", uid, (unsigned long long)seq);
}

/* Only names as we write them: one number has one name. */
bool segfile_parse_name(const char *name, uint64_t *ret_seq)
{
	char again[SEGFILE_NAME_MAX];
	unsigned long long seq;

	if (sscanf(name, "seg-%16llx.kv", &seq) != 1 || seq == 0)
		return false;
	segfile_name(0, seq, again);
	if (strcmp(again + strlen("0/"), name) != 0)
		return false;
	*ret_seq = seq;
	return true;
}

bool segfile_parse_uid(const char *name, uint32_t *ret_uid)
{
	char again[16];
	unsigned uid;

	if (sscanf(name, "%u", &uid) != 1)
		return false;
	snprintf(again, sizeof(again), "%u", uid);
	if (strcmp(again, name) != 0 || uid == SEGMENTS_ALL)
		return false;
	*ret_uid = uid;
	return true;
}

/* Of a block, or blocks, that begin with their sum. */
static void sum_of(const void *blocks, uint64_t bytes, uint64_t ret[2])
{
	const size_t own = 2 * sizeof(uint64_t);
	const XXH128_hash_t sum = XXH3_128bits((const char *)blocks + own, bytes - own);

	ret[0] = sum.low64;
	ret[1] = sum.high64;
}

static bool is_same(const uint64_t a[2], const uint64_t b[2])
{
	return a[0] == b[0] && a[1] == b[1];
}

static bool has_sum(const void *blocks, uint64_t bytes)
{
	uint64_t sum[2], stored[2];

	memcpy(stored, blocks, sizeof(stored));
	sum_of(blocks, bytes, sum);
	return is_same(sum, stored);
}

static bool is_zeros(const void *block)
{
	const uint64_t *p = block;
	uint64_t all = 0;

	for (uint32_t i = 0; i < SEGFILE_BLOCK / sizeof(*p); i++)
		all |= p[i];
	return all == 0;
}

void segfile_header_seal(struct segfile_header *h)
{
	h->magic = MAGIC_HEADER;
	h->version = SEGFILE_VERSION;
	sum_of(h, sizeof(*h), h->sum);
}

int segfile_header_check(const struct segfile_header *h, uint32_t uid, uint64_t seq,
			 struct segfile_layout *ret, struct err *err)
{
	if (is_zeros(h))
		return err_set(err, -EBADMSG, "its header is empty");
	if (h->magic != MAGIC_HEADER)
		return err_set(err, -EBADMSG, "it does not begin with a segment's header");
	if (!has_sum(h, sizeof(*h)))
		return err_set(err, -EBADMSG, "the sum of its header is wrong");
	if (h->version != SEGFILE_VERSION)
		return 0;
	if (h->uid != uid)
		return err_set(err, -EBADMSG, "it is of uid %u, and not of %u", h->uid, uid);
	if (h->seq != seq)
		return err_set(err, -EBADMSG, "it is segment %016llx, and not %016llx",
			       (unsigned long long)h->seq, (unsigned long long)seq);
	if (h->page_bytes == 0 || h->page_bytes > SEGFILE_PAGE_BYTES_MAX || h->page_tokens == 0 ||
	    h->page_tokens > SEGMENTS_PAGE_TOKENS_MAX || h->n_slots == 0 ||
	    h->n_slots > SEGFILE_SLOTS_MAX)
		return err_set(err, -EBADMSG,
			       "its header says %u slots of %llu bytes and %u tokens", h->n_slots,
			       (unsigned long long)h->page_bytes, h->page_tokens);
	*ret = (struct segfile_layout){
		.page_bytes = h->page_bytes,
		.page_tokens = h->page_tokens,
		.stride = SEGFILE_BLOCK + whole_blocks(h->page_bytes),
		.n_slots = h->n_slots,
	};
	return 0;
}

void segfile_record_seal(struct segfile_record *r)
{
	r->magic = MAGIC_RECORD;
	sum_of(r, sizeof(*r), r->sum);
}

int segfile_record_check(const struct segfile_record *r, const struct segfile_header *h,
			 uint64_t offset, struct err *err)
{
	if (is_zeros(r))
		return err_set(err, -ENOENT, "its head is empty");
	if (r->magic != MAGIC_RECORD)
		return err_set(err, -EBADMSG, "it does not begin with a record's head");
	if (!has_sum(r, sizeof(*r)))
		return err_set(err, -EBADMSG, "the sum of its head is wrong");
	if (!is_same(r->id, h->id))
		return err_set(err, -EBADMSG, "it is of another segment");
	if (r->offset != offset)
		return err_set(err, -EBADMSG, "it is of offset %llu, and not of %llu",
			       (unsigned long long)r->offset, (unsigned long long)offset);
	if (r->key.uid != h->uid)
		return err_set(err, -EBADMSG, "it is of uid %u, and not of %u", r->key.uid, h->uid);
	if (r->payload_bytes != h->page_bytes)
		return err_set(err, -EBADMSG, "its payload has %llu bytes, and not %llu",
			       (unsigned long long)r->payload_bytes,
			       (unsigned long long)h->page_bytes);
	if (r->key.n_tokens == 0 || r->key.n_tokens > h->page_tokens)
		return err_set(err, -EBADMSG, "it has %u tokens, and not 1 to %u", r->key.n_tokens,
			       h->page_tokens);
	return 0;
}

static uint64_t footer_bytes(const struct segfile_header *h)
{
	return whole_blocks(sizeof(struct segfile_footer) +
			    h->n_slots * sizeof(struct segments_key));
}

void segfile_footer_seal(struct segfile_footer *f, const struct segfile_header *h)
{
	f->magic = MAGIC_FOOTER;
	memcpy(f->id, h->id, sizeof(f->id));
	f->n_slots = h->n_slots;
	sum_of(f, footer_bytes(h), f->sum);
}

int segfile_footer_check(const struct segfile_footer *f, const struct segfile_header *h,
			 struct err *err)
{
	if (is_zeros(f))
		return err_set(err, -ENOENT, "it has no footer");
	if (f->magic != MAGIC_FOOTER || !has_sum(f, footer_bytes(h)))
		return err_set(err, -EBADMSG, "the sum of its footer is wrong");
	if (!is_same(f->id, h->id) || f->n_slots != h->n_slots)
		return err_set(err, -EBADMSG, "its footer is of another segment");
	for (uint32_t i = 0; i < h->n_slots; i++)
		if (f->keys[i].n_tokens > h->page_tokens ||
		    (f->keys[i].n_tokens > 0 && f->keys[i].uid != h->uid))
			return err_set(err, -EBADMSG,
				       "its footer says %u tokens of uid %u in slot %u",
				       f->keys[i].n_tokens, f->keys[i].uid, i);
	return 0;
}
