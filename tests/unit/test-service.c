/*
 * The executor as a process, asleep and awake: what it answers to orders, what
 * it gives back, what it still knows, and which model it wakes up with.
 */
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "client/wire/control.h"
#include "daemon/exec/service.h"
#include "daemon/exec/weights/checkpoint.h"
#include "tests/unit/edited.h"
#include "client/wire/step.h"

#define MODEL "w4all"
#define N_PAGES 8
#define PAGE_TOKENS 16
#define SHARD "model.safetensors"

struct process {
	struct edited model;
	uint32_t n_ranks;
	pid_t pid;
	int control_fd, arena_fd;
	struct ring ring;
	struct control_ready ready;
	uint32_t n_progress; /* packets before the last answer */
	uint32_t n_told;     /* and before the refusal */
};

static void send_configure(struct process *p, struct control_configure *c)
{
	const int fds[] = { p->arena_fd, p->ring.memfd, p->ring.down_fd, p->ring.up_fd };
	struct iovec iov = { c, sizeof(*c) };
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(fds))];
	} control = { 0 };
	struct msghdr m = { .msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = &control,
			    .msg_controllen = sizeof(control) };
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);

	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(h), fds, sizeof(fds));
	assert_int_equal(sendmsg(p->control_fd, &m, 0), sizeof(*c));
}

