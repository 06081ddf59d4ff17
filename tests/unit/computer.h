/*
 * An executor that computes a toy model: the next token is a hash of all the
 * tokens that its pages hold. It speaks the control protocol and the step ring
 * as the real one does, and checks every order it gets, so that a page given
 * to two turns, a wrong position or a missing grant changes the text or aborts.
 */
#pragma once

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "client/wire/control.h"
#include "client/wire/step.h"
#include "daemon/base/clock.h"

#define COMPUTER_VOCAB 1000
#define COMPUTER_PAGES_MAX 8192

/*
 * What a step takes. Experts are read once, whatever the number of tokens that
 * chose them: of the first tokens of a step each brings its own.
 */
struct computer_cost {
	double step_us;	     /* weights that every step reads */
	double experts_us;   /* all experts, and of them one token reads experts_part */
	double experts_part;
	double token_us;     /* arithmetic of a token */
	double context_us;   /* and for every 1000 tokens before it */
	double row_us;	     /* of a row: the token after it is sampled */
};

struct computer_slot {
	uint32_t length, sampled; /* sampled: UINT32_MAX: none */
	uint32_t pages[COMPUTER_PAGES_MAX], n_pages;
	struct step_sampler sampler;
	int stopped;
};

struct computer {
	int listen_fd, fd;
	char path[64];
	struct control_configure configure;
	struct ring ring;
	uint32_t *kv; /* the arena: an entry a position, see computer_entry(), in the first of a page's strips */
	uint32_t n_strips; /* of a page; the second holds whose turn wrote, by its seed. 0: one */
	uint32_t stop_id, stop_every; /* every so-many-th token that it would say is this one; 0: none */
	size_t kv_bytes;
	struct computer_slot slots[STEP_ROWS_MAX];
	uint64_t n_steps, n_rows_of_slot[STEP_ROWS_MAX];
	uint64_t n_moves, n_computed; /* tokens */
	uint32_t n_rows, n_tokens; /* of the newest step */
	uint64_t poison_seeds; /* bit i: the turn whose seed is i kills the executor */
	uint32_t poison_at;    /* when it computes this position */
	bool aside; /* it computes in memory of its own, as a GPU does: the arena has what was summed */
	bool only_here[COMPUTER_PAGES_MAX]; /* pages that the arena has not got, if so */
	const struct computer_cost *cost; /* moves the clock, which must be a fake one; NULL: takes no time */
	uint32_t row_tokens[STEP_ROWS_MAX], row_slots[STEP_ROWS_MAX];
};

static inline void computer_open(struct computer *c)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };

	memset(c, 0, sizeof(*c));
	c->fd = -1;
	snprintf(c->path, sizeof(c->path), "/tmp/steamd-computer-%d", (int)getpid());
	unlink(c->path);
	memcpy(at.sun_path, c->path, strlen(c->path));
	c->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert(bind(c->listen_fd, (struct sockaddr *)&at, sizeof(at)) == 0);
	assert(listen(c->listen_fd, 8) == 0);
}

static inline size_t computer_page_bytes(const struct computer *c)
{
	const size_t bytes = c->configure.page_bytes_lo | (size_t)c->configure.page_bytes_hi << 32;

	return bytes ? bytes : c->configure.page_tokens * sizeof(uint32_t);
}

static inline uint32_t *computer_page(const struct computer *c, uint32_t page)
{
	return (uint32_t *)((char *)c->kv + page * computer_page_bytes(c));
}

static inline size_t computer_strip_bytes(const struct computer *c)
{
	return computer_page_bytes(c) / (c->n_strips ? c->n_strips : 1);
}

/* The entry of position @i of a page. */
static inline uint32_t *computer_position(const struct computer *c, uint32_t page, uint32_t i)
{
	return (uint32_t *)((char *)computer_page(c, page) +
			    i * (computer_strip_bytes(c) / c->configure.page_tokens));
}

static inline void computer_die(struct computer *c)
{
	if (c->fd < 0)
		return;
	shutdown(c->fd, SHUT_RDWR);
	close(c->fd);
	c->fd = -1;
	for (uint32_t i = 0; i < c->configure.n_pages && c->aside; i++) {
		if (c->only_here[i])
			memset(computer_page(c, i), 0xdd, computer_page_bytes(c));
		c->only_here[i] = false;
	}
	munmap(c->kv, c->kv_bytes);
	c->kv = NULL;
	ring_deinit(&c->ring);
}

static inline void computer_close(struct computer *c)
{
	computer_die(c);
	close(c->listen_fd);
	unlink(c->path);
}

