/* Sums of hashes, so that threads may add in any order. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "client/wire/ownership.h"
#include "daemon/base/digest.h"
#include "daemon/exec/weights/checkpoint.h"
#include "daemon/exec/weights/fingerprint.h"

/* Raised when the same bytes would give another fingerprint. */
#define FINGERPRINT_VERSION 1

struct block {
	_Atomic uint64_t low, high;
};

struct file {
	const struct st_file *file; /* NULL once finished */
	char *name;
	XXH128_hash_t header;
	uint32_t n_blocks;
	struct block *blocks;
};

struct fingerprint {
	XXH128_hash_t config;
	struct file *files;
	uint32_t n_files;
	bool finished;
	uint8_t whole[FINGERPRINT_BYTES];
};

/* Numbers and text that end, so that two of them are never one other. */
static void feed_number(XXH3_state_t *state, uint64_t n)
{
	const uint64_t le = htole64(n);

	XXH3_128bits_update(state, &le, sizeof(le));
}

static void feed_text(XXH3_state_t *state, const char *text)
{
	XXH3_128bits_update(state, text, strlen(text) + 1);
}

static XXH128_hash_t hash_header(const struct st_file *file)
{
	XXH3_state_t state;

	XXH3_128bits_reset(&state);
	feed_number(&state, st_file_bytes(file));
	for (uint32_t i = 0; i < st_file_count(file); i++) {
		const struct st_tensor *t = st_file_at(file, i);

		feed_text(&state, t->name);
		feed_text(&state, t->type_name);
		feed_number(&state, t->rank);
		for (uint32_t k = 0; k < t->rank; k++)
			feed_number(&state, t->shape[k]);
		feed_number(&state, t->offset);
		feed_number(&state, t->bytes);
	}
	return XXH3_128bits_digest(&state);
}

static int add_file(struct file *to, const struct st_file *file)
{
	const char *slash = strrchr(st_file_path(file), '/');

	to->file = file;
	to->name = strdup(slash ? slash + 1 : st_file_path(file));
	to->header = hash_header(file);
	to->n_blocks = (uint32_t)(st_file_bytes(file) / FINGERPRINT_BLOCK_BYTES + 1);
	to->blocks = calloc(to->n_blocks, sizeof(*to->blocks));
	return to->name && to->blocks ? 0 : -ENOMEM;
}

int fingerprint_new(const struct checkpoint *c, struct fingerprint **ret)
{
	_cleanup_(fingerprint_freep) struct fingerprint *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return -ENOMEM;
	f->config = XXH3_128bits(c->config_text, c->config_len);
	f->files = calloc(c->n_files + 1, sizeof(*f->files));
	if (!f->files)
		return -ENOMEM;
	for (; f->n_files < c->n_files; f->n_files++) {
		r = add_file(&f->files[f->n_files], c->files[f->n_files]);
		if (r < 0) {
			f->n_files++;
			return r;
		}
	}
	*ret = steal(f);
	return 0;
}

struct fingerprint *fingerprint_free(struct fingerprint *f)
{
	if (!f)
		return NULL;
	for (uint32_t i = 0; i < f->n_files; i++) {
		free(f->files[i].name);
		free(f->files[i].blocks);
	}
	free(f->files);
	free(f);
	return NULL;
}

static struct file *find_file(struct fingerprint *f, const struct st_file *file)
{
	uint32_t i = 0;

	while (f->files[i].file != file)
		i++;
	return &f->files[i];
}

void fingerprint_add(struct fingerprint *f, const struct st_file *file, uint64_t at,
		     const void *data, size_t bytes, size_t unit_bytes)
{
	struct file *to = find_file(f, file);

	for (size_t done = 0; done < bytes; done += unit_bytes) {
		const uint64_t place = at + done;
		/* the place is part of it: the same bytes elsewhere are something else */
		const struct digest d = digest_of((const char *)data + done,
						  MIN(unit_bytes, bytes - done), place);
		struct block *b = &to->blocks[place / FINGERPRINT_BLOCK_BYTES];

		atomic_fetch_add_explicit(&b->low, d.low, memory_order_relaxed);
		atomic_fetch_add_explicit(&b->high, d.high, memory_order_relaxed);
	}
}

void fingerprint_finish(struct fingerprint *f)
{
	XXH128_canonical_t canonical;
	XXH3_state_t state;

	XXH3_128bits_reset(&state);
	feed_number(&state, FINGERPRINT_VERSION);
	feed_number(&state, f->config.low64);
	feed_number(&state, f->config.high64);
	for (uint32_t i = 0; i < f->n_files; i++) {
		struct file *file = &f->files[i];

		feed_number(&state, file->header.low64);
		feed_number(&state, file->header.high64);
		for (uint32_t k = 0; k < file->n_blocks; k++) {
			feed_number(&state, file->blocks[k].low);
			feed_number(&state, file->blocks[k].high);
		}
		file->file = NULL;
	}
	XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state));
	memcpy(f->whole, canonical.digest, sizeof(f->whole));
	f->whole[0] |= f->whole[0] == 0; /* all zero stands for none */
	f->finished = true;
}

const uint8_t *fingerprint_whole(const struct fingerprint *f)
{
	return f->whole;
}

static int compare_file(const struct file *then, const struct file *now, bool whole,
			struct err *err)
{
	if (!XXH128_isEqual(then->header, now->header))
		return err_set(err, -ESTALE, "the header of '%s' is another", now->name);
	for (uint32_t i = 0; whole && i < now->n_blocks; i++) {
		if (then->blocks[i].low == now->blocks[i].low &&
		    then->blocks[i].high == now->blocks[i].high)
			continue;
		return err_set(err, -ESTALE, "'%s' is another between %llu and %llu MiB", now->name,
			       i * FINGERPRINT_BLOCK_BYTES >> 20,
			       (i + 1) * FINGERPRINT_BLOCK_BYTES >> 20);
	}
	return 0;
}

int fingerprint_compare(const struct fingerprint *then, const struct fingerprint *now,
			struct err *err)
{
	int r = 0;

	if (!XXH128_isEqual(then->config, now->config))
		return err_set(err, -ESTALE, "'config.json' is another");
	if (then->n_files != now->n_files)
		return err_set(err, -ESTALE, "there were %u files of weights, now there are %u",
			       then->n_files, now->n_files);
	for (uint32_t i = 0; r == 0 && i < now->n_files; i++)
		r = compare_file(&then->files[i], &now->files[i], now->finished, err);
	return r;
}
