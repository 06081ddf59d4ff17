/* Frames over a real socketpair, with the cuts, limits and descriptors that a peer can choose. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "client/wire/frame.h"

struct pair {
	int a, b;
	struct frame_in in;
	struct frame_out out;
};

static int make_pair(void **state)
{
	struct pair *p = calloc(1, sizeof(*p));
	int fds[2];

	if (!p || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		return -1;
	p->a = fds[0];
	p->b = fds[1];
	frame_in_init(&p->in, 1000);
	frame_out_init(&p->out);
	*state = p;
	return 0;
}

static int drop_pair(void **state)
{
	struct pair *p = *state;

	frame_in_deinit(&p->in);
	frame_out_deinit(&p->out);
	closep(&p->a);
	closep(&p->b);
	free(p);
	return 0;
}

/* A frame of @n bytes 'x'. */
static char *make_frame(uint32_t n)
{
	char *frame = malloc(n + 4);

	assert_non_null(frame);
	memcpy(frame, &n, 4);
	memset(frame + 4, 'x', n);
	return frame;
}

static void a_frame_sent_byte_by_byte_arrives_once(void **state)
{
	static const char bytes[] = "\x03\0\0\0abc\x00\0\0\0\x01\0\0\0z";
	struct pair *p = *state;
	int n_frames = 0;
	struct span got;

	for (size_t i = 0; i < sizeof(bytes) - 1; i++) {
		assert_int_equal(write(p->a, bytes + i, 1), 1);
		assert_int_equal(frame_in_read(&p->in, p->b), 1);
		while (frame_in_next(&p->in, &got, NULL) > 0) {
			assert_int_equal(got.len, n_frames == 0 ? 3 : n_frames == 1 ? 0 : 1);
			n_frames++;
			assert_int_equal(i, n_frames == 1 ? 6 : n_frames == 2 ? 10 : 15);
		}
	}
	assert_int_equal(n_frames, 3);
	assert_int_equal(frame_in_read(&p->in, p->b), -EAGAIN);
	closep(&p->a);
	p->a = -1;
	assert_int_equal(frame_in_read(&p->in, p->b), 0);
}

static void the_limit_holds_and_one_past_it_is_refused_unallocated(void **state)
{
	struct pair *p = *state;
	_cleanup_(freep) char *most = make_frame(1000);
	struct err err = { 0 };
	struct span got;

	assert_int_equal(write(p->a, most, 1004), 1004);
	assert_int_equal(frame_in_read(&p->in, p->b), 1004);
	assert_int_equal(frame_in_next(&p->in, &got, &err), 1);
	assert_int_equal(got.len, 1000);
	assert_int_equal(write(p->a, "\xe9\x03\0\0", 4), 4);
	assert_int_equal(frame_in_read(&p->in, p->b), 4);
	assert_int_equal(frame_in_next(&p->in, &got, &err), -EMSGSIZE);
	assert_string_equal(err.text, "a frame of 1001 bytes; at most 1000 are accepted");
	assert_true(p->in.cap < 200000);
}

static void a_reader_who_takes_nothing_holds_a_bounded_buffer(void **state)
{
	struct pair *p = *state;
	_cleanup_(freep) char *frame = make_frame(996);
	ssize_t n;

	for (;;) {
		while (send(p->a, frame, 1000, MSG_DONTWAIT) > 0)
			;
		n = frame_in_read(&p->in, p->b);
		if (n < 0)
			break;
	}
	assert_int_equal(n, -ENOBUFS);
	assert_true(p->in.cap <= 1000 + 4 + 65536);
}

static int send_fails; /* the next one, with this */

/* Stands before libc's. */
ssize_t send(int fd, const void *data, size_t n, int flags)
{
	if (send_fails) {
		errno = send_fails;
		send_fails = 0;
		return -1;
	}
	return sendto(fd, data, n, flags, NULL, 0);
}

static void a_kernel_without_memory_is_asked_again(void **state)
{
	struct pair *p = *state;

	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(frame_out_push(&p->out, make_frame(5), 9, -1), 0);
		send_fails = i == 0 ? ENOBUFS : ENOMEM;
		assert_int_equal(frame_out_flush(&p->out, p->a, SIZE_MAX), 0);
		assert_int_equal(send_fails, 0);
		assert_int_equal(frame_out_flush(&p->out, p->a, SIZE_MAX), 1);
		assert_int_equal(frame_in_read(&p->in, p->b), 9);
	}
}