static inline void computer_ready(struct computer *c)
{
	struct control_ready ready = { .kind = CONTROL_READY, .n_threads = 1, .in_arena = !c->aside };

	snprintf(ready.isa, sizeof(ready.isa), "toy");
	assert(send(c->fd, &ready, sizeof(ready), MSG_NOSIGNAL) == sizeof(ready));
}

static inline int computer_configure(struct computer *c, int fd)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(4 * sizeof(int))];
	} control;
	struct iovec iov = { &c->configure, sizeof(c->configure) };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1,
			    .msg_control = control.bytes, .msg_controllen = sizeof(control) };
	struct err err = { 0 };
	struct stat st;
	int fds[4];

	if (recvmsg(fd, &m, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(c->configure))
		return -1;
	memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(fds));
	assert(c->configure.kind == CONTROL_CONFIGURE && c->configure.version == CONTROL_VERSION);
	assert(ring_map(fds[1], fds[2], fds[3], &c->ring, &err) == 0);
	assert(fstat(fds[0], &st) == 0);
	c->kv_bytes = (size_t)st.st_size;
	c->kv = mmap(NULL, c->kv_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
	assert(c->kv != MAP_FAILED);
	close(fds[0]);
	c->fd = fd;
	memset(c->slots, 0, sizeof(c->slots));
	return 0;
}

/* Takes the next broker that knocks. */
static inline int computer_accept(struct computer *c)
{
	const int fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return 0;
	computer_die(c);
	if (computer_configure(c, fd) < 0) {
		close(fd);
		return 0;
	}
	computer_ready(c);
	return 1;
}

static inline uint32_t *computer_at(struct computer *c, const struct computer_slot *s, uint32_t at)
{
	const uint32_t page_tokens = c->configure.page_tokens;

	assert(at / page_tokens < s->n_pages);
	return computer_position(c, s->pages[at / page_tokens], at % page_tokens);
}

/* The seed of the turn that wrote it; there are two strips or more. */
static inline uint32_t *computer_writer(const struct computer *c, uint32_t page, uint32_t i)
{
	return (uint32_t *)((char *)computer_position(c, page, i) + computer_strip_bytes(c));
}

/* What KV is here: the token, and above it what stands for all that is before it. */
static inline uint32_t computer_entry(uint32_t before, uint32_t token)
{
	return token | ((before ^ token * 2654435761u) * 2246822519u) >> 13 << 13;
}

static inline uint32_t computer_token(uint32_t entry)
{
	return entry & 8191;
}

static inline void computer_write(struct computer *c, struct computer_slot *s, uint32_t token)
{
	const uint32_t before = s->length > 0 ? *computer_at(c, s, s->length - 1) : 0;

	c->only_here[s->pages[s->length / c->configure.page_tokens]] = c->aside;
	if (c->n_strips > 1)
		*computer_writer(c, s->pages[s->length / c->configure.page_tokens],
				 s->length % c->configure.page_tokens) = (uint32_t)s->sampler.seed;
	*computer_at(c, s, s->length++) = computer_entry(before, token);
}

/* What is said to be known must be there already, and belong to what is before it. */
static inline void computer_believe(struct computer *c, struct computer_slot *s, uint32_t token)
{
	const uint32_t before = s->length > 0 ? *computer_at(c, s, s->length - 1) : 0;

	assert(*computer_at(c, s, s->length++) == computer_entry(before, token));
}

/* The token that follows those of which @h is the hash. */
static inline uint32_t computer_say(const struct computer *c, uint64_t h)
{
	return c->stop_every && (h >> 40) % c->stop_every == 0 ? c->stop_id
							       : (uint32_t)((h >> 20) % COMPUTER_VOCAB);
}

/* Of the tokens that the slot's pages hold; each must belong to those before it. */
static inline uint32_t computer_hash(struct computer *c, const struct computer_slot *s, uint32_t n)
{
	uint64_t h = 1469598103934665603ull ^ s->sampler.seed;
	uint32_t before = 0;

	for (uint32_t i = 0; i < n; i++) {
		const uint32_t entry = *computer_at(c, s, i), token = computer_token(entry);

		assert(entry == computer_entry(before, token));
		h = (h ^ token) * 1099511628211ull;
		before = entry;
	}
	return computer_say(c, h);
}

static inline float computer_logprob(uint32_t predicted, uint32_t target)
{
	return -1.0f - (float)((predicted + target) % 100) / 100;
}

