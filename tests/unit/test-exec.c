/* Steps over a real ring on a real checkpoint: what each kind of row does to its slot. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "client/wire/control.h"
#include "daemon/exec/exec.h"
#include "daemon/exec/mirror.h"
#include "daemon/exec/service.h"
#include "daemon/exec/weights/memplan.h"
#include "tests/fidelity/rig.h"

#define N_SLOTS 4
#define CONTEXT 96
#define BATCH 64
#define N_PAGES 32
#define STOP 7

struct bench {
	const char *model;
	uint32_t n_ranks;
	struct rig rig;
	struct exec *exec;
	struct ring ring;
	uint32_t real;
	/* the step being written */
	char *payload;
	uint32_t n_rows, used;
	/* the result taken last */
	struct step_result result;
	struct row_result rows[STEP_ROWS_MAX];
	char *room;
};

static const uint32_t prompt[] = { 11, 42, 300, 8, 77, 123, 450, 2, 19, 260 };
#define N_PROMPT 10

static int make_exec(struct bench *b)
{
	const struct exec_limits limits = { .n_slots = N_SLOTS,
					    .max_context = CONTEXT,
					    .max_batch_tokens = BATCH };

	return exec_new(b->rig.team, &b->rig.kv, &limits, &b->exec, NULL);
}

static int setup_ranks(void **state, const char *model, uint32_t n_ranks)
{
	struct bench *b = calloc(1, sizeof(*b));

	if (!b || rig_open_team(model, isa_best(), 1, n_ranks, BATCH, N_PAGES, &b->rig) < 0)
		return -1;
	b->model = model;
	b->n_ranks = n_ranks;
	b->real = 496;
	b->room = malloc(STEP_RESULT_BYTES);
	*state = b;
	if (make_exec(b) < 0)
		return -1;
	return ring_new(&b->ring, NULL);
}

static int setup(void **state)
{
	return setup_ranks(state, "w4all", 1);
}

static int setup_air(void **state)
{
	return setup_ranks(state, "air", 1);
}

static int setup_two(void **state)
{
	return setup_ranks(state, "bf16", 2);
}

static int teardown(void **state)
{
	struct bench *b = *state;

	exec_free(b->exec);
	ring_deinit(&b->ring);
	rig_close(&b->rig);
	free(b->room);
	free(b);
	return 0;
}

/* Rows first: room for four of them, then what they refer to. */
static void begin(struct bench *b)
{
	b->payload = ring_stage(&b->ring);
	assert_non_null(b->payload);
	b->n_rows = 0;
	b->used = 4 * sizeof(struct row);
}

static uint32_t put(struct bench *b, const void *data, size_t bytes)
{
	const uint32_t at = b->used;

	memcpy(b->payload + at, data, bytes);
	b->used += (bytes + 7) / 8 * 8;
	return at;
}

static struct row *add(struct bench *b, uint32_t kind, uint32_t slot, uint32_t flags)
{
	struct row *row = (struct row *)b->payload + b->n_rows++;

	*row = (struct row){ .kind = kind, .slot = slot, .flags = flags };
	return row;
}

static struct row *feed(struct bench *b, uint32_t slot, uint32_t at, const uint32_t *ids,
			uint32_t n, uint32_t flags)
{
	struct row *row = add(b, ROW_FEED, slot, flags);

	row->at = at;
	row->n_tokens = n;
	row->tokens_off = put(b, ids, n * sizeof(*ids));
	return row;
}

static struct step_sampler greedy(const struct bench *b)
{
	return (struct step_sampler){ .top_p = 1, .repetition = 1, .vocab_real = b->real };
}

/* Slot s has pages 6s … 6s + 5. */
static void open_with(struct bench *b, struct row *row, const struct step_sampler *sampler)
{
	uint32_t pages[6];

	for (uint32_t i = 0; i < 6; i++)
		pages[i] = 6 * row->slot + i;
	row->n_pages = 6;
	row->pages_off = put(b, pages, sizeof(pages));
	row->sampler_off = put(b, sampler, sizeof(*sampler));
}

static uint64_t push(struct bench *b)
{
	const struct step step = { .kind = STEP_MIXED,
				   .n_rows = b->n_rows,
				   .payload_bytes = b->used };

	return ring_push(&b->ring, &step);
}

static void take(struct bench *b)
{
	const void *payload;
	const struct step_result *result = ring_result(&b->ring, &payload);

	assert_non_null(result);
	b->result = *result;
	memcpy(b->room, payload, result->payload_bytes);
	memcpy(b->rows, payload, result->n_rows * sizeof(*b->rows));
	ring_take(&b->ring);
}

static void run(struct bench *b)
{
	const uint64_t id = push(b);

	assert_int_equal(exec_drain(b->exec, &b->ring, NULL), 1);
	take(b);
	assert_int_equal(b->result.id, id);
	assert_int_equal(b->result.error, 0);
	assert_int_equal(b->result.n_rows, b->n_rows);
}

static void open_slot(struct bench *b, uint32_t slot, const struct step_sampler *sampler,
		      uint32_t flags)
{
	begin(b);
	open_with(b, feed(b, slot, 0, prompt, N_PROMPT, flags), sampler);
	run(b);
}

static void go_on(struct bench *b, uint32_t slot)
{
	begin(b);
	add(b, ROW_CONT, slot, ROW_SAMPLE);
	run(b);
}

/* The argmax over real ids after ids[0 … n), computed from nothing by the model alone. */
static uint32_t expected(struct bench *b, const uint32_t *ids, uint32_t n)
{
	float *logits = calloc(b->rig.vocab, sizeof(float));
	uint32_t best = 0;

	/* the arena's pages from 24 on belong to no slot: they come first in the rig's list */
	assert_int_equal(rig_feed(&b->rig, 0, ids, 0, n, BATCH, true, logits), 0);
	for (uint32_t i = 1; i < b->real; i++)
		if (logits[i] > logits[best])
			best = i;
	free(logits);
	return best;
}