static void a_full_socket_keeps_the_rest_in_order(void **state)
{
	struct pair *p = *state;
	size_t got = 0;
	struct span payload;
	int r, n_frames = 0;

	frame_in_deinit(&p->in);
	frame_in_init(&p->in, 1 << 20);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(frame_out_push(&p->out, make_frame(100000 + i), 100004 + i, -1),
				 0);
	assert_int_equal(p->out.queued_bytes, 8 * 100004 + 28);
	assert_int_equal(frame_out_flush(&p->out, p->a, 10), 0);
	assert_int_equal(p->out.queued_bytes, 8 * 100004 + 28 - 10);
	do {
		r = frame_out_flush(&p->out, p->a, SIZE_MAX);
		assert_true(r >= 0);
		while (frame_in_read(&p->in, p->b) > 0)
			while (frame_in_next(&p->in, &payload, NULL) > 0) {
				assert_int_equal(payload.len, 100000 + n_frames);
				got += payload.len;
				n_frames++;
			}
	} while (r == 0);
	while (frame_in_read(&p->in, p->b) > 0)
		while (frame_in_next(&p->in, &payload, NULL) > 0) {
			assert_int_equal(payload.len, 100000 + n_frames);
			n_frames++;
		}
	assert_int_equal(n_frames, 8);
	assert_int_equal(p->out.queued_bytes, 0);
	assert_true(got > 0);
}

static void a_descriptor_comes_with_its_frame_and_close_on_exec(void **state)
{
	_cleanup_(closep) int sent = open("/dev/null", O_RDONLY | O_CLOEXEC);
	struct pair *p = *state;
	struct stat a, b;
	struct span got;
	int fd;

	assert_int_equal(frame_out_push(&p->out, make_frame(5), 9, sent), 0);
	assert_int_equal(frame_out_flush(&p->out, p->a, 1), 0);
	assert_int_equal(frame_in_read(&p->in, p->b), 1);
	assert_int_equal(p->in.n_fds, 1);
	assert_int_equal(frame_out_flush(&p->out, p->a, SIZE_MAX), 1);
	assert_int_equal(frame_in_read(&p->in, p->b), 8);
	assert_int_equal(frame_in_next(&p->in, &got, NULL), 1);
	fd = frame_in_take_fd(&p->in);
	assert_true(fd >= 0);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(fstat(fd, &a), 0);
	assert_int_equal(fstat(sent, &b), 0);
	assert_int_equal(a.st_rdev, b.st_rdev);
	closep(&fd);
	assert_int_equal(frame_in_take_fd(&p->in), -1);
}

static void a_descriptor_that_is_not_wanted_is_closed(void **state)
{
	struct pair *p = *state;
	struct span got;
	int pipe_fds[2];
	char byte;

	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK), 0);
	p->in.no_fds = true;
	/* the queue closes what it has sent */
	assert_int_equal(frame_out_push(&p->out, make_frame(5), 9, pipe_fds[1]), 0);
	assert_int_equal(frame_out_flush(&p->out, p->a, SIZE_MAX), 1);
	assert_int_equal(frame_in_read(&p->in, p->b), 9);
	assert_int_equal(frame_in_next(&p->in, &got, NULL), 1);
	assert_int_equal(got.len, 5);
	assert_int_equal(frame_in_take_fd(&p->in), -1);
	close(pipe_fds[1]);
	assert_int_equal(read(pipe_fds[0], &byte, 1), 0);
	assert_int_equal(frame_in_read(&p->in, p->b), -EAGAIN);
	close(pipe_fds[0]);
}

static void queue_small(struct frame_out *out, uint32_t n)
{
	_cleanup_(freep) char *frame = make_frame(n);
	char *room = frame_out_room(out, 100);

	assert_non_null(room);
	memcpy(room, frame, n + 4);
	frame_out_fill(out, n + 4);
}

static void small_frames_leave_with_one_call(void **state)
{
	struct pair *p = *state;
	char got[100];
	int fds[2];

	/* a socket that keeps what was sent with one call apart from the next */
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	for (uint32_t n = 1; n <= 3; n++)
		queue_small(&p->out, n);
	assert_non_null(frame_out_room(&p->out, 50)); /* asked for and not filled: nothing */
	assert_int_equal(p->out.queued_bytes, 5 + 6 + 7);
	assert_int_equal(frame_out_flush(&p->out, fds[0], SIZE_MAX), 1);
	assert_int_equal(p->out.queued_bytes, 0);
	assert_int_equal(recv(fds[1], got, sizeof(got), MSG_DONTWAIT), 5 + 6 + 7);
	assert_memory_equal(got, "\x01\0\0\0x\x02\0\0\0xx\x03\0\0\0xxx", 18);
	close(fds[0]);
	close(fds[1]);
}

static void the_memory_of_small_frames_is_used_again(void **state)
{
	struct pair *p = *state;
	char *room = frame_out_room(&p->out, 100);

	for (int i = 0; i < 100; i++) {
		assert_ptr_equal(frame_out_room(&p->out, 100), room);
		queue_small(&p->out, 10);
		assert_int_equal(frame_out_flush(&p->out, p->a, SIZE_MAX), 1);
		assert_int_equal(frame_in_read(&p->in, p->b), 14);
	}
}