/* Returns the bytes of log-probabilities written at @to. */
static inline uint32_t computer_score(char *to, uint32_t n, uint32_t n_top, const uint32_t *predicted,
				      const uint32_t *targets)
{
	float *logprobs = (float *)to;
	uint32_t *ids = (uint32_t *)(logprobs + n);
	float *tops = (float *)(ids + n * n_top);

	for (uint32_t i = 0; i < n; i++) {
		logprobs[i] = computer_logprob(predicted[i], targets[i]);
		for (uint32_t k = 0; k < n_top; k++) {
			ids[i * n_top + k] = (predicted[i] + k) % COMPUTER_VOCAB;
			tops[i * n_top + k] = -0.5f * (float)(k + 1);
		}
	}
	return n * 4 * (1 + 2 * n_top);
}

static inline void computer_sample(struct computer *c, struct computer_slot *s, struct row_result *r)
{
	const uint32_t id = computer_hash(c, s, s->length);

	s->sampled = id;
	r->flags = RESULT_SAMPLED;
	r->n_tokens = 1;
	r->tokens[0] = id;
	for (uint32_t i = 0; i < s->sampler.n_stop_ids; i++)
		s->stopped |= s->sampler.stop_ids[i] == id;
	if (s->stopped)
		r->flags |= RESULT_STOPPED;
}

/* The sum of the first positions of a page's strips, as the disk tier reckons it too. */
static inline void computer_sum(const struct computer *c, uint32_t page, uint32_t n, uint64_t ret[2])
{
	const size_t bytes = computer_strip_bytes(c);
	XXH3_state_t state;
	XXH128_hash_t h;

	XXH3_128bits_reset(&state);
	for (size_t at = 0; at < computer_page_bytes(c); at += bytes)
		XXH3_128bits_update(&state, (char *)computer_page(c, page) + at,
				    bytes / c->configure.page_tokens * n);
	h = XXH3_128bits_digest(&state);

	ret[0] = h.low64;
	ret[1] = h.high64;
}

static inline void computer_copy(struct computer *c, uint32_t to, uint32_t from, uint32_t n)
{
	const size_t bytes = computer_strip_bytes(c);

	for (size_t at = 0; at < computer_page_bytes(c); at += bytes)
		memcpy((char *)computer_page(c, to) + at, (char *)computer_page(c, from) + at,
		       bytes / c->configure.page_tokens * n);
}

/* Returns the bytes of the results at @out. */
static inline uint32_t computer_moves(struct computer *c, const struct step *step, const void *in,
				      void *out)
{
	const uint32_t page_tokens = c->configure.page_tokens;
	const struct step_move *moves = in;
	struct step_moved *moved = out;

	for (uint32_t i = 0; i < step->n_rows; i++) {
		assert(moves[i].to < c->configure.n_pages && moves[i].n_tokens > 0 &&
		       moves[i].n_tokens <= page_tokens);
		assert(moves[i].from < c->configure.n_pages || moves[i].from == STEP_NO_PAGE);
		if (moves[i].from == STEP_NO_PAGE)
			memset(computer_page(c, moves[i].to), 0, computer_page_bytes(c));
		else if (moves[i].from != moves[i].to)
			computer_copy(c, moves[i].to, moves[i].from, moves[i].n_tokens);
		c->only_here[moves[i].to] = false;
		computer_sum(c, moves[i].to, moves[i].n_tokens, moved[i].sum);
		c->n_moves++;
	}
	return step->n_rows * sizeof(*moved);
}

static inline void computer_row(struct computer *c, const char *in, const struct row *row, char *out,
				uint32_t *out_bytes, struct row_result *r)
{
	static uint32_t predicted[STEP_TOKENS_MAX];
	const uint32_t *tokens = (const uint32_t *)(in + row->tokens_off);
	struct computer_slot *s = &c->slots[row->slot];
	uint32_t target;

	memset(r, 0, sizeof(*r));
	r->slot = row->slot;
	assert(row->slot < c->configure.n_slots);
	if (row->kind == ROW_CONT && (s->stopped || s->sampled == UINT32_MAX)) {
		r->flags = RESULT_IGNORED;
		r->length = s->length;
		return;
	}
	if (row->kind == ROW_FEED && row->at == 0) {
		assert(row->sampler_off != 0);
		memset(s, 0, sizeof(*s));
		memcpy(&s->sampler, in + row->sampler_off, sizeof(s->sampler));
	}
	if (row->n_pages > 0) {
		assert(row->page_at <= s->n_pages && row->page_at + row->n_pages <= COMPUTER_PAGES_MAX);
		memcpy(s->pages + row->page_at, in + row->pages_off, row->n_pages * 4u);
		s->n_pages = row->page_at + row->n_pages;
	}
	if (row->kind == ROW_CONT) {
		computer_write(c, s, s->sampled);
	} else {
		assert(row->n_tokens > 0 && row->at <= s->length);
		s->length = row->at;
		for (uint32_t i = 0; i < row->n_tokens; i++) {
			if (row->flags & ROW_KNOWN)
				computer_believe(c, s, tokens[i]);
			else
				computer_write(c, s, tokens[i]);
			if (row->flags & ROW_SCORE)
				predicted[i] = computer_hash(c, s, s->length);
		}
	}
	s->sampled = UINT32_MAX;
	r->length = s->length;
	*out_bytes = (*out_bytes + 7) & ~7u;
	if (row->flags & ROW_SCORE) {
		r->logprobs_off = *out_bytes;
		*out_bytes += computer_score(out + *out_bytes, row->n_tokens, row->n_top, predicted,
					     (const uint32_t *)(in + row->targets_off));
	}
	if (row->flags & ROW_SAMPLE)
		computer_sample(c, s, r);
	if (row->flags & ROW_LOGPROBS) {
		target = r->tokens[0];
		r->logprobs_off = *out_bytes;
		*out_bytes += computer_score(out + *out_bytes, 1, row->n_top, &target, &target);
	}
}

