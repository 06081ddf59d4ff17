/* Frames on a stream socket, and the descriptors that travel with them. */
#include "client/wire/frame.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include "client/wire/ownership.h"

#define KEEP_BYTES ((size_t)256 << 10) /* an empty buffer larger than this is given back */
#define CHUNK_BYTES ((size_t)4 << 10)  /* of small frames together; kept when they are sent */

struct frame_chunk {
	struct frame_chunk *next;
	char *data;
	size_t len, cap;
	int fd; /* goes with the first byte; -1: none */
};

void frame_in_init(struct frame_in *in, uint32_t max_bytes)
{
	*in = (struct frame_in){ .max_bytes = max_bytes };
}

static void close_fds(struct frame_in *in)
{
	while (in->n_fds > 0)
		close(in->fds[--in->n_fds]);
}

void frame_in_deinit(struct frame_in *in)
{
	close_fds(in);
	free(steal(in->data));
	in->len = in->cap = in->taken = 0;
}

/* Moves what is left to the front and finds room for one read. */
static int make_room(struct frame_in *in)
{
	const size_t most = (size_t)in->max_bytes + FRAME_HEADER_BYTES + FRAME_READ_BYTES;
	size_t cap;
	char *data;

	if (in->taken > 0) {
		memmove(in->data, in->data + in->taken, in->len - in->taken);
		in->len -= in->taken;
		in->taken = 0;
	}
	if (in->len == 0 && in->cap > KEEP_BYTES) {
		free(steal(in->data));
		in->cap = 0;
	}
	if (in->cap - in->len >= FRAME_READ_BYTES)
		return 0;
	if (in->len + FRAME_READ_BYTES > most)
		return in->len < most && in->cap > in->len ? 0 : -ENOBUFS;
	cap = MIN(MAX(2 * in->cap, in->len + FRAME_READ_BYTES), most);
	data = realloc(in->data, cap);
	if (!data)
		return -ENOMEM;
	in->data = data;
	in->cap = cap;
	return 0;
}

/* Takes over the descriptors of a message; all of them are closed if they are too many. */
static int collect_fds(struct frame_in *in, struct msghdr *header)
{
	bool ok = !(header->msg_flags & MSG_CTRUNC);
	struct cmsghdr *c;

	for (c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (in->n_fds < FRAME_FDS_MAX) {
				in->fds[in->n_fds++] = fd;
			} else {
				close(fd);
				ok = false;
			}
		}
	}
	if (ok)
		return 0;
	close_fds(in);
	return -EMFILE;
}

static ssize_t receive_with_fds(struct frame_in *in, int fd, size_t max)
{
	char control[CMSG_SPACE(FRAME_FDS_MAX * sizeof(int))] __attribute__((aligned(8)));
	struct iovec iov = { .iov_base = in->data + in->len, .iov_len = max };
	struct msghdr header = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	const ssize_t n = recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int r;

	if (n < 0)
		return -errno;
	r = collect_fds(in, &header);
	return r < 0 ? r : n;
}

static ssize_t receive(struct frame_in *in, int fd, size_t max)
{
	const ssize_t n = recv(fd, in->data + in->len, max, MSG_DONTWAIT);

	return n < 0 ? -errno : n;
}

ssize_t frame_in_read(struct frame_in *in, int fd)
{
	size_t max;
	ssize_t n;
	int r;

	r = make_room(in);
	if (r < 0)
		return r;
	max = MIN(in->cap - in->len, FRAME_READ_BYTES);
	do {
		n = in->no_fds ? receive(in, fd, max) : receive_with_fds(in, fd, max);
	} while (n == -EINTR);
	if (n > 0)
		in->len += (size_t)n;
	return n;
}

/* The length that is declared, once its bytes are there. */
static bool read_length(const struct frame_in *in, uint32_t *ret)
{
	uint32_t bytes;

	if (in->len - in->taken < FRAME_HEADER_BYTES)
		return false;
	memcpy(&bytes, in->data + in->taken, sizeof(bytes));
	*ret = le32toh(bytes);
	return true;
}

bool frame_in_is_whole(const struct frame_in *in)
{
	uint32_t bytes;

	return read_length(in, &bytes) &&
	       (bytes > in->max_bytes || in->len - in->taken - FRAME_HEADER_BYTES >= bytes);
}

