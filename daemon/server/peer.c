/* Connections: bytes to messages, messages to bytes, and when to give up on one. */
#include "daemon/server/peer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "client/wire/codes.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/server/dispatch.h"
#include "daemon/server/stream.h"
#include "daemon/server/taking.h"
#include "daemon/server/transfer.h"

static const struct {
	int error;
	const char *code;
	bool retryable;
} codes[] = {
	{ ENOENT, CODE_NO_SUCH, false },
	{ EINVAL, CODE_BAD_REQUEST, false },
	{ EBADMSG, CODE_BAD_REQUEST, false },
	{ EACCES, CODE_DENIED, false },
	{ EPERM, CODE_DENIED, false },
	{ E2BIG, CODE_TOO_LONG, false },
	{ ENOSPC, CODE_TOO_LONG, false },
	{ ENOTSUP, CODE_NO_CHAT, false },
	{ EAGAIN, CODE_BUSY, true },
	{ EHOSTDOWN, CODE_UNAVAILABLE, true },
	{ ENOEXEC, CODE_MODEL_REFUSED, false },
	{ ESTALE, CODE_MODEL_CHANGED, false },
	{ EFAULT, CODE_EXEC_FAULT, true },
	{ ETIME, CODE_DEADLINE, true },
	{ ENOMEM, CODE_NO_MEMORY, true },
	{ EPROTO, CODE_BAD_STATE, false },
	{ EBUSY, CODE_BUSY, true },
	{ EDQUOT, CODE_BUSY, false },
	{ EEXIST, CODE_BAD_REQUEST, false },
	{ EUCLEAN, CODE_DAMAGED, false },
	{ EREMCHG, CODE_MOVED, false },
	{ ENODEV, CODE_UNAVAILABLE, false },
};

static const char *describe(int r, bool *ret_retryable)
{
	for (size_t i = 0; i < ARRAY_SIZE(codes); i++) {
		if (codes[i].error == -r) {
			*ret_retryable = codes[i].retryable;
			return codes[i].code;
		}
	}
	*ret_retryable = false;
	return CODE_INTERNAL;
}

const char *peer_error_code(int r)
{
	bool retryable;

	return describe(r, &retryable);
}

static void die(struct peer *p)
{
	if (p->dead)
		return;
	p->dead = true;
	sd_event_source_set_enabled(p->io, SD_EVENT_OFF);
	if (p->deadline)
		sd_event_source_set_enabled(p->deadline, SD_EVENT_OFF);
	server_reap_later(p->server);
}

static void watch(struct peer *p)
{
	uint32_t events = 0;

	if (p->dead)
		return;
	/* a peer that does not read its answers is not asked for more questions */
	if (!p->closing && !p->is_taking && !peer_is_full(p))
		events |= EPOLLIN;
	if (p->out.queued_bytes > 0)
		events |= EPOLLOUT;
	sd_event_source_set_io_events(p->io, events);
}

static void set_deadline(struct peer *p, uint64_t us)
{
	if (us == 0) {
		if (p->deadline_us != 0)
			sd_event_source_set_enabled(p->deadline, SD_EVENT_OFF);
		p->deadline_us = 0;
		return;
	}
	p->deadline_us = clock_us() + us;
	p->n_frames_at_deadline = p->n_frames;
	sd_event_source_set_time_relative(p->deadline, us);
	sd_event_source_set_enabled(p->deadline, SD_EVENT_ONESHOT);
}

void peer_flush(struct peer *p)
{
	int r;

	if (p->dead)
		return;
	r = frame_out_flush(&p->out, p->fd, PEER_FLUSH_BYTES);
	if (r < 0 || (r == 1 && p->closing)) {
		die(p);
		return;
	}
	if (r == 1 && p->n_told > 0)
		stream_arrived(p, false);
	taking_goes_on(p);
	watch(p);
}

bool peer_is_full(const struct peer *p)
{
	return p->out.queued_bytes >= PEER_OUTPUT_MAX;
}

