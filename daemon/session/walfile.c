/* The log's chain of sums, followed over what is damaged: see walfile.h. */
#include "daemon/session/walfile.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/wire/ownership.h"

#define MAGIC 0x377f0682u /* or 1: the sums are of big-endian words */
#define LOG_VERSION 3007000u
#define HEAD_BYTES 32u
#define HEAD_SUMMED_BYTES 24u
#define FRAME_BYTES 24u /* before its page */
#define PAGE_BYTES_MIN 512u
#define PAGE_BYTES_MAX 65536u
/* SQLite's locks are in this range of the database file */
#define LOCKS_AT 0x40000000
#define LOCKS_BYTES 512

struct sum {
	uint32_t a, b;
};

enum frame_state {
	FRAME_WHOLE,
	FRAME_DAMAGED,
	FRAME_FLIPPED, /* by one bit, and there is more than one that it can be */
};

struct walfile {
	int fd;
	uint8_t *at; /* a private copy */
	size_t bytes, n_frames;
	uint32_t page_bytes;
	bool big_endian;
	uint8_t *states; /* enum frame_state [n_frames] */
};

static void walfile_deinit(struct walfile *w)
{
	if (w->at)
		munmap(w->at, w->bytes);
	closep(&w->fd);
	free(w->states);
}

static uint32_t get(const uint8_t *at)
{
	uint32_t v;

	memcpy(&v, at, sizeof(v));
	return be32toh(v);
}

static void put(uint8_t *at, uint32_t v)
{
	v = htobe32(v);
	memcpy(at, &v, sizeof(v));
}

static struct sum sum_at(const uint8_t *at)
{
	return (struct sum){ get(at), get(at + 4) };
}

static void put_sum(uint8_t *at, struct sum s)
{
	put(at, s.a);
	put(at + 4, s.b);
}

static bool sums_equal(struct sum x, struct sum y)
{
	return x.a == y.a && x.b == y.b;
}

static uint32_t word(const struct walfile *w, const uint8_t *at)
{
	uint32_t v;

	memcpy(&v, at, sizeof(v));
	return w->big_endian ? be32toh(v) : le32toh(v);
}

static struct sum sum_on(const struct walfile *w, struct sum s, const uint8_t *at, size_t bytes)
{
	for (size_t i = 0; i < bytes; i += 8) {
		s.a += word(w, at + i) + s.b;
		s.b += word(w, at + i + 4) + s.a;
	}
	return s;
}

static uint8_t *frame_at(const struct walfile *w, size_t i)
{
	return w->at + HEAD_BYTES + i * (FRAME_BYTES + w->page_bytes);
}

static struct sum sum_frame(const struct walfile *w, struct sum seed, const uint8_t *frame)
{
	seed = sum_on(w, seed, frame, 8);
	return sum_on(w, seed, frame + FRAME_BYTES, w->page_bytes);
}

/* The places where one bit would do. */
struct flips {
	uint32_t n;
	uint8_t *at, bit; /* the last that was found */
};

/*
 * Looks in the @bytes at @at for the bits that make up for what is @missing of
 * the sum. A word that is larger by d makes the sum larger by d times its
 * weight: (1, 1) or (0, 1) in the last pair, and if it is (a, b) in a pair,
 * (a + b, a + 2b) in the pair before. Of the upper bits of a word only the
 * lower bits of the weight count, which come again in other pairs: then there
 * are several. @weight: of the last pair here; afterwards of the pair before the first.
 */
static void find_flips(const struct walfile *w, uint8_t *at, size_t bytes, struct sum weight[2],
		       struct sum missing, struct flips *flips)
{
	for (size_t pair = bytes / 8; pair-- > 0;) {
		for (int odd = 0; odd < 2; odd++) {
			uint8_t *where = at + 8 * pair + 4 * (unsigned)odd;
			const uint32_t value = word(w, where);

			for (unsigned bit = 0; bit < 32; bit++) {
				const uint32_t d = value >> bit & 1 ? -(1u << bit) : 1u << bit;

				if (d * weight[odd].a != missing.a ||
				    d * weight[odd].b != missing.b)
					continue;
				flips->n++;
				flips->at = where + (w->big_endian ? 3 - bit / 8 : bit / 8);
				flips->bit = (uint8_t)(1u << bit % 8);
			}
			weight[odd] = (struct sum){ weight[odd].a + weight[odd].b,
						    weight[odd].a + 2 * weight[odd].b };
		}
	}
}