int frame_in_next(struct frame_in *in, struct span *ret, struct err *err)
{
	uint32_t bytes;

	if (!frame_in_is_whole(in) || !read_length(in, &bytes))
		return 0;
	if (bytes > in->max_bytes)
		return err_set(err, -EMSGSIZE, "a frame of %u bytes; at most %u are accepted",
			       bytes, in->max_bytes);
	*ret = (struct span){ in->data + in->taken + FRAME_HEADER_BYTES, bytes };
	in->taken += FRAME_HEADER_BYTES + (size_t)bytes;
	return 1;
}

int frame_in_take_fd(struct frame_in *in)
{
	int fd;

	if (in->n_fds == 0)
		return -1;
	fd = in->fds[0];
	in->n_fds--;
	memmove(in->fds, in->fds + 1, in->n_fds * sizeof(*in->fds));
	return fd;
}

void frame_out_init(struct frame_out *out)
{
	*out = (struct frame_out){ 0 };
}

static void free_first(struct frame_out *out)
{
	struct frame_chunk *c = out->first;

	out->first = c->next;
	if (!out->first)
		out->last = NULL;
	closep(&c->fd);
	free(c->data);
	free(c);
}

void frame_out_deinit(struct frame_out *out)
{
	while (out->first)
		free_first(out);
	out->queued_bytes = out->sent = 0;
}

/* Takes @data over, also on failure. */
static struct frame_chunk *add_chunk(struct frame_out *out, char *data, size_t cap)
{
	struct frame_chunk *c = data ? malloc(sizeof(*c)) : NULL;

	if (!c) {
		free(data);
		return NULL;
	}
	*c = (struct frame_chunk){ .data = data, .cap = cap, .fd = -1 };
	*(out->last ? &out->last->next : &out->first) = c;
	out->last = c;
	return c;
}

int frame_out_push(struct frame_out *out, char *data, size_t len, int fd)
{
	_cleanup_(closep) int own_fd = -1;
	struct frame_chunk *c;

	if (fd >= 0) {
		own_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		if (own_fd < 0) {
			const int r = -errno;

			free(data);
			return r;
		}
	}
	c = add_chunk(out, data, len);
	if (!c)
		return -ENOMEM;
	c->len = len;
	c->fd = steal_fd(&own_fd);
	out->queued_bytes += len;
	return 0;
}

char *frame_out_room(struct frame_out *out, size_t bytes)
{
	const size_t cap = MAX(bytes, CHUNK_BYTES);
	struct frame_chunk *c = out->last;

	/* the bytes behind one with a descriptor are not to be taken for its frame */
	if (!c || c->fd >= 0 || c->cap - c->len < bytes)
		c = add_chunk(out, malloc(cap), cap);
	return c ? c->data + c->len : NULL;
}

void frame_out_fill(struct frame_out *out, size_t bytes)
{
	out->last->len += bytes;
	out->queued_bytes += bytes;
}

static ssize_t send_with_fd(const struct frame_chunk *c, int fd, size_t n)
{
	char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = { 0 };
	struct iovec iov = { c->data, n };
	struct msghdr header = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &c->fd, sizeof(int));
	return sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static ssize_t send_some(const struct frame_chunk *c, size_t sent, int fd, size_t most)
{
	const size_t bytes = MIN(c->len - sent, most);
	ssize_t n;

	do {
		n = sent == 0 && c->fd >= 0
			    ? send_with_fd(c, fd, bytes)
			    : send(fd, c->data + sent, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	/* the kernel has no memory for it: no reason to cut off who waits for an answer */
	if (n < 0 && (errno == ENOBUFS || errno == ENOMEM))
		return -EAGAIN;
	return n < 0 ? -errno : n;
}

/* The first chunk is sent: the only one is kept for what comes next, unless it is large. */
static void end_first(struct frame_out *out)
{
	struct frame_chunk *c = out->first;

	out->sent = 0;
	if (c->next || c->cap != CHUNK_BYTES || c->fd >= 0)
		free_first(out);
	else
		c->len = 0;
}

int frame_out_flush(struct frame_out *out, int fd, size_t budget)
{
	while (out->queued_bytes > 0 && budget > 0) {
		ssize_t n;

		if (out->sent == out->first->len) { /* kept, and then too small */
			end_first(out);
			continue;
		}
		n = send_some(out->first, out->sent, fd, budget);
		if (n == -EAGAIN)
			return 0;
		if (n < 0)
			return n;
		out->sent += n;
		out->queued_bytes -= n;
		budget -= n;
		if (out->sent == out->first->len)
			end_first(out);
	}
	return out->queued_bytes > 0 ? 0 : 1;
}