int peer_send(struct peer *p, const struct msg *m)
{
	struct err err = { 0 };
	int r;

	if (p->dead)
		return -EPIPE;
	r = msg_queue(m, &p->out, &err);
	if (r == -EINVAL)
		log_error("cannot send %s: %s", msg_name(m->type), err.text);
	if (r < 0) {
		die(p);
		return r;
	}
	if (!p->server->holding) {
		peer_flush(p);
	} else if (!p->is_held) {
		p->is_held = true;
		TAILQ_INSERT_TAIL(&p->server->held, p, held);
	}
	return 0;
}

/* Streams that waited for room go on when there is some. */
static void flush_and_go_on(struct peer *p)
{
	const bool was_full = peer_is_full(p);
	struct request *q, *next;

	peer_flush(p);
	if (p->dead || peer_is_full(p))
		return;
	for (q = TAILQ_FIRST(&p->requests); q; q = next) {
		next = TAILQ_NEXT(q, link);
		if (q->stream && was_full)
			stream_pump(q->stream);
		else if (q->transfer)
			transfer_pump(q);
	}
}

void peer_hold(struct server *s)
{
	s->holding = true;
}

static void let_go(struct peer *p)
{
	if (p->is_held)
		TAILQ_REMOVE(&p->server->held, p, held);
	p->is_held = false;
}

void peer_release(struct server *s)
{
	struct peer *p;

	s->holding = false;
	while ((p = TAILQ_FIRST(&s->held))) {
		let_go(p);
		flush_and_go_on(p);
	}
}

static void send_error(struct peer *p, struct msg *m, const char *code, const char *text,
		       bool retryable, uint32_t retry_after_ms)
{
	m->type = MSG_ERROR;
	MSG_SET(&m->error, code, span_of(code));
	MSG_SET(&m->error, text, span_of(text));
	MSG_SET(&m->error, retryable, retryable);
	if (retry_after_ms > 0)
		MSG_SET(&m->error, retry_after_ms, retry_after_ms);
	peer_send(p, m);
}

void peer_send_error(struct peer *p, struct msg *m, int r, const struct err *err,
		     uint32_t retry_after_ms)
{
	bool retryable;
	const char *code = describe(r, &retryable);

	if (retryable && retry_after_ms == 0)
		retry_after_ms = 1000;
	send_error(p, m, code, err && err->text[0] ? err->text : strerror(-r), retryable,
		   retry_after_ms);
}

void peer_refuse(struct peer *p, uint64_t id, const char *code, const char *text)
{
	static struct log_limit limit;
	struct msg m = { .id = id };

	if (p->closing || p->dead)
		return;
	if (log_allowed(&limit, 10))
		log_info("uid %u, pid %d: %s: %s", p->uid, p->pid, code, text);
	p->closing = true;
	send_error(p, &m, code, text, false, 0);
	if (!p->dead)
		set_deadline(p, PEER_LINGER_US);
}

/* A frame that is begun must end in time; each complete one gives the next its own time. */
static void time_frames(struct peer *p)
{
	if (p->closing || p->dead || !p->greeted)
		return;
	if (p->in.len <= p->in.taken || frame_in_is_whole(&p->in))
		set_deadline(p, 0);
	else if (p->deadline_us == 0 || p->n_frames != p->n_frames_at_deadline)
		set_deadline(p, PEER_FRAME_US);
}

void peer_take_frame(struct peer *p)
{
	struct err err = { 0 };
	struct span payload;
	int r;

	if (p->closing || p->dead || peer_is_full(p))
		return;
	r = frame_in_next(&p->in, &payload, &err);
	if (r < 0)
		peer_refuse(p, 0, CODE_BAD_FRAME, err.text);
	if (r <= 0)
		return;
	p->n_frames++;
	dispatch(p, payload);
	/* a descriptor comes with its frame's first byte; this one's is through */
	if (p->in.n_fds > 0 && p->in.len <= p->in.taken)
		peer_refuse(p, 0, CODE_BAD_FRAME,
			    "a descriptor came with a message that takes none");
}