static struct sum less(struct sum x, struct sum y)
{
	return (struct sum){ x.a - y.a, x.b - y.b };
}

/* Whether they differ by one bit. */
static bool differ_by_a_bit(struct sum x, struct sum y)
{
	return __builtin_popcount(x.a ^ y.a) + __builtin_popcount(x.b ^ y.b) == 1;
}

static bool has_salts(const struct walfile *w, const uint8_t *frame)
{
	return memcmp(frame + 8, w->at + 16, 8) == 0;
}

static bool holds(const struct walfile *w, struct sum seed, const uint8_t *frame)
{
	return has_salts(w, frame) && sums_equal(sum_frame(w, seed, frame), sum_at(frame + 16));
}

/* The next frame goes on from the sum in this one: so it is that which is right. */
static bool is_followed(const struct walfile *w, size_t i, struct sum sum)
{
	return i + 1 < w->n_frames && holds(w, sum, frame_at(w, i + 1));
}

static enum frame_state mend_frame(const struct walfile *w, size_t i, struct sum seed)
{
	uint8_t *frame = frame_at(w, i);
	const struct sum stored = sum_at(frame + 16), sum = sum_frame(w, seed, frame);
	const bool of_sum = differ_by_a_bit(sum, stored) && !is_followed(w, i, stored);
	struct sum weight[2] = { { 1, 1 }, { 0, 1 } };
	struct flips flips = { .n = of_sum };

	if (sums_equal(sum, stored)) {
		memcpy(frame + 8, w->at + 16, 8);
		return FRAME_WHOLE;
	}
	if (!has_salts(w, frame))
		return FRAME_DAMAGED;
	if (!of_sum || !is_followed(w, i, sum)) {
		find_flips(w, frame + FRAME_BYTES, w->page_bytes, weight, less(stored, sum),
			   &flips);
		find_flips(w, frame, 8, weight, less(stored, sum), &flips);
	}
	if (flips.n != 1)
		return flips.n > 0 ? FRAME_FLIPPED : FRAME_DAMAGED;
	if (of_sum)
		put_sum(frame + 16, sum);
	else
		*flips.at ^= flips.bit;
	return FRAME_WHOLE;
}

static bool head_makes_sense(const struct walfile *w)
{
	const uint32_t page = get(w->at + 8);

	return (get(w->at) & ~1u) == MAGIC && get(w->at + 4) == LOG_VERSION &&
	       page >= PAGE_BYTES_MIN && page <= PAGE_BYTES_MAX && (page & (page - 1)) == 0;
}

static bool head_holds(struct walfile *w)
{
	w->big_endian = get(w->at) & 1;
	return head_makes_sense(w) &&
	       sums_equal(sum_on(w, (struct sum){ 0 }, w->at, HEAD_SUMMED_BYTES),
			  sum_at(w->at + 24));
}