/* Whether a row of @step is the one that kills it; rows are read as far as that needs. */
static inline int computer_is_poisoned(const struct computer *c, const struct step *step,
				       const char *in)
{
	for (uint32_t i = 0; i < step->n_rows; i++) {
		const struct row *row = (const struct row *)in + i;
		const struct computer_slot *s = &c->slots[row->slot];
		const struct step_sampler *sampler = &s->sampler;
		const uint32_t at = row->kind == ROW_CONT ? s->length : row->at;
		const uint32_t n = row->kind == ROW_CONT ? 1 : row->n_tokens;

		if (row->sampler_off != 0)
			sampler = (const struct step_sampler *)(in + row->sampler_off);
		if ((c->poison_seeds >> sampler->seed & 1) && c->poison_at >= at &&
		    c->poison_at < at + n)
			return 1;
	}
	return 0;
}

/* @at: position of each row's first token */
static inline uint32_t computer_step_us(const struct computer *c, const uint32_t *at)
{
	const struct computer_cost *cost = c->cost;
	double us = cost->step_us + cost->token_us * c->n_tokens + cost->row_us * c->n_rows;

	us += cost->experts_us * (1 - pow(1 - cost->experts_part, c->n_tokens));
	for (uint32_t i = 0; i < c->n_rows; i++)
		us += cost->context_us * c->row_tokens[i] * (at[i] + c->row_tokens[i] / 2.0) / 1000;
	return (uint32_t)us;
}

/* Does the oldest step; returns 0 if there is none, 2 if it only moved pages. */
static inline int computer_step(struct computer *c)
{
	const void *in;
	const struct step *step = c->fd >= 0 ? ring_next(&c->ring, &in) : NULL;
	struct step_result result = { 0 };
	uint32_t at[STEP_ROWS_MAX];
	char *out;

	if (!step)
		return 0;
	result.id = step->id;
	result.kind = step->kind;
	result.n_rows = step->n_rows;
	if (step->kind == STEP_MOVE) {
		result.payload_bytes = computer_moves(c, step, in, ring_result_room(&c->ring));
		ring_done(&c->ring, &result);
		return 2;
	}
	if (c->poison_seeds != 0 && computer_is_poisoned(c, step, in)) {
		computer_die(c);
		return 0;
	}
	out = ring_result_room(&c->ring);
	result.payload_bytes = step->n_rows * sizeof(struct row_result);
	c->n_rows = step->n_rows;
	c->n_tokens = 0;
	for (uint32_t i = 0; i < step->n_rows; i++) {
		const struct row *row = (const struct row *)in + i;
		struct row_result r;

		at[i] = row->kind == ROW_CONT ? c->slots[row->slot].length : row->at;
		computer_row(c, in, row, out, &result.payload_bytes, &r);
		memcpy(out + i * sizeof(r), &r, sizeof(r));
		c->row_slots[i] = row->slot;
		c->row_tokens[i] = row->kind == ROW_CONT ? 1 : row->n_tokens;
		if (row->flags & ROW_KNOWN)
			c->row_tokens[i] = 0;
		c->n_tokens += c->row_tokens[i];
		c->n_computed += c->row_tokens[i];
		c->n_rows_of_slot[row->slot]++;
	}
	assert(c->n_tokens <= c->configure.max_batch_tokens);
	c->n_steps++;
	if (c->cost) {
		result.device_us = computer_step_us(c, at);
		clock_advance(result.device_us);
	}
	ring_done(&c->ring, &result);
	return 1;
}
