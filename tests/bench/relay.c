/* The relay, and the few frames that make steamd send something through it. */
#include "tests/bench/relay.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "client/wire/frame.h"
#include "client/wire/msg.h"

struct relay {
	int fd;
	pid_t pid;
	clockid_t clock;
	struct frame_in in;
	struct frame_out out;
	uint64_t last_id;
};

static bool pass_on(int from, int to, char *buffer, size_t size)
{
	const ssize_t n = recv(from, buffer, size, 0);

	return n > 0 && send(to, buffer, (size_t)n, MSG_NOSIGNAL) == n;
}

static void watch(int poll_fd, int fd, int other_fd)
{
	struct epoll_event e = { .events = EPOLLIN,
				 .data.u64 = (uint64_t)fd << 32 | (uint32_t)other_fd };

	epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &e);
}

static void serve(int door_fd, const struct sockaddr_un *to)
{
	const int http_fd = accept(door_fd, NULL, NULL), wire_fd = socket(AF_UNIX, SOCK_STREAM, 0);
	const int poll_fd = epoll_create1(0), on = 1;
	static char buffer[65536];
	struct epoll_event e;

	setsockopt(http_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (http_fd < 0 || poll_fd < 0 ||
	    connect(wire_fd, (const struct sockaddr *)to, sizeof(*to)) < 0)
		_exit(1);
	watch(poll_fd, http_fd, wire_fd);
	watch(poll_fd, wire_fd, http_fd);
	while (epoll_wait(poll_fd, &e, 1, -1) == 1)
		if (!pass_on((int)(e.data.u64 >> 32), (int)(uint32_t)e.data.u64, buffer,
			     sizeof(buffer)))
			break;
	_exit(0);
}

static int start(struct relay *r, const struct sockaddr_un *to)
{
	struct sockaddr_in at = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	_cleanup_(closep) int door_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t len = sizeof(at);

	if (door_fd < 0 || bind(door_fd, (struct sockaddr *)&at, sizeof(at)) < 0 ||
	    listen(door_fd, 1) < 0 || getsockname(door_fd, (struct sockaddr *)&at, &len) < 0)
		return -errno;
	r->pid = fork();
	if (r->pid == 0)
		serve(door_fd, to);
	r->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (r->pid < 0 || r->fd < 0 || connect(r->fd, (struct sockaddr *)&at, sizeof(at)) < 0 ||
	    clock_getcpuclockid(r->pid, &r->clock) != 0)
		return -errno;
	return 0;
}

static int say(struct relay *r, const struct msg *m, struct err *err)
{
	int n;

	n = msg_queue(m, &r->out, err);
	while (n == 0 && (n = frame_out_flush(&r->out, r->fd, SIZE_MAX)) == 0)
		;
	return n < 0 ? n : 0;
}

/* Blocks until a message of @wanted has come; tokens and progress before it are passed over. */
static int await(struct relay *r, enum msg_type wanted, struct err *err)
{
	struct span payload;
	struct msg m;
	int n;

	for (;;) {
		while ((n = frame_in_next(&r->in, &payload, err)) > 0) {
			n = msg_decode(payload.data, payload.len, false, &m, err);
			if (n < 0)
				return n;
			if (m.type == wanted)
				return 0;
			if (m.type == MSG_ERROR)
				return err_set(err, -EPROTO, "steamd: %.*s",
					       SPAN_ARG(m.error.text));
		}
		if (n < 0)
			return n;
		/* a byte is waited for, and left there */
		if (recv(r->fd, &(char){ 0 }, 1, MSG_PEEK) != 1 ||
		    frame_in_read(&r->in, r->fd) <= 0)
			return err_set(err, -EPROTO, "the relay closed the connection");
	}
}

int relay_open(const char *path, struct relay **ret, struct err *err)
{
	_cleanup_(relay_closep) struct relay *r = calloc(1, sizeof(*r));
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	struct msg m = { .type = MSG_HELLO };
	int n;

	if (!r)
		return -ENOMEM;
	r->fd = -1;
	frame_in_init(&r->in, FRAME_BYTES_MAX_DOWN);
	frame_out_init(&r->out);
	strncpy(to.sun_path, path, sizeof(to.sun_path) - 1);
	n = start(r, &to);
	if (n < 0)
		return err_wrap(err, n, "cannot start a relay");
	MSG_SET(&m.hello, proto, MSG_PROTO);
	MSG_SET(&m.hello, name, span_of("relay"));
	n = say(r, &m, err);
	if (n == 0)
		n = await(r, MSG_HELLO, err);
	if (n == 0)
		*ret = steal(r);
	return n;
}

struct relay *relay_close(struct relay *r)
{
	if (!r)
		return NULL;
	closep(&r->fd);
	if (r->pid > 0)
		waitpid(r->pid, NULL, 0);
	frame_in_deinit(&r->in);
	frame_out_deinit(&r->out);
	free(r);
	return NULL;
}

int relay_stream(struct relay *r, uint32_t n_tokens, struct err *err)
{
	static const uint32_t ids[] = { 1, 2, 3, 4 };
	struct msg m = { .type = MSG_GENERATE, .id = ++r->last_id };
	int n;

	MSG_SET(&m.generate, ids, (struct span){ (const char *)ids, sizeof(ids) });
	MSG_SET(&m.generate, max_tokens, n_tokens);
	MSG_SET(&m.generate, temperature, 0);
	MSG_SET(&m.generate, ignore_eos, true);
	n = say(r, &m, err);
	return n < 0 ? n : await(r, MSG_DONE, err);
}

clockid_t relay_clock(const struct relay *r)
{
	return r->clock;
}