static void a_slot_goes_on_from_what_it_sampled(void **state)
{
	struct bench *b = *state;
	const struct step_sampler s = greedy(b);
	uint32_t ids[N_PROMPT + 12];

	memcpy(ids, prompt, sizeof(prompt));
	open_slot(b, 1, &s, ROW_SAMPLE);
	for (uint32_t n = N_PROMPT; n < N_PROMPT + 12; n++) {
		assert_int_equal(b->rows[0].slot, 1);
		assert_int_equal(b->rows[0].flags, RESULT_SAMPLED);
		assert_int_equal(b->rows[0].n_tokens, 1);
		assert_int_equal(b->rows[0].length, n);
		assert_int_equal(b->rows[0].tokens[0], expected(b, ids, n));
		ids[n] = b->rows[0].tokens[0];
		go_on(b, 1);
	}
}

static void two_steps_in_flight_give_two_tokens(void **state)
{
	struct bench *b = *state;
	const struct step_sampler s = greedy(b);
	uint32_t first, second;

	open_slot(b, 0, &s, ROW_SAMPLE);
	go_on(b, 0);
	first = b->rows[0].tokens[0];
	go_on(b, 0);
	second = b->rows[0].tokens[0];

	open_slot(b, 0, &s, ROW_SAMPLE);
	for (int i = 0; i < 2; i++) {
		begin(b);
		add(b, ROW_CONT, 0, ROW_SAMPLE);
		push(b);
	}
	assert_int_equal(exec_drain(b->exec, &b->ring, NULL), 2);
	take(b);
	assert_int_equal(b->rows[0].tokens[0], first);
	take(b);
	assert_int_equal(b->rows[0].tokens[0], second);
	assert_int_equal(b->rows[0].length, N_PROMPT + 2);
}

static void a_feed_below_the_length_cuts_the_slot_there(void **state)
{
	struct bench *b = *state;
	const struct step_sampler s = greedy(b);
	const uint32_t tail[] = { 5, 6, 9 };
	uint32_t ids[N_PROMPT];

	open_slot(b, 2, &s, ROW_SAMPLE);
	go_on(b, 2);
	begin(b);
	feed(b, 2, 6, tail, 3, ROW_SAMPLE);
	run(b);
	memcpy(ids, prompt, 6 * sizeof(*ids));
	memcpy(ids + 6, tail, sizeof(tail));
	assert_int_equal(b->rows[0].length, 9);
	assert_int_equal(b->rows[0].tokens[0], expected(b, ids, 9));
}

static void a_cut_forgets_what_was_penalised(void **state)
{
	struct bench *b = *state;
	struct step_sampler s = greedy(b);
	uint32_t first;

	s.repetition = 1e6;
	s.n_prompt = N_PROMPT;
	open_slot(b, 0, &s, ROW_SAMPLE);
	first = b->rows[0].tokens[0];
	for (int i = 0; i < 4; i++)
		go_on(b, 0);
	begin(b);
	feed(b, 0, N_PROMPT - 1, prompt + N_PROMPT - 1, 1, ROW_SAMPLE);
	run(b);
	assert_int_equal(b->rows[0].tokens[0], first);
}

static void rows_of_a_batch_do_not_see_each_other(void **state)
{
	struct bench *b = *state;
	const struct step_sampler s = greedy(b);
	uint32_t alone[2];

	open_slot(b, 0, &s, ROW_SAMPLE);
	go_on(b, 0);
	alone[0] = b->rows[0].tokens[0];
	open_slot(b, 1, &s, 0);
	begin(b);
	feed(b, 1, N_PROMPT, prompt, 3, ROW_SAMPLE);
	run(b);
	alone[1] = b->rows[0].tokens[0];

	open_slot(b, 0, &s, ROW_SAMPLE);
	open_slot(b, 1, &s, 0);
	begin(b);
	add(b, ROW_CONT, 0, ROW_SAMPLE);
	feed(b, 1, N_PROMPT, prompt, 3, ROW_SAMPLE);
	open_with(b, feed(b, 2, 0, prompt, 1, 0), &s);
	run(b);
	assert_int_equal(b->rows[0].tokens[0], alone[0]);
	assert_int_equal(b->rows[1].tokens[0], alone[1]);
	assert_int_equal(b->rows[2].flags, 0);
	assert_int_equal(b->rows[2].length, 1);
}

static void a_stop_id_ends_the_slot_until_it_is_fed(void **state)
{
	struct bench *b = *state;
	struct step_sampler s = greedy(b);

	open_slot(b, 0, &s, ROW_SAMPLE);
	s.n_stop_ids = 2;
	s.stop_ids[0] = b->rows[0].tokens[0] == STOP ? STOP + 1 : STOP;
	s.stop_ids[1] = b->rows[0].tokens[0];
	open_slot(b, 0, &s, ROW_SAMPLE);
	assert_int_equal(b->rows[0].flags, RESULT_SAMPLED | RESULT_STOPPED);
	go_on(b, 0);
	assert_int_equal(b->rows[0].flags, RESULT_IGNORED);
	assert_int_equal(b->rows[0].n_tokens, 0);
	assert_int_equal(b->rows[0].length, N_PROMPT);
	begin(b);
	feed(b, 0, N_PROMPT, prompt, 1, ROW_SAMPLE);
	run(b);
	assert_true(b->rows[0].flags & RESULT_SAMPLED);
	assert_int_equal(b->rows[0].length, N_PROMPT + 1);
}

static void a_slot_without_a_sample_does_not_go_on(void **state)
{
	struct bench *b = *state;
	const struct step_sampler s = greedy(b);

	go_on(b, 3);
	assert_int_equal(b->rows[0].flags, RESULT_IGNORED);
	assert_int_equal(b->rows[0].length, 0);
	open_slot(b, 3, &s, 0);
	go_on(b, 3);
	assert_int_equal(b->rows[0].flags, RESULT_IGNORED);
	assert_int_equal(b->rows[0].length, N_PROMPT);
}

