/* The step ring: order, depth, adoption, and memory that somebody has tampered with. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "client/wire/step.h"

static int setup(void **state)
{
	static struct ring ring;

	*state = &ring;
	return ring_new(&ring, NULL);
}

static int teardown(void **state)
{
	ring_deinit(*state);
	return 0;
}

static uint64_t push(struct ring *ring, const char *text)
{
	struct step step = { .kind = STEP_DECODE, .payload_bytes = strlen(text) + 1 };
	char *room = ring_stage(ring);

	assert_non_null(room);
	strcpy(room, text);
	return ring_push(ring, &step);
}

/* What an executor does: answers the oldest step with its payload, twice over. */
static void work(struct ring *ring)
{
	const void *payload;
	const struct step *step = ring_next(ring, &payload);
	struct step_result result;

	assert_non_null(step);
	result = (struct step_result){ .id = step->id, .payload_bytes = 2 * step->payload_bytes };
	snprintf(ring_result_room(ring), STEP_RESULT_BYTES, "%s%s", (const char *)payload,
		 (const char *)payload);
	ring_done(ring, &result);
}

static void expect_result(struct ring *ring, uint64_t id, const char *text)
{
	const void *payload;
	const struct step_result *result = ring_result(ring, &payload);

	assert_non_null(result);
	assert_int_equal(result->id, id);
	assert_string_equal(payload, text);
	ring_take(ring);
}

static uint64_t rung(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	uint64_t n = 0;

	if (poll(&p, 1, 0) == 1)
		assert_int_equal(read(fd, &n, sizeof(n)), sizeof(n));
	return n;
}

static void steps_come_in_order_and_results_too(void **state)
{
	struct ring *ring = *state;
	const void *payload;

	assert_null(ring_next(ring, &payload));
	assert_null(ring_result(ring, &payload));
	for (uint64_t id = 1; id < 20; id += 2) {
		assert_int_equal(push(ring, "ab"), id);
		assert_int_equal(push(ring, "cde"), id + 1);
		work(ring);
		work(ring);
		assert_null(ring_next(ring, &payload));
		expect_result(ring, id, "abab");
		expect_result(ring, id + 1, "cdecde");
		assert_null(ring_result(ring, &payload));
	}
}

static void two_steps_are_in_flight_until_a_result_is_taken(void **state)
{
	struct ring *ring = *state;

	push(ring, "a");
	assert_int_equal(ring_in_flight(ring), 1);
	push(ring, "b");
	assert_int_equal(ring_in_flight(ring), 2);
	assert_null(ring_stage(ring));
	work(ring);
	assert_null(ring_stage(ring));
	expect_result(ring, 1, "aa");
	assert_int_equal(ring_in_flight(ring), 1);
	assert_non_null(ring_stage(ring));
}

static void a_bell_rings_once_for_each_step_and_result(void **state)
{
	struct ring *ring = *state;

	assert_int_equal(rung(ring->down_fd), 0);
	push(ring, "a");
	push(ring, "b");
	assert_int_equal(rung(ring->down_fd), 2);
	assert_int_equal(rung(ring->up_fd), 0);
	work(ring);
	assert_int_equal(rung(ring->up_fd), 1);
}

static struct ring map_again(const struct ring *ring)
{
	struct ring again;

	assert_int_equal(
		ring_map(dup(ring->memfd), dup(ring->down_fd), dup(ring->up_fd), &again, NULL), 0);
	return again;
}

static void a_second_life_finds_the_positions_of_the_first(void **state)
{
	struct ring *first = *state, broker, executor;

	push(first, "a");
	push(first, "b");
	work(first);

	broker = map_again(first);
	assert_int_equal(ring_in_flight(&broker), 2);
	expect_result(&broker, 1, "aa");
	assert_int_equal(push(&broker, "c"), 3);

	executor = map_again(first);
	work(&executor);
	work(&executor);
	expect_result(&broker, 2, "bb");
	expect_result(&broker, 3, "cc");
	ring_deinit(&broker);
	ring_deinit(&executor);
}

static void another_process_answers_and_its_death_leaves_the_result(void **state)
{
	struct ring *ring = *state;
	pid_t pid;
	int status;

	pid = fork();
	if (pid == 0) {
		uint64_t n;

		if (read(ring->down_fd, &n, sizeof(n)) != sizeof(n))
			_exit(1);
		work(ring);
		_exit(0);
	}
	push(ring, "over there");
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	expect_result(ring, 1, "over thereover there");
}

