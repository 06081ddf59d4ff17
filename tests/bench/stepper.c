/* The executor's side of the control socket and of the ring, and a clock. */
#include "tests/bench/stepper.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "client/wire/control.h"

#define WAIT_MS 30000
#define N_FDS 4 /* arena, rings, bell down, bell up */

static int wait_for(int fd, const char *what, struct err *err)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int n;

	do
		n = poll(&p, 1, WAIT_MS);
	while (n < 0 && errno == EINTR);
	if (n > 0)
		return 0;
	return err_set(err, -ETIMEDOUT, "the broker sent no %s for %d s", what, WAIT_MS / 1000);
}

static int receive_configuration(struct stepper *s, int fds[N_FDS], struct err *err)
{
	struct control_configure configure;
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(N_FDS * sizeof(int))];
	} control;
	struct iovec iov = { &configure, sizeof(configure) };
	struct msghdr m = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control),
	};
	const struct cmsghdr *c;
	ssize_t n;
	int r;

	r = wait_for(s->control_fd, "configuration", err);
	if (r < 0)
		return r;
	n = recvmsg(s->control_fd, &m, MSG_CMSG_CLOEXEC);
	c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;
	if (n != sizeof(configure) || configure.kind != CONTROL_CONFIGURE ||
	    configure.version != CONTROL_VERSION || !c ||
	    c->cmsg_len != CMSG_LEN(N_FDS * sizeof(int)))
		return err_set(err, -EPROTO, "the broker's configuration is not of this version");
	memcpy(fds, CMSG_DATA(c), N_FDS * sizeof(int));
	return 0;
}

static int say_ready(const struct stepper *s)
{
	struct control_ready ready = { .kind = CONTROL_READY, .in_arena = 1, .n_threads = 1 };

	snprintf(ready.isa, sizeof(ready.isa), "none");
	snprintf(ready.device, sizeof(ready.device), "bench");
	return send(s->control_fd, &ready, sizeof(ready), MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int stepper_open(int listen_fd, pid_t broker_pid, struct stepper *s, struct err *err)
{
	int fds[N_FDS], r;

	memset(s, 0, sizeof(*s));
	s->control_fd = -1;
	s->ring = (struct ring){ .memfd = -1, .down_fd = -1, .up_fd = -1 };
	r = wait_for(listen_fd, "connection", err);
	if (r < 0)
		return r;
	s->control_fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
	if (s->control_fd < 0)
		return err_wrap(err, -errno, "cannot accept the broker");
	r = receive_configuration(s, fds, err);
	if (r == 0) {
		close(fds[0]); /* nothing is computed, so nothing is kept in the arena */
		r = ring_map(fds[1], fds[2], fds[3], &s->ring, err);
	}
	if (r == 0) {
		r = clock_getcpuclockid(broker_pid, &s->broker_cpu) ? -ESRCH : say_ready(s);
		if (r < 0)
			err_wrap(err, r, "cannot serve the broker");
	}
	if (r < 0)
		stepper_close(s);
	return r;
}

void stepper_close(struct stepper *s)
{
	closep(&s->control_fd);
	s->control_fd = -1;
	ring_deinit(&s->ring);
}

static uint64_t read_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t stepper_now_ns(void)
{
	return read_ns(CLOCK_MONOTONIC);
}

static void sleep_until_ns(uint64_t ns)
{
	const struct timespec ts = { .tv_sec = (time_t)(ns / 1000000000u),
				     .tv_nsec = (long)(ns % 1000000000u) };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
		;
}

static void answer_row(struct stepper *s, const struct row *row, uint32_t id,
		       struct row_result *ret)
{
	uint32_t *length = &s->length[row->slot % STEP_ROWS_MAX];

	*length = row->kind == ROW_FEED ? row->at + row->n_tokens : *length + 1;
	*ret = (struct row_result){ .slot = row->slot, .length = *length };
	if (!(row->flags & ROW_SAMPLE))
		return;
	ret->flags = RESULT_SAMPLED;
	ret->n_tokens = 1;
	ret->tokens[0] = id;
}

/* Returns the tokens sampled. */
static uint32_t answer_step(struct stepper *s, const struct step *step, const struct row *rows)
{
	const uint32_t id = step->id % STEPPER_IDS;
	struct row_result *results = ring_result_room(&s->ring);
	const struct step_result result = {
		.id = step->id,
		.n_rows = step->n_rows,
		.kind = step->kind,
		.payload_bytes = step->n_rows * (uint32_t)sizeof(*results),
	};
	struct stepper_step *told = &s->steps[id];
	uint32_t n = 0;

	for (uint32_t i = 0; i < step->n_rows; i++) {
		answer_row(s, &rows[i], id, &results[i]);
		n += results[i].n_tokens;
	}
	told->cpu_ns = read_ns(s->broker_cpu);
	told->n_rows = n;
	s->last_id = step->id;
	atomic_store(&told->done_ns, stepper_now_ns());
	ring_done(&s->ring, &result);
	return n;
}

/* Pages are moved in no time; there is nothing in them, so that every sum is right. */
static void answer_moves(struct stepper *s, const struct step *step)
{
	const struct step_result result = {
		.id = step->id,
		.n_rows = step->n_rows,
		.kind = step->kind,
		.payload_bytes = step->n_rows * (uint32_t)sizeof(struct step_moved),
	};

	memset(ring_result_room(&s->ring), 0, result.payload_bytes);
	ring_done(&s->ring, &result);
}

/* Sleeps until there is a step, and takes note of when it begins. */
static int next_step(struct stepper *s, uint64_t *at_ns, const struct step **ret,
		     const void **ret_rows, struct err *err)
{
	uint64_t rung;
	int r;

	while (!(*ret = ring_next(&s->ring, ret_rows))) {
		r = wait_for(s->ring.down_fd, "step", err);
		if (r < 0)
			return r;
		if (read(s->ring.down_fd, &rung, sizeof(rung)) < 0)
			return err_wrap(err, -errno, "cannot read the step ring's bell");
		*at_ns = stepper_now_ns();
	}
	return 0;
}

int stepper_run(struct stepper *s, uint32_t n_tokens, uint64_t step_ns, stepper_halfway_fn halfway,
		void *userdata, struct err *err)
{
	uint64_t at_ns = stepper_now_ns();

	for (uint32_t n = 0; n < n_tokens;) {
		const struct step *step;
		const void *rows;
		int r;

		r = next_step(s, &at_ns, &step, &rows, err);
		if (r < 0)
			return r;
		if (step->kind == STEP_MOVE) {
			answer_moves(s, step);
			continue;
		}
		sleep_until_ns(at_ns + step_ns / 2);
		r = halfway(userdata);
		if (r < 0)
			return err_wrap(err, r, "in the middle of a step");
		at_ns += step_ns;
		sleep_until_ns(at_ns);
		n += answer_step(s, step, rows);
	}
	return 0;
}