static void scores_are_the_log_probabilities_of_the_targets(void **state)
{
	struct bench *b = *state;
	const struct step_sampler s = greedy(b);
	float *logits = calloc((size_t)N_PROMPT * b->rig.vocab, sizeof(float));
	uint32_t targets[N_PROMPT];
	const uint32_t n_top = 3;
	struct row *row;

	memcpy(targets, prompt + 1, sizeof(targets) - 4);
	targets[N_PROMPT - 1] = UINT32_MAX;
	targets[4] = b->real; /* not a token */
	assert_int_equal(rig_feed(&b->rig, 0, prompt, 0, N_PROMPT, BATCH, false, logits), 0);

	begin(b);
	row = feed(b, 0, 0, prompt, N_PROMPT, ROW_SCORE | ROW_SAMPLE);
	open_with(b, row, &s);
	row->targets_off = put(b, targets, sizeof(targets));
	row->n_top = n_top;
	run(b);
	assert_int_equal(b->rows[0].flags, RESULT_SAMPLED);
	assert_int_equal(b->rows[0].logprobs_off, sizeof(struct row_result));

	for (uint32_t i = 0; i < N_PROMPT; i++) {
		const char *at = b->room + b->rows[0].logprobs_off;
		const float *x = logits + (size_t)i * b->rig.vocab;
		const float got = ((const float *)at)[i];
		const uint32_t *ids = (const uint32_t *)at + N_PROMPT + i * n_top;
		const float *tops = (const float *)at + N_PROMPT * (1 + n_top) + i * n_top;
		double sum = 0;

		for (uint32_t j = 0; j < b->real; j++)
			sum += exp(x[j]);
		if (targets[i] == UINT32_MAX)
			assert_true(isnan(got));
		else if (targets[i] == b->real)
			assert_true(got == -INFINITY);
		else
			assert_true(fabs(got - (x[targets[i]] - log(sum))) < 1e-4);
		assert_true(fabs(tops[0] - (x[ids[0]] - log(sum))) < 1e-4);
		assert_true(tops[0] >= tops[1] && tops[1] >= tops[2]);
		assert_true(ids[0] < b->real && ids[0] != ids[1]);
	}
	free(logits);
}

static void a_sample_comes_with_its_log_probability(void **state)
{
	struct bench *b = *state;
	const struct step_sampler s = greedy(b);
	const float *at;
	struct row *row;

	begin(b);
	row = feed(b, 0, 0, prompt, N_PROMPT, ROW_SAMPLE | ROW_LOGPROBS);
	open_with(b, row, &s);
	row->n_top = 2;
	run(b);
	at = (const float *)(b->room + b->rows[0].logprobs_off);
	assert_int_equal(((const uint32_t *)at)[1], b->rows[0].tokens[0]);
	assert_true(at[0] == at[3] && at[3] >= at[4] && at[0] < 0);
}

/* The results of a step of moves. */
static const struct step_moved *move(struct bench *b, const struct step_move *moves, uint32_t n)
{
	const struct step step = { .kind = STEP_MOVE,
				   .n_rows = (uint16_t)n,
				   .payload_bytes = n * sizeof(*moves) };
	const struct step_result *result;
	const void *payload;
	struct err err = { 0 };

	memcpy(ring_stage(&b->ring), moves, n * sizeof(*moves));
	ring_push(&b->ring, &step);
	assert_int_equal(exec_drain(b->exec, &b->ring, &err), 1);
	result = ring_result(&b->ring, &payload);
	assert_int_equal(result->kind, STEP_MOVE);
	assert_int_equal(result->n_rows, n);
	assert_int_equal(result->payload_bytes, n * sizeof(struct step_moved));
	memcpy(b->room, payload, result->payload_bytes);
	ring_take(&b->ring);
	return (const struct step_moved *)b->room;
}

/* What a slot finds in copied pages gives the bits that computing them gives; on a GPU, of another batch, nearly. */
static void a_slot_goes_on_from_pages_that_are_known(void **state)
{
	struct bench *b = *state;
	const struct step_sampler s = greedy(b);
	const struct step_move moves[] = { { 0, 6, 7, 0 } };
	float computed, known;
	struct row *row;

	begin(b);
	row = feed(b, 0, 0, prompt, N_PROMPT, ROW_SAMPLE | ROW_LOGPROBS);
	open_with(b, row, &s);
	run(b);
	memcpy(&computed, b->room + b->rows[0].logprobs_off, sizeof(computed));

	move(b, moves, 1);
	begin(b);
	row = feed(b, 1, 0, prompt, 7, ROW_KNOWN);
	open_with(b, row, &s);
	run(b);
	assert_int_equal(b->rows[0].length, 7);
	assert_int_equal(b->rows[0].flags, 0);
	begin(b);
	feed(b, 1, 7, prompt + 7, N_PROMPT - 7, ROW_SAMPLE | ROW_LOGPROBS);
	run(b);
	memcpy(&known, b->room + b->rows[0].logprobs_off, sizeof(known));
	assert_int_equal(b->rows[0].length, N_PROMPT);
	if (dev_is_host(b->rig.dev))
		assert_memory_equal(&known, &computed, sizeof(known));
	else
		assert_true(fabsf(known - computed) < 1e-3f);
}

static void moves_copy_clear_and_sum(void **state)
{
	struct bench *b = *state;
	const size_t bytes = kv_page_bytes(&b->rig.kv);
	char *base = b->rig.kv.base;
	const struct step_move first[] = { { 3, 3, 5, 0 }, { 3, 4, 5, 0 }, { 3, 3, 6, 0 } };
	const struct step_move second[] = { { STEP_NO_PAGE, 4, 1, 0 }, { 3, 3, 5, 0 } };
	const struct step_moved *moved;
	struct step_moved before[3];

	for (size_t i = 0; i < bytes; i++)
		base[3 * bytes + i] = (char)(i * 31 + i / 256);
	memset(base + 4 * bytes, 0x55, bytes);
	memcpy(before, move(b, first, 3), sizeof(before));
	assert_memory_equal(&before[0], &before[1], sizeof(before[0]));
	assert_memory_not_equal(&before[0], &before[2], sizeof(before[0]));

	/* beyond the tokens that are summed nothing matters, within them every byte does */
	base[4 * bytes - 1] ^= 1;
	moved = move(b, second, 2);
	assert_memory_equal(&moved[1], &before[0], sizeof(before[0]));
	base[3 * bytes] ^= 1;
	moved = move(b, second, 2);
	assert_memory_not_equal(&moved[1], &before[0], sizeof(before[0]));
	for (size_t i = 0; i < bytes; i++)
		assert_int_equal(base[4 * bytes + i], 0);
}