void peer_taken(struct peer *p)
{
	watch(p);
	time_frames(p);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct peer *p = userdata;
	ssize_t n;

	(void)source;
	if (revents & EPOLLOUT)
		flush_and_go_on(p);
	if (p->dead)
		return 0;
	if ((revents & (EPOLLHUP | EPOLLERR)) && (p->closing || peer_is_full(p))) {
		die(p);
		return 0;
	}
	if (p->closing || p->is_taking || !(revents & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		return 0;

	n = frame_in_read(&p->in, fd);
	if (n == -EMFILE) {
		peer_refuse(p, 0, CODE_BAD_FRAME, "more descriptors came than any message takes");
	} else if (n == 0 || (n < 0 && n != -EAGAIN && n != -EINTR)) {
		die(p);
	} else if (n > 0) {
		taking_began(p);
	}
	return 0;
}

static int on_deadline(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct peer *p = userdata;

	(void)source, (void)usec;
	p->deadline_us = 0;
	if (p->closing)
		die(p);
	else if (!p->greeted)
		peer_refuse(p, 0, CODE_BAD_FRAME, "no hello came within 2 seconds");
	else
		peer_refuse(p, 0, CODE_BAD_FRAME,
			    "a frame was begun and not completed within 10 seconds");
	return 0;
}

static int watch_socket(struct peer *p)
{
	sd_event *loop = p->server->loop;
	int r;

	r = sd_event_add_io(loop, &p->io, p->fd, EPOLLIN, on_io, p);
	if (r < 0)
		return r;
	r = sd_event_add_time_relative(loop, &p->deadline, CLOCK_MONOTONIC, PEER_HELLO_US, 0,
				       on_deadline, p);
	if (r < 0)
		return r;
	p->deadline_us = clock_us() + PEER_HELLO_US;
	return 0;
}

int peer_new(struct server *s, int fd, struct user *user, struct peer **ret)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	struct peer *p;
	int r;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -errno;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->server = s;
	p->fd = -1;
	p->uid = cred.uid;
	p->gid = cred.gid;
	p->pid = cred.pid;
	TAILQ_INIT(&p->requests);
	frame_in_init(&p->in, (uint32_t)s->settings->max_frame);
	frame_out_init(&p->out);
	p->fd = fd;
	r = watch_socket(p);
	if (r < 0) {
		p->fd = -1;
		sd_event_source_disable_unref(p->io);
		free(p);
		return r;
	}
	p->user = user;
	user->n_peers++;
	s->n_peers++;
	TAILQ_INSERT_TAIL(&s->peers, p, link);
	*ret = p;
	return 0;
}

struct peer *peer_free(struct peer *p)
{
	struct request *q;

	if (!p)
		return NULL;
	p->dead = true;
	while ((q = TAILQ_FIRST(&p->requests)))
		request_free(q);
	stream_arrived(p, true);
	let_go(p);
	taking_forget(p);
	TAILQ_REMOVE(&p->server->peers, p, link);
	p->server->n_peers--;
	p->user->n_peers--;
	server_user_drop(p->user);
	sd_event_source_disable_unref(p->io);
	sd_event_source_disable_unref(p->deadline);
	frame_in_deinit(&p->in);
	frame_out_deinit(&p->out);
	close(p->fd);
	free(p);
	return NULL;
}

bool peer_is_admin(const struct peer *p)
{
	const gid_t admin = p->server->admin_gid;
	_cleanup_(freep) gid_t *groups = NULL;
	socklen_t len = 0;

	if (p->uid == 0 || p->uid == geteuid())
		return true;
	if (admin == (gid_t)-1)
		return false;
	if (p->gid == admin)
		return true;
	/* the groups that the process had when it connected, as the kernel knows them */
	if (getsockopt(p->fd, SOL_SOCKET, SO_PEERGROUPS, NULL, &len) == 0 || errno != ERANGE)
		return false;
	groups = malloc(len);
	if (!groups || getsockopt(p->fd, SOL_SOCKET, SO_PEERGROUPS, groups, &len) < 0)
		return false;
	for (size_t i = 0; i < len / sizeof(*groups); i++) {
		if (groups[i] == admin)
			return true;
	}
	return false;
}