static void frames_of_all_kinds_keep_their_order(void **state)
{
	_cleanup_(closep) int sent = open("/dev/null", O_RDONLY | O_CLOEXEC);
	static const uint32_t sizes[] = { 1, 5000, 2, 3, 4, 70000, 5, 6 };
	struct pair *p = *state;
	struct span payload;
	uint32_t n = 0;
	int r, fd;

	frame_in_deinit(&p->in);
	frame_in_init(&p->in, 1 << 20);
	/* the kept memory of an earlier one is at the front and too small for the next */
	queue_small(&p->out, 1);
	assert_int_equal(frame_out_flush(&p->out, p->a, 1), 0);
	assert_non_null(frame_out_room(&p->out, 5004));
	assert_int_equal(frame_out_push(&p->out, make_frame(sizes[1]), 5004, -1), 0);
	assert_int_equal(frame_out_push(&p->out, make_frame(sizes[2]), 6, sent), 0);
	queue_small(&p->out, sizes[3]);
	queue_small(&p->out, sizes[4]);
	assert_int_equal(frame_out_push(&p->out, make_frame(sizes[5]), 70004, -1), 0);
	queue_small(&p->out, sizes[6]);
	queue_small(&p->out, sizes[7]);
	do {
		r = frame_out_flush(&p->out, p->a, SIZE_MAX);
		assert_true(r >= 0);
		while (frame_in_read(&p->in, p->b) > 0)
			while (frame_in_next(&p->in, &payload, NULL) > 0) {
				assert_int_equal(payload.len, sizes[n]);
				fd = n == 2 ? frame_in_take_fd(&p->in) : -1;
				assert_true((fd >= 0) == (n == 2));
				closep(&fd);
				n++;
			}
	} while (r == 0);
	assert_int_equal(n, ARRAY_SIZE(sizes));
	assert_int_equal(frame_in_take_fd(&p->in), -1);
}

static int count_fds(void)
{
	int n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void too_many_descriptors_are_all_closed(void **state)
{
	_cleanup_(closep) int sent = open("/dev/null", O_RDONLY | O_CLOEXEC);
	struct pair *p = *state;
	const int before = count_fds();

	for (int i = 0; i < FRAME_FDS_MAX + 1; i++)
		assert_int_equal(frame_out_push(&p->out, make_frame(1), 5, sent), 0);
	assert_int_equal(frame_out_flush(&p->out, p->a, SIZE_MAX), 1);
	for (int i = 0; i < FRAME_FDS_MAX; i++)
		assert_int_equal(frame_in_read(&p->in, p->b), 5);
	assert_int_equal(count_fds(), before + FRAME_FDS_MAX);
	assert_int_equal(frame_in_read(&p->in, p->b), -EMFILE);
	assert_int_equal(count_fds(), before);
}

static void many_descriptors_at_once_are_all_closed(void **state)
{
	char control[CMSG_SPACE(16 * sizeof(int))] __attribute__((aligned(8))) = { 0 };
	struct iovec iov = { "x", 1 };
	struct msghdr header = { .msg_iov = &iov,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&header);
	struct pair *p = *state;
	const int before = count_fds();

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(16 * sizeof(int));
	for (int i = 0; i < 16; i++)
		memcpy(CMSG_DATA(c) + i * sizeof(int), &p->a, sizeof(int));
	assert_int_equal(sendmsg(p->a, &header, 0), 1);
	assert_int_equal(frame_in_read(&p->in, p->b), -EMFILE);
	assert_int_equal(count_fds(), before);
}

static void a_reader_who_left_is_an_error_and_no_signal(void **state)
{
	struct pair *p = *state;

	closep(&p->b);
	p->b = -1;
	assert_int_equal(frame_out_push(&p->out, make_frame(1), 5, -1), 0);
	assert_int_equal(frame_out_flush(&p->out, p->a, SIZE_MAX), -EPIPE);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, make_pair, drop_pair)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_frame_sent_byte_by_byte_arrives_once),
		TEST(the_limit_holds_and_one_past_it_is_refused_unallocated),
		TEST(a_reader_who_takes_nothing_holds_a_bounded_buffer),
		TEST(a_kernel_without_memory_is_asked_again),
		TEST(a_full_socket_keeps_the_rest_in_order),
		TEST(a_descriptor_comes_with_its_frame_and_close_on_exec),
		TEST(a_descriptor_that_is_not_wanted_is_closed),
		TEST(small_frames_leave_with_one_call),
		TEST(the_memory_of_small_frames_is_used_again),
		TEST(frames_of_all_kinds_keep_their_order),
		TEST(too_many_descriptors_are_all_closed),
		TEST(many_descriptors_at_once_are_all_closed),
		TEST(a_reader_who_left_is_an_error_and_no_signal),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