static void malformed_moves_are_named(void **state)
{
	struct bench *b = *state;
	const struct step_move bad[] = {
		{ 0, N_PAGES, 1, 0 },
		{ N_PAGES, 0, 1, 0 },
		{ 0, 1, 0, 0 },
		{ 0, 1, b->rig.kv.page_tokens + 1, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		const struct step step = { .kind = STEP_MOVE,
					   .n_rows = 1,
					   .payload_bytes = sizeof(bad[i]) };
		struct err err = { 0 };

		memcpy(ring_stage(&b->ring), &bad[i], sizeof(bad[i]));
		ring_push(&b->ring, &step);
		assert_int_equal(exec_drain(b->exec, &b->ring, &err), -EBADMSG);
		assert_non_null(strstr(err.text, "move 0: "));
		take(b);
		exec_free(b->exec);
		assert_int_equal(make_exec(b), 0);
	}
}

/* Each change makes the good step a malformed one. */
static void expect_malformed(struct bench *b, void (*spoil)(struct bench *b, struct row *row),
			     const char *text)
{
	const struct step_sampler s = greedy(b);
	struct err err = { 0 };
	struct row *row;

	begin(b);
	row = feed(b, 0, 0, prompt, N_PROMPT, ROW_SAMPLE);
	open_with(b, row, &s);
	spoil(b, row);
	push(b);
	assert_int_equal(exec_drain(b->exec, &b->ring, &err), -EBADMSG);
	assert_non_null(strstr(err.text, text));
	take(b);
	assert_int_equal(b->result.error, -EBADMSG);
	assert_int_equal(b->result.n_rows, 0);

	/* the process would leave here */
	exec_free(b->exec);
	assert_int_equal(make_exec(b), 0);
}

#define SPOIL(name, ...)                                                                           \
	static void name(struct bench *b, struct row *row)                                         \
	{                                                                                          \
		(void)b, (void)row;                                                                \
		__VA_ARGS__;                                                                       \
	}

SPOIL(slot_beyond, row->slot = N_SLOTS)
SPOIL(no_sampler, row->sampler_off = 0)
SPOIL(tokens_unaligned, row->tokens_off += 2)
SPOIL(tokens_outside, row->tokens_off = b->used - 8)
SPOIL(tokens_far_outside, row->tokens_off = 0xfffffffc)
SPOIL(too_many_tokens, row->n_tokens = CONTEXT + 1)
SPOIL(no_tokens, row->n_tokens = 0)
SPOIL(id_beyond, ((uint32_t *)(b->payload + row->tokens_off))[3] = 512)
SPOIL(page_beyond, ((uint32_t *)(b->payload + row->pages_off))[5] = N_PAGES)
SPOIL(pages_beyond, row->n_pages = 7)
SPOIL(pages_with_a_gap, row->page_at = 1; row->n_pages = 5)
SPOIL(no_pages, row->n_pages = 0)
SPOIL(feed_beyond_the_length, row->at = 3)
SPOIL(unknown_kind, row->kind = 3)
SPOIL(unknown_flag, row->flags |= 16)
SPOIL(known_and_sampled, row->flags |= ROW_KNOWN)
SPOIL(score_without_targets, row->flags = ROW_SCORE)
SPOIL(too_many_top, row->flags |= ROW_LOGPROBS; row->n_top = STEP_TOP_MAX + 1)
SPOIL(same_slot_twice, *add(b, ROW_CONT, 0, ROW_SAMPLE) = (struct row){ .kind = ROW_CONT })
SPOIL(too_many_rows, b->n_rows = STEP_ROWS_MAX + 1)
SPOIL(rows_outside, b->used = sizeof(*row) - 1)
SPOIL(too_many_bytes, b->used = STEP_PAYLOAD_BYTES + 1)
SPOIL(sampler_outside, row->sampler_off = b->used - 8)
SPOIL(many_stop_ids,
      ((struct step_sampler *)(b->payload + row->sampler_off))->n_stop_ids = STEP_STOP_IDS_MAX + 1)
SPOIL(many_biases, ((struct step_sampler *)(b->payload + row->sampler_off))->n_bias = 1025)
SPOIL(no_vocabulary, ((struct step_sampler *)(b->payload + row->sampler_off))->vocab_real = 0)

static void malformed_steps_are_named_and_touch_nothing(void **state)
{
	struct bench *b = *state;

	expect_malformed(b, slot_beyond, "row 0: slot 4; there are 4");
	expect_malformed(b, no_sampler, "a FEED at 0 without a sampler");
	expect_malformed(b, tokens_unaligned, "a multiple of 4 is wanted");
	expect_malformed(b, tokens_outside, "40 bytes are not there");
	expect_malformed(b, tokens_far_outside, "40 bytes are not there");
	expect_malformed(b, too_many_tokens, "a FEED of 97 tokens at 0; the context is 96");
	expect_malformed(b, no_tokens, "a FEED of 0 tokens");
	expect_malformed(b, id_beyond, "token 3 is id 512; the vocabulary has 512");
	expect_malformed(b, page_beyond, "page 32; the arena has 32");
	expect_malformed(b, pages_beyond, "a slot has 6");
	expect_malformed(b, pages_with_a_gap, "pages from 1 on, but slot 0 has 0");
	expect_malformed(b, no_pages, "no page for position 9");
	expect_malformed(b, feed_beyond_the_length, "a FEED at 3, but slot 0 has 0 tokens");
	expect_malformed(b, known_and_sampled, "ROW_KNOWN in kind 1 with flags 0x9");
	expect_malformed(b, unknown_kind, "kind 3");
	expect_malformed(b, unknown_flag, "flags are 0x11");
	expect_malformed(b, score_without_targets, "targets_off is 0");
	expect_malformed(b, too_many_top, "n_top is 21; at most 20 is allowed");
	expect_malformed(b, same_slot_twice, "slot 0 has row 0 already");
	expect_malformed(b, too_many_rows, "65 rows");
	expect_malformed(b, rows_outside, "1 rows in 39 bytes");
	expect_malformed(b, too_many_bytes, "has 524289 bytes");
	expect_malformed(b, sampler_outside, "sampler_off");
	expect_malformed(b, many_stop_ids, "n_stop_ids is 33");
	expect_malformed(b, many_biases, "n_bias is 1025");
	expect_malformed(b, no_vocabulary, "vocab_real is 0");
}

/* The process: what a broker sees of it over the control socket. */
struct process {
	pid_t pid;
	int control_fd, arena_fd;
	struct ring ring;
};

static void start(struct process *p, const struct bench *b, const char *model, uint64_t page_bytes)
{
	struct control_configure c = {
		.kind = CONTROL_CONFIGURE,
		.version = CONTROL_VERSION,
		.n_pages = N_PAGES,
		.page_tokens = 16,
		.page_bytes_lo = page_bytes,
		.page_bytes_hi = page_bytes >> 32,
		.arena_bytes = N_PAGES * page_bytes,
		.n_slots = N_SLOTS,
		.max_context = CONTEXT,
		.max_batch_tokens = BATCH,
		.n_threads = b->n_ranks,
		.n_ranks = b->n_ranks,
		.isa = "auto",
	};
	struct iovec iov = { &c, sizeof(c) };
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(4 * sizeof(int))];
	} control = { 0 };
	struct msghdr m = { .msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = &control,
			    .msg_controllen = sizeof(control) };
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	_cleanup_(freep) char *dir = rig_path(model, "");
	int ends[2];

	snprintf(c.model, sizeof(c.model), "%s", dir);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	assert_int_equal(ring_new(&p->ring, NULL), 0);
	p->arena_fd = memfd_create("arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(p->arena_fd, c.arena_bytes), 0);
	assert_int_equal(fcntl(p->arena_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);

	p->pid = fork();
	if (p->pid == 0) {
		close(ends[0]);
		_exit(service_run(ends[1], NULL));
	}
	close(ends[1]);
	p->control_fd = ends[0];

	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(4 * sizeof(int));
	memcpy(CMSG_DATA(h), (int[]){ p->arena_fd, p->ring.memfd, p->ring.down_fd, p->ring.up_fd },
	       4 * sizeof(int));
	assert_int_equal(sendmsg(p->control_fd, &m, 0), sizeof(c));
}

static int finish(struct process *p)
{
	int status;

	close(p->control_fd);
	assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
	assert_true(WIFEXITED(status));
	close(p->arena_fd);
	ring_deinit(&p->ring);
	return WEXITSTATUS(status);
}

/* Waits until the process has left by itself: closing the socket first would end it otherwise. */
static void await_end(struct process *p)
{
	char byte;

	assert_int_equal(recv(p->control_fd, &byte, 1, 0), 0);
}

/* Takes packets until one that is no progress. */
static uint32_t receive(struct process *p, void *packet, size_t bytes)
{
	uint32_t kind;

	do {
		assert_true(recv(p->control_fd, packet, bytes, 0) > 0);
		memcpy(&kind, packet, sizeof(kind));
	} while (kind == CONTROL_PROGRESS);
	return kind;
}

static void a_process_loads_computes_and_leaves_with_its_broker(void **state)
{
	struct bench *b = *state;
	const struct step_sampler s = greedy(b);
	struct control_ready ready;
	struct process p;
	struct ring mine;
	uint32_t alone;

	open_slot(b, 0, &s, ROW_SAMPLE);
	alone = b->rows[0].tokens[0];

	start(&p, b, b->model, kv_page_bytes(&b->rig.kv));
	assert_int_equal(receive(&p, &ready, sizeof(ready)), CONTROL_READY);
	assert_int_equal(ready.n_threads, b->n_ranks);
	assert_memory_equal(ready.isa, isa_name(isa_best()), strlen(isa_name(isa_best())));
	assert_true(ready.weight_bytes > 100000 && ready.decode_bytes <= ready.weight_bytes);

	mine = b->ring;
	b->ring = p.ring;
	begin(b);
	open_with(b, feed(b, 0, 0, prompt, N_PROMPT, ROW_SAMPLE), &s);
	push(b);
	while (!ring_result(&b->ring, &(const void *){ NULL }))
		usleep(1000);
	take(b);
	b->ring = mine;
	assert_int_equal(b->result.error, 0);
	assert_int_equal(b->rows[0].tokens[0], alone);
	assert_int_equal(finish(&p), 70);
}

static void a_process_refuses_what_it_cannot_load_with_a_sentence(void **state)
{
	struct bench *b = *state;
	struct control_refused refused;
	struct process p;

	start(&p, b, "chat", kv_page_bytes(&b->rig.kv)); /* no checkpoint there */
	assert_int_equal(receive(&p, &refused, sizeof(refused)), CONTROL_REFUSED);
	assert_true(refused.error < 0);
	assert_non_null(strstr(refused.text, "config.json"));
	await_end(&p);
	assert_int_equal(finish(&p), 65);

	start(&p, b, b->model, kv_page_bytes(&b->rig.kv) + 64);
	assert_int_equal(receive(&p, &refused, sizeof(refused)), CONTROL_REFUSED);
	assert_int_equal(refused.error, -EPROTO);
	assert_non_null(strstr(refused.text, "the broker reckons"));
	await_end(&p);
	assert_int_equal(finish(&p), 76);
}

/* How a slot samples, and what it was told before it does. */
struct case_of_sampling {
	const char *name;
	struct step_sampler params;
	uint32_t n_bias;
};

static const struct case_of_sampling samplings[] = {
	{ "greedy", { .top_p = 1, .repetition = 1 }, 0 },
	{ "warm", { .temperature = 1, .top_p = 1, .repetition = 1 }, 0 },
	{ "all cuts",
	  { .temperature = 1.5, .top_p = 0.9, .min_p = 0.01, .repetition = 1, .top_k = 40 },
	  0 },
	{ "penalties",
	  { .temperature = 2,
	    .top_p = 1,
	    .repetition = 1.4,
	    .frequency = 0.7,
	    .presence = 0.3,
	    .n_prompt = N_PROMPT },
	  0 },
	{ "penalties of the prompt alone",
	  { .temperature = 0, .top_p = 1, .repetition = 50, .n_prompt = CONTEXT },
	  0 },
	{ "biases and masked stop ids",
	  { .temperature = 0,
	    .top_p = 1,
	    .repetition = 1,
	    .n_prompt = N_PROMPT,
	    .min_tokens = 3,
	    .n_stop_ids = 2,
	    .stop_ids = { 30, 31 } },
	  3 },
};

static const struct {
	uint32_t ids[3];
	float values[3];
} biases = { { 30, 31, 33 }, { 100, 90, 80 } };

/* What slot @slot samples in @n steps; in the middle it is cut back, and fed another token. */
static void sample_some(struct bench *b, const struct case_of_sampling *c, uint32_t slot,
			uint32_t flags, uint32_t n, uint32_t *ret)
{
	struct step_sampler s = c->params;
	struct row *row;

	s.vocab_real = b->real;
	s.seed = 77;
	begin(b);
	row = feed(b, slot, 0, prompt, N_PROMPT, ROW_SAMPLE | flags);
	s.n_bias = c->n_bias;
	s.bias_off = c->n_bias ? put(b, &biases, sizeof(biases)) : 0;
	open_with(b, row, &s);
	run(b);
	for (uint32_t i = 0; i < n; i++) {
		ret[i] = b->rows[0].tokens[0];
		begin(b);
		if (i == n / 2)
			feed(b, slot, N_PROMPT + 2, prompt + 3, 1, ROW_SAMPLE | flags);
		else
			add(b, ROW_CONT, slot, ROW_SAMPLE | flags);
		run(b);
	}
}

/* On a GPU the device samples the one, and the host the other. */
static void a_sample_is_the_same_with_and_without_its_log_probability(void **state)
{
	struct bench *b = *state;
	uint32_t with[6], without[6];

	for (size_t i = 0; i < ARRAY_SIZE(samplings); i++) {
		sample_some(b, &samplings[i], i % N_SLOTS, ROW_LOGPROBS, 6, with);
		sample_some(b, &samplings[i], i % N_SLOTS, 0, 6, without);
		for (int k = 0; k < 6; k++)
			if (with[k] != without[k])
				fail_msg("%s: token %d is %u, not %u", samplings[i].name, k,
					 without[k], with[k]);
	}
	assert_int_equal(without[0], 33); /* 30 and 31 are better, but masked */
}

/* Rows of every kind in one step, which the device and the host share. */
static void rows_that_want_log_probabilities_stand_beside_others(void **state)
{
	struct bench *b = *state;
	const struct step_sampler s = greedy(b);
	uint32_t alone[4], targets[3] = { 1, 2, 3 };
	struct row *row;

	for (uint32_t slot = 0; slot < 4; slot++) {
		open_slot(b, slot, &s, 0);
		begin(b);
		feed(b, slot, N_PROMPT, prompt + slot, 3, ROW_SAMPLE | ROW_LOGPROBS);
		run(b);
		alone[slot] = b->rows[0].tokens[0];
	}
	begin(b);
	feed(b, 0, N_PROMPT, prompt, 3, ROW_SAMPLE);
	feed(b, 1, N_PROMPT, prompt + 1, 3, ROW_SAMPLE | ROW_LOGPROBS);
	row = feed(b, 2, N_PROMPT, prompt + 2, 3, ROW_SAMPLE | ROW_SCORE);
	row->targets_off = put(b, targets, sizeof(targets));
	feed(b, 3, N_PROMPT, prompt + 3, 3, ROW_SAMPLE);
	run(b);
	for (uint32_t slot = 0; slot < 4; slot++) {
		assert_int_equal(b->rows[slot].flags, RESULT_SAMPLED);
		assert_int_equal(b->rows[slot].tokens[0], alone[slot]);
	}
	assert_int_equal(b->rows[0].logprobs_off, 0);
	assert_true(b->rows[1].logprobs_off > 0 && b->rows[2].logprobs_off > 0);
}

/* Of an emulated GPU, tests/cuemu/cuemu.h; else there is none of them. */
extern const char *comm_nccl_library __attribute__((weak)); /* kernels/cuda/comm-nccl.h */
void cuemu_calls(uint64_t *ret_launches, uint64_t *ret_allocations) __attribute__((weak));

static void steps_take_no_memory_of_the_device(void **state)
{
	struct bench *b = *state;
	const struct step_move moves[] = { { 0, 0, 16, 0 }, { STEP_NO_PAGE, 20, 1, 0 } };
	uint64_t launches, before, after;
	uint32_t ids[10];

	cuemu_calls(&launches, &before);
	for (size_t i = 0; i < ARRAY_SIZE(samplings); i++)
		sample_some(b, &samplings[i], i % N_SLOTS, i % 2 ? ROW_LOGPROBS : 0, 4, ids);
	for (uint32_t n = 2; n <= N_SLOTS; n++) { /* steps of so many rows, for the first time */
		begin(b);
		for (uint32_t slot = 0; slot < n; slot++)
			add(b, ROW_CONT, slot, ROW_SAMPLE);
		run(b);
	}
	move(b, moves, 2);
	cuemu_calls(&launches, &after);
	assert_int_equal(after, before);
}

void failing_call(uint64_t nth, bool for_want_of_memory) __attribute__((weak));
uint64_t failing_made(void) __attribute__((weak));

#define MANY_SLOTS 12
#define LARGE_PAGE ((size_t)4 << 20)

/* A page each, of a pool that has a group for every eight of them: of as much of it as one context needs, if @small. */
static void sample_from_pool(struct bench *b, bool small, uint32_t ids[4][MANY_SLOTS])
{
	const struct exec_limits limits = { .n_slots = MANY_SLOTS,
					    .max_context = CONTEXT,
					    .max_batch_tokens = BATCH,
					    .pool_bytes = small ? 1 : 0 };
	const struct step_sampler s = greedy(b);

	b->exec = exec_free(b->exec);
	assert_int_equal(exec_new(b->rig.team, &b->rig.kv, &limits, &b->exec, NULL), 0);
	for (uint32_t slot = 0; slot < MANY_SLOTS; slot++) {
		const uint32_t own[] = { 40 + slot, 7 };
		struct row *row;

		begin(b);
		row = feed(b, slot, 0, own, 2, ROW_SAMPLE);
		row->n_pages = 1;
		row->pages_off = put(b, &slot, sizeof(slot));
		row->sampler_off = put(b, &s, sizeof(s));
		run(b);
		ids[0][slot] = b->rows[0].tokens[0];
	}
	for (uint32_t i = 1; i < 4; i++) {
		begin(b);
		b->used = MANY_SLOTS * sizeof(struct row);
		for (uint32_t slot = 0; slot < MANY_SLOTS; slot++)
			add(b, ROW_CONT, slot, ROW_SAMPLE | (slot % 5 == 0 ? ROW_LOGPROBS : 0));
		run(b);
		for (uint32_t slot = 0; slot < MANY_SLOTS; slot++)
			ids[i][slot] = b->rows[slot].tokens[0];
	}
}

/*
 * Of the calls that a pool without memory grows with each fails in turn for want of memory: it is as large
 * as it could become, if that is enough for a context, or says with numbers why not, and can be had later.
 */
static uint32_t grow_with_failures(struct bench *b)
{
	uint32_t n_refused = 0;

	for (uint64_t nth = 1;; nth++) {
		struct err err = { 0 };
		struct team_pool pool;
		bool was_due;
		int r;

		assert_int_equal(exec_resize(b->exec, 0, NULL), 0);
		failing_call(nth, true);
		r = exec_resize(b->exec, UINT64_MAX, &err);
		was_due = failing_made() >= nth;
		failing_call(0, false);
		pool = team_pool(b->rig.team);
		assert_null(dev_lost());
		if (r < 0) {
			assert_int_equal(r, -ENOMEM);
			assert_non_null(strstr(err.text, "one context needs"));
			assert_true(pool.bytes < pool.most_bytes);
			n_refused++;
		} else {
			assert_true(pool.bytes >= pool.least_bytes);
			assert_true(pool.bytes == pool.most_bytes || was_due);
		}
		assert_int_equal(exec_resize(b->exec, UINT64_MAX, NULL), 0);
		assert_int_equal(team_pool(b->rig.team).bytes, pool.most_bytes);
		if (!was_due)
			return n_refused;
	}
}

static void what_does_not_fit_a_small_pool_is_computed_in_turn(void **state)
{
	struct bench *b = *state;
	const struct kv_cache before = b->rig.kv;
	uint32_t whole[4][MANY_SLOTS], small[4][MANY_SLOTS];
	struct kv_cache *kv = &b->rig.kv;
	struct team_pool pool;
	uint64_t whole_bytes;
	uint32_t n_refused;

	while (kv_page_bytes(kv) % LARGE_PAGE) /* of each rank whole granules */
		kv->page_tokens *= 2;
	whole_bytes = N_PAGES * kv_page_bytes(kv);
	kv->base = calloc(kv->n_pages, kv_page_bytes(kv));
	assert_non_null(kv->base);
	sample_from_pool(b, false, whole);
	assert_int_equal(team_pages(b->rig.team), UINT32_MAX);
	assert_true(team_pool(b->rig.team).bytes >= whole_bytes);
	sample_from_pool(b, true, small);
	assert_memory_equal(whole, small, sizeof(whole));
	pool = team_pool(b->rig.team);
	assert_int_equal(pool.bytes, pool.least_bytes);
	assert_true(team_pages(b->rig.team) < MANY_SLOTS);
	/* given back, and back: slots go on where they were */
	assert_int_equal(exec_resize(b->exec, 0, NULL), 0);
	assert_int_equal(team_pool(b->rig.team).bytes, 0);
	assert_int_equal(exec_resize(b->exec, UINT64_MAX, NULL), 0);
	assert_true(team_pool(b->rig.team).bytes >= whole_bytes);
	n_refused = grow_with_failures(b);
	print_message("%u of the calls to grow with were refused\n", n_refused);
	assert_true(n_refused > 0);
	go_on(b, 3);
	small[0][0] = b->rows[0].tokens[0];
	sample_from_pool(b, false, whole);
	go_on(b, 3);
	assert_int_equal(b->rows[0].tokens[0], small[0][0]);
	b->exec = exec_free(b->exec);
	free(kv->base);
	*kv = before;
}

#define TOO_MANY_PAGES 400 /* of LARGE_PAGE, for a card of 1 GiB */

/* Scratch, samplers and recorded steps have what they need, and the driver is left some. */
static void a_pool_larger_than_the_card_is_as_large_as_it_can_be(void **state)
{
	struct bench *b = *state;
	const struct kv_cache before = b->rig.kv;
	uint32_t whole[4][MANY_SLOTS], cut[4][MANY_SLOTS];
	struct kv_cache *kv = &b->rig.kv;
	struct team_pool pool;

	while (kv_page_bytes(kv) % LARGE_PAGE)
		kv->page_tokens *= 2;
	kv->base = calloc(TOO_MANY_PAGES, kv_page_bytes(kv));
	assert_non_null(kv->base);
	sample_from_pool(b, false, whole);
	kv->n_pages = TOO_MANY_PAGES;
	setenv("CUEMU_GIB", "1", 1);
	sample_from_pool(b, false, cut);
	assert_memory_equal(whole, cut, sizeof(whole));
	pool = team_pool(b->rig.team);
	assert_true(pool.bytes < ((uint64_t)1 << 30) - MIRROR_SPARE_BYTES);
	assert_true(pool.bytes + MIRROR_SPARE_BYTES > (uint64_t)1 << 29);
	assert_int_equal(exec_resize(b->exec, pool.least_bytes, NULL), 0);
	assert_int_equal(team_pool(b->rig.team).bytes, pool.least_bytes);
	assert_int_equal(exec_resize(b->exec, UINT64_MAX, NULL), 0);
	assert_int_equal(team_pool(b->rig.team).bytes, pool.bytes);
	unsetenv("CUEMU_GIB");
	b->exec = exec_free(b->exec);
	free(kv->base);
	*kv = before;
}

#define KERNELS_PER_LAYER 6 /* of a step of one row */

static uint64_t kernels_of_step(struct bench *b, uint32_t n_rows)
{
	uint64_t before, after, allocations;

	for (int i = 0; i < 2; i++) { /* the first may record */
		cuemu_calls(&before, &allocations);
		begin(b);
		b->used = n_rows * sizeof(struct row);
		for (uint32_t slot = 0; slot < n_rows; slot++)
			add(b, ROW_CONT, slot, ROW_SAMPLE);
		run(b);
		cuemu_calls(&after, &allocations);
	}
	return after - before;
}

static void a_step_is_few_kernels(void **state)
{
	struct bench *b = *state;
	const uint32_t layers = b->rig.weights->config.layers;
	const uint32_t dense = b->rig.weights->config.dense_layers;
	uint32_t ids[4][MANY_SLOTS];
	uint64_t one, many;

	sample_from_pool(b, false, ids);
	one = kernels_of_step(b, 1);
	many = kernels_of_step(b, MANY_SLOTS);
	print_message("%llu kernels of %u layers, %llu of several rows\n", (unsigned long long)one,
		      layers, (unsigned long long)many);
	assert_true(one <= layers * KERNELS_PER_LAYER + MEMPLAN_KERNELS_AROUND);
	/* a dense layer has no router and no lists */
	assert_true(many <=
		    layers * MEMPLAN_KERNELS_PER_LAYER - 2 * dense + MEMPLAN_KERNELS_AROUND);
}

#define FAILURES 24 /* spread over all calls of a life */

/* Loads, computes a prompt, a token more, and sums a page; as far as nothing fails. */
static int live(struct bench *b)
{
	const struct step_move sum = { 0, 0, 16, 0 };
	const struct step moves = { .kind = STEP_MOVE, .n_rows = 1, .payload_bytes = sizeof(sum) };
	const struct step_sampler s = greedy(b);
	int r;

	r = rig_open_team("air", isa_best(), 1, 1, BATCH, N_PAGES, &b->rig);
	if (r == 0)
		r = make_exec(b);
	if (r < 0)
		return r;
	assert_int_equal(ring_new(&b->ring, NULL), 0);
	begin(b);
	open_with(b, feed(b, 0, 0, prompt, N_PROMPT, ROW_SAMPLE), &s);
	push(b);
	r = exec_drain(b->exec, &b->ring, NULL);
	if (r > 0) {
		take(b);
		begin(b);
		add(b, ROW_CONT, 0, ROW_SAMPLE);
		push(b);
		r = exec_drain(b->exec, &b->ring, NULL);
	}
	if (r > 0) {
		take(b);
		memcpy(ring_stage(&b->ring), &sum, sizeof(sum));
		ring_push(&b->ring, &moves);
		r = exec_drain(b->exec, &b->ring, NULL);
	}
	return MIN(r, 0);
}

static void die(struct bench *b)
{
	exec_free(b->exec);
	ring_deinit(&b->ring);
	rig_close(&b->rig);
	free(b->room);
	*b = (struct bench){ .real = 496 };
	b->room = malloc(STEP_RESULT_BYTES);
}

/* A failing call ends what is under way with an error, of a device that is lost or of memory, and never in another way. */
static void any_call_of_the_driver_may_fail(void **state)
{
	struct bench b = { 0 };
	uint64_t n_calls;
	int n_told = 0;

	(void)state;
	die(&b);
	failing_call(0, false);
	assert_int_equal(live(&b), 0);
	n_calls = failing_made();
	assert_true(n_calls > 100);
	for (int memory = 0; memory < 2; memory++) {
		for (uint64_t i = 0; i < FAILURES; i++) {
			int r;

			die(&b);
			failing_call(1 + i * (n_calls - 1) / (FAILURES - 1), memory);
			r = live(&b);
			n_told += r < 0;
			if (r < 0 && r != -ENOMEM && r != -EIO && r != -ENODEV)
				fail_msg("a call that fails is %s", strerror(-r));
			if (!memory)
				assert_true((dev_lost() != NULL) == (r < 0));
		}
	}
	/* all but what is only quicker if it succeeds */
	assert_true(n_told >= 2 * FAILURES - 6);
	die(&b);
	failing_call(0, false);
	assert_int_equal(live(&b), 0);
	die(&b);
	free(b.room);
}

#define TESTS(TEST)                                                                                \
	TEST(a_slot_goes_on_from_what_it_sampled)                                                  \
	TEST(two_steps_in_flight_give_two_tokens)                                                  \
	TEST(a_feed_below_the_length_cuts_the_slot_there)                                          \
	TEST(a_cut_forgets_what_was_penalised)                                                     \
	TEST(rows_of_a_batch_do_not_see_each_other)                                                \
	TEST(a_stop_id_ends_the_slot_until_it_is_fed)                                              \
	TEST(a_slot_without_a_sample_does_not_go_on)                                               \
	TEST(scores_are_the_log_probabilities_of_the_targets)                                      \
	TEST(a_sample_comes_with_its_log_probability)                                              \
	TEST(a_sample_is_the_same_with_and_without_its_log_probability)                            \
	TEST(rows_that_want_log_probabilities_stand_beside_others)                                 \
	TEST(a_slot_goes_on_from_pages_that_are_known)                                             \
	TEST(a_process_loads_computes_and_leaves_with_its_broker)                                  \
	TEST(a_process_refuses_what_it_cannot_load_with_a_sentence)

/* Of what does not depend on the device; or of pages that are written in the arena, see test-mirror. */
#define TESTS_ON_HOST(TEST)                                                                        \
	TEST(moves_copy_clear_and_sum)                                                             \
	TEST(malformed_moves_are_named)                                                            \
	TEST(malformed_steps_are_named_and_touch_nothing)

#define ON_ONE(test) cmocka_unit_test_setup_teardown(test, setup, teardown),
#define ON_TWO(test) { #test "_on_two_ranks", test, setup_two, teardown, NULL },

int main(void)
{
	const struct CMUnitTest one[] = { TESTS(ON_ONE) }, two[] = { TESTS(ON_TWO) };
	const struct CMUnitTest host[] = { TESTS_ON_HOST(ON_ONE) TESTS_ON_HOST(ON_TWO) };
	const struct CMUnitTest device[] = {
		ON_ONE(steps_take_no_memory_of_the_device)
			ON_TWO(steps_take_no_memory_of_the_device) cmocka_unit_test_setup_teardown(
				a_step_is_few_kernels, setup_air, teardown),
		cmocka_unit_test_setup_teardown(
			a_pool_larger_than_the_card_is_as_large_as_it_can_be, setup_air, teardown),
		ON_ONE(what_does_not_fit_a_small_pool_is_computed_in_turn)
			ON_TWO(what_does_not_fit_a_small_pool_is_computed_in_turn)
	};
	const struct CMUnitTest failing[] = { cmocka_unit_test(any_call_of_the_driver_may_fail) };
	int n_failed;

	setenv("CUEMU_DEVICES", "2",
	       0); /* where GPUs are emulated, they speak to each other through this: */
	if (&comm_nccl_library)
		comm_nccl_library = "tests/cuemu/.libs/fake-nccl.so";
	n_failed = cmocka_run_group_tests(one, NULL, NULL);
	n_failed += cmocka_run_group_tests(two, NULL, NULL);
	if (failing_call)
		n_failed += cmocka_run_group_tests(failing, NULL, NULL);
	if (cuemu_calls)
		n_failed += cmocka_run_group_tests(device, NULL, NULL);
	if (isa_best() != ISA_CUDA)
		n_failed += cmocka_run_group_tests(host, NULL, NULL);
	return n_failed;
}