/* An executor of the model in @p's directory; @fingerprint that it must have, or NULL. */
static void start(struct process *p, const uint8_t *fingerprint)
{
	_cleanup_(checkpoint_freep) struct checkpoint *checkpoint = NULL;
	struct control_configure c = {
		.kind = CONTROL_CONFIGURE,
		.version = CONTROL_VERSION,
		.n_pages = N_PAGES,
		.page_tokens = PAGE_TOKENS,
		.n_slots = 2,
		.max_context = N_PAGES * PAGE_TOKENS,
		.max_batch_tokens = 64,
		.n_threads = 2,
		.n_ranks = p->n_ranks,
		.isa = "auto",
	};
	int ends[2];

	assert_int_equal(checkpoint_open(p->model.dir, &checkpoint, NULL), 0);
	c.page_bytes_lo = (uint32_t)config_kv_bytes(&checkpoint->config, 2) * PAGE_TOKENS;
	c.arena_bytes = (uint64_t)N_PAGES * c.page_bytes_lo;
	if (fingerprint)
		memcpy(c.fingerprint, fingerprint, sizeof(c.fingerprint));
	snprintf(c.model, sizeof(c.model), "%s", p->model.dir);

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	assert_int_equal(ring_new(&p->ring, NULL), 0);
	p->arena_fd = memfd_create("arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(p->arena_fd, (off_t)c.arena_bytes), 0);
	assert_int_equal(fcntl(p->arena_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
	p->pid = fork();
	if (p->pid == 0) {
		close(ends[0]);
		_exit(service_run(ends[1], NULL));
	}
	close(ends[1]);
	p->control_fd = ends[0];
	send_configure(p, &c);
}

/* The next packet that is no progress; 0: the process has gone. */
static uint32_t receive(struct process *p, void *packet, size_t bytes)
{
	uint32_t kind;
	ssize_t n;

	p->n_progress = 0;
	for (;; p->n_progress++) {
		n = recv(p->control_fd, packet, bytes, 0);
		if (n <= 0)
			return 0;
		memcpy(&kind, packet, sizeof(kind));
		if (kind != CONTROL_PROGRESS)
			return kind;
	}
}

static void begin_ranks(struct process *p, const char *model, uint32_t n_ranks)
{
	memset(p, 0, sizeof(*p));
	p->n_ranks = n_ranks;
	edited_open(&p->model, model);
	start(p, NULL);
	assert_int_equal(receive(p, &p->ready, sizeof(p->ready)), CONTROL_READY);
}

static void begin(struct process *p)
{
	begin_ranks(p, MODEL, 1);
}

/* Lets go of the process and returns its exit code. */
static int leave(struct process *p)
{
	int status;

	close(p->control_fd);
	assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
	close(p->arena_fd);
	ring_deinit(&p->ring);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void finish(struct process *p)
{
	assert_int_equal(leave(p), SERVICE_EXIT_FAULT);
	edited_close(&p->model);
}

static void order(struct process *p, uint32_t kind)
{
	const struct control_order o = { .kind = kind };

	assert_int_equal(send(p->control_fd, &o, sizeof(o), 0), sizeof(o));
}

static struct control_parked park(struct process *p)
{
	struct control_parked parked;

	order(p, CONTROL_PARK);
	assert_int_equal(receive(p, &parked, sizeof(parked)), CONTROL_PARKED);
	return parked;
}

static void wake(struct process *p)
{
	order(p, CONTROL_WAKE);
	assert_int_equal(receive(p, &p->ready, sizeof(p->ready)), CONTROL_READY);
}

/* The payload of one row for slot 0: behind the row its tokens, its pages and a greedy sampler. */
static void push(struct process *p, const uint32_t *tokens, uint16_t n_tokens)
{
	char *to = ring_stage(&p->ring);
	struct step step = { .kind = n_tokens ? STEP_MIXED : STEP_DECODE, .n_rows = 1 };
	struct row row = { .kind = n_tokens ? ROW_FEED : ROW_CONT,
			   .n_tokens = n_tokens,
			   .flags = ROW_SAMPLE };
	const struct step_sampler sampler = {
		.repetition = 1, .top_p = 1, .vocab_real = 64, .n_prompt = n_tokens
	};
	uint32_t at = (uint32_t)sizeof(row) + 64;

	assert_non_null(to);
	memset(to, 0, 1024);
	if (n_tokens) {
		row.tokens_off = at;
		memcpy(to + at, tokens, n_tokens * sizeof(*tokens));
		row.pages_off = at + 64;
		row.n_pages = 2;
		memcpy(to + row.pages_off, (uint32_t[]){ 3, 5 }, 8);
		row.sampler_off = (at + 64 + 16 + 7) / 8 * 8;
		memcpy(to + row.sampler_off, &sampler, sizeof(sampler));
	}
	memcpy(to, &row, sizeof(row));
	step.payload_bytes = 1024;
	ring_push(&p->ring, &step);
}

static uint32_t take(struct process *p)
{
	struct pollfd bell = { .fd = p->ring.up_fd, .events = POLLIN };
	const struct step_result *result;
	struct row_result row;
	const void *payload;

	while (!(result = ring_result(&p->ring, &payload)))
		assert_true(poll(&bell, 1, 60000) > 0);
	assert_int_equal(result->error, 0);
	memcpy(&row, payload, sizeof(row));
	assert_int_equal(row.n_tokens, 1);
	ring_take(&p->ring);
	return row.tokens[0];
}

static const uint32_t prompt[] = { 7, 3, 11, 20, 5 };

static void expect_weights_back_and_again(const char *model, uint32_t n_ranks)
{
	struct control_parked parked;
	struct process p;
	uint8_t fingerprint[CONTROL_FINGERPRINT_BYTES];

	begin_ranks(&p, model, n_ranks);
	assert_true(p.ready.resident_bytes >= p.ready.weight_bytes);
	memcpy(fingerprint, p.ready.fingerprint, sizeof(fingerprint));
	parked = park(&p);
	assert_in_range(parked.freed_bytes, p.ready.weight_bytes * 9 / 10, p.ready.resident_bytes);
	assert_in_range(parked.resident_bytes, 1,
			p.ready.resident_bytes - p.ready.weight_bytes * 9 / 10);
	wake(&p);
	assert_true(p.n_progress > 0);
	assert_true(p.ready.load_us > 0);
	assert_memory_equal(p.ready.fingerprint, fingerprint, sizeof(fingerprint));
	finish(&p);
}

static void a_parked_executor_gives_its_weights_back_and_gets_them_again(void **state)
{
	(void)state;
	expect_weights_back_and_again(MODEL, 1);
	expect_weights_back_and_again("bf16", 2);
}

static void expect_to_go_on(const char *model, uint32_t n_ranks)
{
	struct process p;
	uint32_t wanted[4];

	begin_ranks(&p, model, n_ranks);
	push(&p, prompt, ARRAY_SIZE(prompt));
	for (uint32_t i = 0; i < 4; i++) {
		wanted[i] = take(&p);
		push(&p, NULL, 0);
	}
	take(&p);

	push(&p, prompt, ARRAY_SIZE(prompt));
	for (uint32_t i = 0; i < 4; i++) {
		assert_int_equal(take(&p), wanted[i]);
		park(&p);
		wake(&p);
		if (i < 3)
			push(&p, NULL, 0);
	}
	finish(&p);
}

static void a_slot_goes_on_after_sleep_as_if_there_had_been_none(void **state)
{
	(void)state;
	expect_to_go_on(MODEL, 1);
	expect_to_go_on("bf16", 2);
}

static void steps_pushed_before_the_order_are_done_before_it(void **state)
{
	struct process p;

	(void)state;
	begin(&p);
	for (uint32_t i = 0; i < 20; i++) {
		push(&p, prompt, ARRAY_SIZE(prompt));
		push(&p, NULL, 0);
		park(&p);
		assert_int_equal(ring_in_flight(&p.ring), 2);
		assert_non_null(ring_result(&p.ring, &(const void *){ NULL }));
		take(&p);
		assert_non_null(
			ring_result(&p.ring, &(const void *){ NULL })); /* the second, too */
		take(&p);
		wake(&p);
	}
	finish(&p);
}

static void an_order_that_comes_twice_is_answered_twice(void **state)
{
	struct process p;

	(void)state;
	begin(&p);
	wake(&p); /* awake */
	assert_int_equal(p.n_progress, 0);
	assert_true(park(&p).freed_bytes > 0);
	assert_int_equal(park(&p).freed_bytes, 0);
	wake(&p);
	assert_true(p.n_progress > 0);
	wake(&p);
	assert_int_equal(p.n_progress, 0);
	push(&p, prompt, ARRAY_SIZE(prompt));
	take(&p);
	finish(&p);
}

static void a_parked_executor_leaves_with_its_broker(void **state)
{
	struct process p;

	(void)state;
	begin(&p);
	park(&p);
	finish(&p);
}

static void is_refused(struct process *p, int error, const char *sentence)
{
	struct control_refused refused;

	assert_int_equal(receive(p, &refused, sizeof(refused)), CONTROL_REFUSED);
	p->n_told = p->n_progress;
	assert_int_equal(refused.error, error);
	if (!strstr(refused.text, sentence))
		fail_msg("'%s' is not in '%s'", sentence, refused.text);
	assert_int_equal(receive(p, &refused, sizeof(refused)), 0);
	assert_int_equal(leave(p), SERVICE_EXIT_MODEL);
}

static void a_model_that_changed_in_its_sleep_is_refused(void **state)
{
	const uint16_t other = 0x3f00;
	struct process p;

	(void)state;
	begin(&p);
	park(&p);
	edited_json(&p.model, "config.json", "rms_norm_eps", "1e-3");
	order(&p, CONTROL_WAKE);
	is_refused(&p, -ESTALE,
		   "is not the model that was loaded before: 'config.json' is another");
	assert_int_equal(p.n_told, 0); /* nothing was read for that */
	edited_close(&p.model);

	begin(&p);
	park(&p);
	edited_poke(&p.model, SHARD, "model.norm.weight", 0, &other, 2);
	order(&p, CONTROL_WAKE);
	is_refused(&p, -ESTALE, "is not the model that was loaded before");
	edited_close(&p.model);
}

static void a_copy_of_the_model_is_the_model(void **state)
{
	_cleanup_(freep) char *data = NULL;
	struct process p;
	size_t len;

	(void)state;
	begin(&p);
	park(&p);
	data = edited_read(edited_path(&p.model, SHARD), &len);
	edited_write(&p.model, SHARD, data, len); /* another inode, another time */
	wake(&p);
	finish(&p);
}

static void the_fingerprint_it_was_configured_with_must_be_its_own(void **state)
{
	uint8_t fingerprint[CONTROL_FINGERPRINT_BYTES];
	struct process p;

	(void)state;
	begin(&p);
	memcpy(fingerprint, p.ready.fingerprint, sizeof(fingerprint));
	leave(&p);
	start(&p, fingerprint);
	assert_int_equal(receive(&p, &p.ready, sizeof(p.ready)), CONTROL_READY);
	leave(&p);
	fingerprint[3] ^= 1;
	start(&p, fingerprint);
	is_refused(&p, -ESTALE, "is not the model that was loaded before");
	edited_close(&p.model);
}

static void a_packet_that_is_no_order_ends_it(void **state)
{
	struct control_ready rest;
	struct process p;

	(void)state;
	begin(&p);
	order(&p, CONTROL_READY);
	assert_int_equal(receive(&p, &rest, sizeof(rest)), 0);
	assert_int_equal(leave(&p), SERVICE_EXIT_PROTOCOL);
	edited_close(&p.model);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_parked_executor_gives_its_weights_back_and_gets_them_again),
		cmocka_unit_test(a_slot_goes_on_after_sleep_as_if_there_had_been_none),
		cmocka_unit_test(steps_pushed_before_the_order_are_done_before_it),
		cmocka_unit_test(an_order_that_comes_twice_is_answered_twice),
		cmocka_unit_test(a_parked_executor_leaves_with_its_broker),
		cmocka_unit_test(a_model_that_changed_in_its_sleep_is_refused),
		cmocka_unit_test(a_copy_of_the_model_is_the_model),
		cmocka_unit_test(the_fingerprint_it_was_configured_with_must_be_its_own),
		cmocka_unit_test(a_packet_that_is_no_order_ends_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
