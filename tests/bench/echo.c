/*
 * The other process blocks in read() and writes back what it read. It is a
 * fork, so that nothing has to be found and started; it holds nothing of ours
 * but its end of the socket pair, and ends with it.
 */
#include "tests/bench/echo.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "tests/bench/bench.h"

#define TIMES 100 /* in a round */

struct echo {
	int fd;
	pid_t pid;
};

static void answer(int fd)
{
	char byte;

	if (dup2(fd, 0) < 0)
		_exit(1);
	close_range(1, ~0u, 0);
	while (read(0, &byte, 1) == 1)
		if (write(0, &byte, 1) != 1)
			break;
	_exit(0);
}

int echo_open(struct echo **ret, struct err *err)
{
	_cleanup_(echo_closep) struct echo *e = calloc(1, sizeof(*e));
	int pair[2];

	if (!e)
		return -ENOMEM;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
		free(steal(e));
		return err_wrap(err, -errno, "cannot make a pair of sockets");
	}
	e->fd = pair[0];
	e->pid = fork();
	if (e->pid == 0) {
		close(pair[0]);
		answer(pair[1]);
	}
	close(pair[1]);
	if (e->pid < 0)
		return err_wrap(err, -errno, "cannot fork");
	*ret = steal(e);
	return 0;
}

struct echo *echo_close(struct echo *e)
{
	if (!e)
		return NULL;
	close(e->fd);
	if (e->pid > 0)
		waitpid(e->pid, NULL, 0);
	free(e);
	return NULL;
}

double echo_trip_s(struct echo *e)
{
	const double from = bench_now_s();
	char byte = 1;

	if (send(e->fd, &byte, 1, MSG_NOSIGNAL) != 1 || read(e->fd, &byte, 1) != 1)
		return -EPIPE;
	return bench_now_s() - from;
}

static int once(void *echo, double *ret_value, double *ret_limit)
{
	const double s = echo_trip_s(echo);

	(void)ret_limit;
	*ret_value = s * 1e6;
	return s < 0 ? -EPIPE : 0;
}

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	struct bench_row row = { .name = figure->name, .unit = "us" };
	_cleanup_(echo_closep) struct echo *e = NULL;
	int r;

	r = echo_open(&e, err);
	if (r < 0)
		return r;
	r = bench_rounds(b, TIMES, once, e, &row);
	if (r < 0)
		return err_wrap(err, r, "the echo ended");
	bench_print(b, &row);
	return 0;
}

const struct bench_figure figures_echo[] = {
	{ "echo", "a byte to another process and back, bare", measure, 0, true },
	{ 0 },
};