/* There are few bits, and the first frame has the same salts. */
static bool mend_head(struct walfile *w)
{
	for (unsigned bit = 0; bit < 8 * HEAD_BYTES; bit++) {
		w->at[bit / 8] ^= (uint8_t)(1u << bit % 8);
		if (head_holds(w) && has_salts(w, w->at + HEAD_BYTES))
			return true;
		w->at[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	return false;
}

static int write_frame(const struct walfile *w, const uint8_t *at, size_t bytes, struct err *err)
{
	const ssize_t n = pwrite(w->fd, at, bytes, at - w->at);

	if (n == (ssize_t)bytes)
		return 0;
	return err_set(err, -EIO, "cannot mend the session database's log: %s",
		       n < 0 ? strerror(errno) : "it was cut short");
}

/* Follows the sums from frame to frame. */
static int follow(struct walfile *w, struct walfile_found *found, struct err *err)
{
	struct sum seed = sum_at(w->at + 24);
	int r = 0;

	for (size_t i = 0; i < w->n_frames && r == 0; i++) {
		uint8_t *frame = frame_at(w, i);

		if (!holds(w, seed, frame)) {
			w->states[i] = (uint8_t)mend_frame(w, i, seed);
			if (w->states[i] == FRAME_WHOLE) {
				found->n_mended++;
				r = write_frame(w, frame, FRAME_BYTES + w->page_bytes, err);
			}
		}
		seed = sum_at(frame + 16);
	}
	for (size_t i = 0; i < w->n_frames; i++) {
		found->n_lost += w->states[i] == FRAME_FLIPPED;
		found->n_torn += w->states[i] == FRAME_DAMAGED && has_salts(w, frame_at(w, i));
	}
	return r;
}

static int count_frames(struct walfile *w, struct err *err)
{
	w->page_bytes = get(w->at + 8);
	w->n_frames = (w->bytes - HEAD_BYTES) / (FRAME_BYTES + w->page_bytes);
	w->states = calloc(w->n_frames + 1, sizeof(*w->states));
	return w->states ? 0 : err_set(err, -ENOMEM, "out of memory");
}

static int look(struct walfile *w, struct walfile_found *found, struct err *err)
{
	int r = 0;

	if (!head_holds(w)) {
		if (!mend_head(w))
			return 0; /* as SQLite sees it, there is no log */
		found->n_mended++;
		r = write_frame(w, w->at, HEAD_BYTES, err);
	}
	if (r == 0)
		r = count_frames(w, err);
	return r < 0 ? r : follow(w, found, err);
}

/* The frames that are whole, one after the other, with sums that go on. */
static size_t leave_out(struct walfile *w)
{
	const size_t frame_bytes = FRAME_BYTES + w->page_bytes;
	struct sum seed = sum_on(w, (struct sum){ 0 }, w->at, HEAD_SUMMED_BYTES);
	uint8_t *to = w->at + HEAD_BYTES;

	put_sum(w->at + 24, seed);
	for (size_t i = 0; i < w->n_frames; i++) {
		if (w->states[i] != FRAME_WHOLE)
			continue;
		memmove(to, frame_at(w, i), frame_bytes);
		seed = sum_frame(w, seed, to);
		put_sum(to + 16, seed);
		to += frame_bytes;
	}
	return (size_t)(to - w->at);
}

static int write_other(struct walfile *w, struct err *err)
{
	const size_t bytes = leave_out(w);
	const int r = write_frame(w, w->at, bytes, err);

	if (r == 0 && ftruncate(w->fd, (off_t)bytes) < 0)
		return err_set(err, -EIO, "cannot mend the session database's log: %s",
			       strerror(errno));
	return r;
}

static bool lock(int db)
{
	struct flock range = {
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = LOCKS_AT, .l_len = LOCKS_BYTES
	};

	return fcntl(db, F_SETLK, &range) == 0;
}

int walfile_mend(const char *path, bool drop, struct walfile_found *ret, struct err *err)
{
	_cleanup_(walfile_deinit) struct walfile w = { .fd = -1 };
	_cleanup_(freep) char *log = NULL;
	_cleanup_(closep) int db = -1; /* the lock ends with it */
	struct walfile_found found = { 0 };
	struct stat st;
	int r;

	if (asprintf(&log, "%s-wal", path) < 0)
		return log = NULL, err_set(err, -ENOMEM, "out of memory");
	*ret = found;
	db = open(path, O_RDWR | O_CLOEXEC);
	w.fd = open(log, O_RDWR | O_CLOEXEC);
	if (db < 0 || w.fd < 0 || !lock(db) || fstat(w.fd, &st) < 0 ||
	    st.st_size < (off_t)(HEAD_BYTES + FRAME_BYTES))
		return 0; /* there is none, or SQLite says why it cannot be had */
	w.bytes = (size_t)st.st_size;
	w.at = mmap(NULL, w.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, w.fd, 0);
	if (w.at == MAP_FAILED) {
		w.at = NULL;
		return err_set(err, -ENOMEM, "cannot read '%s': %s", log, strerror(errno));
	}
	r = look(&w, &found, err);
	if (r == 0 && found.n_mended > 0 && fdatasync(w.fd) < 0)
		r = err_set(err, -EIO, "cannot write '%s': %s", log, strerror(errno));
	if (r == 0 && drop && found.n_lost > 0)
		r = write_other(&w, err);
	if (r == 0)
		*ret = found;
	return r;
}
