/* Connections of the users of day.h. */
#include "tests/unit/day.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

/* Stands before libc's: who is at the other end of a socket pair is whom the day says. */
int getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
	if (level == SOL_SOCKET && name == SO_PEERCRED && day.server) {
		const struct ucred cred = { getpid(), day.connecting_uid, day.connecting_uid };

		memcpy(value, &cred, sizeof(cred));
		*len = sizeof(cred);
		return 0;
	}
	return (int)syscall(SYS_getsockopt, fd, level, name, value, len);
}

void day_send(struct day_client *c, const struct msg *m)
{
	_cleanup_(freep) char *data = NULL;
	struct err err = { 0 };
	size_t len;

	assert_int_equal(msg_encode(m, &data, &len, &err), 0);
	/* who was turned away may be closed already */
	if (send(c->fd, data, len, MSG_NOSIGNAL) != (ssize_t)len)
		assert_int_equal(errno, EPIPE);
}

void day_connect(struct day_client *c, uid_t uid, const char *label)
{
	struct msg hello = { .type = MSG_HELLO };
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair),
			 0);
	*c = (struct day_client){ .fd = pair[0] };
	day_run_loop(); /* so that it knows what time it is when somebody comes */
	frame_in_init(&c->in, FRAME_BYTES_MAX_DOWN);
	day.connecting_uid = uid;
	assert_int_equal(server_add(day.server, pair[1]), 0);
	MSG_SET(&hello.hello, proto, MSG_PROTO);
	MSG_SET(&hello.hello, name, SPAN("day"));
	if (label[0])
		MSG_SET(&hello.hello, label, span_of(label));
	day_send(c, &hello);
}

void day_disconnect(struct day_client *c)
{
	if (c->fd < 0)
		return;
	close(c->fd);
	frame_in_deinit(&c->in);
	*c = (struct day_client){ .fd = -1 };
}

/* What a dead broker had not sent when it died is not heard. */
static ssize_t read_some(struct day_client *c)
{
	char bytes[4096];
	ssize_t n;

	if (!c->limited)
		return frame_in_read(&c->in, c->fd);
	if (c->deliverable == 0)
		return 0;
	n = recv(c->fd, bytes, MIN(sizeof(bytes), (size_t)c->deliverable), MSG_DONTWAIT);
	if (n <= 0)
		return n;
	c->deliverable -= (uint32_t)n;
	if (c->in.len + (size_t)n > c->in.cap) {
		c->in.cap = c->in.len + (size_t)n + 4096;
		c->in.data = realloc(c->in.data, c->in.cap);
		assert_non_null(c->in.data);
	}
	memcpy(c->in.data + c->in.len, bytes, (size_t)n);
	c->in.len += (size_t)n;
	return n;
}

int day_receive(struct day_client *c, struct msg *ret)
{
	struct err err = { 0 };
	struct span payload;

	for (;;) {
		const int r = frame_in_next(&c->in, &payload, &err);
		ssize_t n;

		assert_true(r >= 0);
		if (r == 1) {
			assert_int_equal(msg_decode(payload.data, payload.len, false, ret, &err),
					 0);
			if (ret->type == MSG_HELLO)
				continue;
			return 1;
		}
		n = read_some(c);
		if (n == 0 || n == -ECONNRESET)
			return -EPIPE;
		if (n < 0)
			return 0;
	}
}

void day_call(struct day_client *c, struct msg *m, struct msg *ret)
{
	int r;

	m->id = 1;
	day_send(c, m);
	for (uint32_t i = 0; i < 100000; i++) {
		r = day_receive(c, ret);
		assert_true(r >= 0);
		if (r == 1) {
			assert_true(ret->type == MSG_DONE || ret->type == MSG_ERROR);
			if (ret->id != 1)
				fail_msg("an answer to %llu: %.*s", (unsigned long long)ret->id,
					 SPAN_ARG(ret->error.text));
			return;
		}
		day_turn();
	}
	fail_msg("a call is not answered");
}
