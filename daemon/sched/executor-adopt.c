/* What an earlier broker left: its record of the executor, and the executor itself. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include "daemon/sched/executor-parts.h"

static bool has_ended(int control_fd)
{
	struct pollfd p = { .fd = control_fd, .events = POLLIN };

	return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR | POLLNVAL));
}

int executor_recall(struct executor *e, int record_fd)
{
	int r;

	closep(&e->record_fd);
	e->record_fd = -1;
	if (record_fd < 0)
		return -ENOENT;
	r = execrecord_read(record_fd, &e->record);
	if (r < 0) {
		close(record_fd);
		return r;
	}
	e->record_fd = record_fd;
	return 0;
}

/* What can tell of its end, and carries whole packets. */
static bool is_control(int fd)
{
	int type = 0;
	socklen_t size = sizeof(type);

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_SEQPACKET;
}

/* Where it is by the record. An order that may not have been sent is sent again. */
static void adopt_state(struct executor *e)
{
	e->pid = e->record.pid;
	e->pool_wanted = e->pool_told = e->record.pool_bytes;
	switch (e->record.state) {
	case EXECRECORD_READY:
		e->state = EXECUTOR_READY;
		break;
	case EXECRECORD_PARKED:
		e->state = EXECUTOR_PARKED;
		break;
	case EXECRECORD_PARKING:
		e->state = EXECUTOR_PARKING;
		executor_order(e, CONTROL_PARK);
		break;
	case EXECRECORD_WAKING:
		e->state = EXECUTOR_LOADING;
		executor_order(e, CONTROL_WAKE);
		break;
	default:
		e->state = EXECUTOR_LOADING;
		break;
	}
}

int executor_adopt(struct executor *e, int control_fd, struct ring *ring, struct err *err)
{
	int r;

	executor_end(e);
	e->control_fd = control_fd;
	e->ring = *ring;
	*ring = (struct ring){ .memfd = -1, .down_fd = -1, .up_fd = -1 };
	if (!is_control(control_fd)) {
		executor_end(e);
		return err_set(err, -EBADMSG, "what was stored is no executor's socket");
	}
	fcntl(control_fd, F_SETFL, O_NONBLOCK);
	if (has_ended(control_fd)) {
		executor_end(e);
		return err_set(err, -EPIPE, "the executor is gone");
	}
	if (e->record_fd < 0) {
		/* it would be waited for without end: it may have said long ago that it is ready */
		executor_end(e);
		return err_set(err, -EBADMSG,
			       "there is no record of it that this version of steamd can read");
	}
	r = executor_watch(e);
	if (r < 0) {
		executor_detach(e);
		return err_wrap(err, r, "cannot watch the executor");
	}
	e->generation++;
	e->adopted = true;
	e->deaths = 0;
	e->progress = (struct control_progress){ .kind = CONTROL_PROGRESS };
	adopt_state(e);
	ring_wake(&e->ring);
	executor_tell(e);
	return 0;
}

int executor_adopt_gone(struct executor *e)
{
	if (e->record_fd < 0 || e->record.state != EXECRECORD_GONE)
		return -ENOENT;
	e->state = EXECUTOR_GONE;
	executor_tell(e);
	return 0;
}