static void memory_cannot_be_resized(void **state)
{
	struct ring *ring = *state;

	assert_int_equal(ftruncate(ring->memfd, 0), -1);
	assert_int_equal(ftruncate(ring->memfd, 100 << 20), -1);
	assert_int_equal(errno, EPERM);
}

static void expect_refusal(int memfd, const char *text)
{
	struct ring ret;
	struct err err = { 0 };

	assert_int_equal(ring_map(memfd, -1, -1, &ret, &err), -EBADMSG);
	assert_string_equal(err.text, text);
}

static void memory_of_another_kind_is_refused(void **state)
{
	const struct ring *ring = *state;
	_cleanup_(closep) int small = memfd_create("small", MFD_CLOEXEC);
	_cleanup_(closep) int open = memfd_create("open", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint64_t *words = (uint64_t *)ring->shared;

	assert_int_equal(ftruncate(small, 4096), 0);
	expect_refusal(small, "the step ring has 4096 bytes; 4195008 are wanted");
	assert_int_equal(ftruncate(open, ring->bytes), 0);
	expect_refusal(open, "the step ring is not sealed against resizing");

	words[0]++;
	expect_refusal(ring->memfd, "the step ring is not of this version of steamd");
	words[0]--;
	words[1]++;
	expect_refusal(ring->memfd, "the step ring is not of this version of steamd");
	words[1]--;
	words[16] = 1; /* done, with nothing pushed */
	expect_refusal(ring->memfd, "the step ring's positions contradict each other");
	words[16] = 0;
}

static void expect_refused_bells(const struct ring *ring, int down_fd, int up_fd, const char *text)
{
	struct ring ret;
	struct err err = { 0 };

	assert_int_equal(ring_map(ring->memfd, down_fd, up_fd, &ret, &err), -EBADMSG);
	assert_string_equal(err.text, text);
}

static void doorbells_of_another_kind_are_refused(void **state)
{
	static const char none[] = "a doorbell of the step ring is no eventfd",
			  other[] = "a doorbell of the step ring is not the one it was made with";
	const struct ring *ring = *state;
	_cleanup_(closep) int memory = memfd_create("bell", MFD_CLOEXEC);
	_cleanup_(closep) int bell = eventfd(0, EFD_CLOEXEC);

	expect_refused_bells(ring, memory, ring->up_fd, none);
	expect_refused_bells(ring, ring->down_fd, memory, none);
	expect_refused_bells(ring, -1, ring->up_fd, none);
	expect_refused_bells(ring, bell, ring->up_fd, other);
	expect_refused_bells(ring, ring->down_fd, bell, other);
	expect_refused_bells(ring, ring->up_fd, ring->down_fd, other);
}

static void counts_beyond_what_can_be_are_no_steps_and_no_results(void **state)
{
	struct ring *ring = *state;
	uint64_t *words = (uint64_t *)ring->shared;
	const void *payload;

	push(ring, "a");
	words[16] = 2; /* done: one more than was pushed */
	assert_null(ring_result(ring, &payload));
	words[16] = UINT64_MAX;
	assert_null(ring_result(ring, &payload));
	words[16] = 0;
	words[8] = 3; /* pushed: more than the depth */
	assert_null(ring_next(ring, &payload));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(steps_come_in_order_and_results_too, setup,
						teardown),
		cmocka_unit_test_setup_teardown(two_steps_are_in_flight_until_a_result_is_taken,
						setup, teardown),
		cmocka_unit_test_setup_teardown(a_bell_rings_once_for_each_step_and_result, setup,
						teardown),
		cmocka_unit_test_setup_teardown(a_second_life_finds_the_positions_of_the_first,
						setup, teardown),
		cmocka_unit_test_setup_teardown(
			another_process_answers_and_its_death_leaves_the_result, setup, teardown),
		cmocka_unit_test_setup_teardown(memory_cannot_be_resized, setup, teardown),
		cmocka_unit_test_setup_teardown(memory_of_another_kind_is_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(doorbells_of_another_kind_are_refused, setup,
						teardown),
		cmocka_unit_test_setup_teardown(
			counts_beyond_what_can_be_are_no_steps_and_no_results, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
