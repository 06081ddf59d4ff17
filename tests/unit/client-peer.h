/* The other end of libsteamd: a peer that speaks the real codec from a thread of its own. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <assert.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "client/steamd.h"
#include "client/wire/frame.h"
#include "client/wire/msg.h"

#define PEER_MS 10000

struct peer {
	char dir[64], path[96];
	int listen_fd, fd;
	struct frame_in in;
	struct msg got; /* spans point into in */
	void (*script)(struct peer *);
	pthread_t thread;
	uint32_t max_frame, credit;
	int wait_fds[2]; /* a script that waits for the test reads from it */
};

/* The peer's side; cmocka's assertions are for the other thread. */

static void peer_send(struct peer *p, const struct msg *m)
{
	_cleanup_(freep) char *frame = NULL;
	size_t len;

	assert(msg_encode(m, &frame, &len, NULL) == 0);
	assert(send(p->fd, frame, len, MSG_NOSIGNAL) == (ssize_t)len);
}

static void peer_expect(struct peer *p, enum msg_type type)
{
	struct pollfd wait = { .fd = p->fd, .events = POLLIN };
	struct err err = { 0 };
	struct span payload;

	while (frame_in_next(&p->in, &payload, &err) == 0) {
		assert(poll(&wait, 1, PEER_MS) == 1);
		assert(frame_in_read(&p->in, p->fd) > 0);
	}
	assert(msg_decode(payload.data, payload.len, true, &p->got, &err) == 0);
	assert(p->got.type == type);
}

static void peer_accept_silently(struct peer *p)
{
	struct pollfd wait = { .fd = p->listen_fd, .events = POLLIN };

	assert(poll(&wait, 1, PEER_MS) == 1);
	p->fd = accept4(p->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	assert(p->fd >= 0);
	frame_in_init(&p->in, FRAME_BYTES_MAX);
	peer_expect(p, MSG_HELLO);
}

static void peer_say_hello(struct peer *p)
{
	struct msg m = { .type = MSG_HELLO };

	assert(p->got.hello.proto == 1 && span_is(p->got.hello.name, "test"));
	MSG_SET(&m.hello, proto, 1);
	MSG_SET(&m.hello, model, SPAN("tiny"));
	MSG_SET(&m.hello, max_frame, p->max_frame);
	MSG_SET(&m.hello, credit, p->credit);
	peer_send(p, &m);
}

static void peer_accept(struct peer *p)
{
	peer_accept_silently(p);
	peer_say_hello(p);
}

static void peer_hang_up(struct peer *p)
{
	closep(&p->fd);
	p->fd = -1;
	frame_in_deinit(&p->in);
}

static void peer_accepted(struct peer *p, uint64_t id, uint64_t turn)
{
	struct msg m = { .type = MSG_ACCEPTED, .id = id };

	MSG_SET(&m.accepted, turn, turn);
	MSG_SET(&m.accepted, seed, 5);
	peer_send(p, &m);
}

static void peer_tokens(struct peer *p, uint64_t id, uint32_t index, uint32_t n,
			const char *content)
{
	static const uint32_t ids[] = { 100, 101, 102, 103, 104, 105, 106, 107 };
	struct msg m = { .type = MSG_TOKENS, .id = id };

	assert(index + n <= ARRAY_SIZE(ids));
	MSG_SET(&m.tokens, index, index);
	MSG_SET(&m.tokens, ids, (struct span){ (const char *)(ids + index), 4 * n });
	MSG_SET(&m.tokens, content, span_of(content));
	peer_send(p, &m);
}

static void peer_done(struct peer *p, uint64_t id, const char *text)
{
	struct msg m = { .type = MSG_DONE, .id = id };

	MSG_SET(&m.done, text, span_of(text));
	MSG_SET(&m.done, finish, SPAN("stop"));
	MSG_SET(&m.done, n_prompt, 3);
	peer_send(p, &m);
}

static void *run_script(void *userdata)
{
	struct peer *p = userdata;

	p->script(p);
	return NULL;
}

static void peer_start(struct peer *p, void (*script)(struct peer *))
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	*p = (struct peer){ .fd = -1, .script = script, .max_frame = 1 << 20, .credit = 1024 };
	strcpy(p->dir, "/tmp/steamd-client-XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	snprintf(p->path, sizeof(p->path), "%s/s", p->dir);
	strcpy(address.sun_path, p->path);
	p->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(p->listen_fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(p->listen_fd, 4), 0);
}

static struct steamd *connect_to(struct peer *p)
{
	struct steamd *s = NULL;

	assert_int_equal(pthread_create(&p->thread, NULL, run_script, p), 0);
	assert_int_equal(steamd_open(p->path, "test", NULL, &s, NULL), 0);
	return s;
}

static void peer_stop(struct peer *p)
{
	pthread_join(p->thread, NULL);
	closep(&p->fd);
	frame_in_deinit(&p->in);
	closep(&p->listen_fd);
	unlink(p->path);
	rmdir(p->dir);
}
