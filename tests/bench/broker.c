/* Starting, watching and ending a steamd. */
#include "tests/bench/broker.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#define START_MS 30000
#define ENVIRONMENT_MORE 7
#define KEPT_MAX 16
#define KEPT_FROM 64 /* above those that what we start is given */

extern char **environ;

struct kept {
	char name[64];
	int fd;
};

struct broker {
	struct broker_options options;
	char dir[32];
	char socket[64], notify[64], executor[64];
	/* the manager's store; the listener writes it while steamd runs, we read it when that has ended */
	struct kept kept[KEPT_MAX];
	unsigned n_kept;
	pthread_mutex_t lock; /* of the store and of ready_fd[1] */
	int notify_fd, executor_fd, pidfd;
	int ready_fd[2]; /* a pipe: closed for writing when READY=1 has come */
	pid_t pid;
	pthread_t listener;
	bool listens;
};

static int bind_at(const char *path, int type)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	_cleanup_(closep) int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

	strncpy(at.sun_path, path, sizeof(at.sun_path) - 1);
	if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0)
		return -errno;
	if (type == SOCK_SEQPACKET && listen(fd, 8) < 0)
		return -errno;
	return steal_fd(&fd);
}

/* The value of @key in lines of KEY=VALUE, into @ret of @size bytes, or false. */
static bool find_word(const char *state, const char *key, char *ret, size_t size)
{
	const size_t n = strlen(key);

	for (const char *line = state; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, key, n) == 0 && line[n] == '=') {
			snprintf(ret, size, "%.*s", (int)strcspn(line + n + 1, "\n"), line + n + 1);
			return true;
		}
	}
	return false;
}

/* Called with the lock held, as all three. */
static void keep(struct broker *b, const char *name, int fd)
{
	const int high = b->n_kept < KEPT_MAX ? fcntl(fd, F_DUPFD_CLOEXEC, KEPT_FROM) : -1;

	close(fd);
	if (high < 0)
		return;
	b->kept[b->n_kept].fd = high;
	snprintf(b->kept[b->n_kept++].name, sizeof(b->kept->name), "%s", name);
}

static void forget(struct broker *b, const char *name)
{
	for (unsigned i = b->n_kept; i-- > 0;) {
		if (name && strcmp(b->kept[i].name, name) != 0)
			continue;
		close(b->kept[i].fd);
		b->kept[i] = b->kept[--b->n_kept];
	}
}

static void take_in(struct broker *b, const char *state, struct msghdr *m)
{
	char name[64] = "", word[8];
	const bool keeps = find_word(state, "FDSTORE", word, sizeof(word));

	find_word(state, "FDNAME", name, sizeof(name));
	if (find_word(state, "FDSTOREREMOVE", word, sizeof(word)))
		forget(b, name);
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		const size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		for (size_t i = 0; c->cmsg_type == SCM_RIGHTS && i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (keeps)
				keep(b, name, fd);
			else
				close(fd);
		}
	}
	if (strstr(state, "READY=1"))
		closep(&b->ready_fd[1]), b->ready_fd[1] = -1;
}

/* The manager's part. Ends with the empty message of stop(). */
static void *listen_to(void *userdata)
{
	struct broker *b = userdata;

	for (;;) {
		char state[2048];
		union {
			struct cmsghdr align;
			char bytes[256];
		} control;
		struct iovec iov = { state, sizeof(state) - 1 };
		struct msghdr m = { .msg_iov = &iov,
				    .msg_iovlen = 1,
				    .msg_control = control.bytes,
				    .msg_controllen = sizeof(control) };
		const ssize_t n = recvmsg(b->notify_fd, &m, MSG_CMSG_CLOEXEC);

		if (n == 0 || (n < 0 && errno != EINTR))
			return NULL;
		if (n < 0)
			continue;
		state[n] = '\0';
		pthread_mutex_lock(&b->lock);
		take_in(b, state, &m);
		pthread_mutex_unlock(&b->lock);
	}
}

static int start_listening(struct broker *b)
{
	int r;

	b->notify_fd = bind_at(b->notify, SOCK_DGRAM);
	if (b->notify_fd < 0)
		return b->notify_fd;
	r = pthread_create(&b->listener, NULL, listen_to, b);
	b->listens = r == 0;
	return -r;
}

static void stop_listening(struct broker *b)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	_cleanup_(closep) int fd = -1;

	if (!b->listens)
		return;
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	memcpy(at.sun_path, b->notify, strlen(b->notify) + 1);
	if (fd < 0 || sendto(fd, "", 0, 0, (struct sockaddr *)&at, sizeof(at)) < 0)
		shutdown(b->notify_fd, SHUT_RDWR);
	pthread_join(b->listener, NULL);
}

static bool is_overridden(const char *variable)
{
	static const char *const names[] = { "NOTIFY_SOCKET=", "WATCHDOG_", "LISTEN_",
					     "XDG_RUNTIME_DIR=", "MEMORY_PRESSURE_" };

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (strncmp(variable, names[i], strlen(names[i])) == 0)
			return true;
	}
	return false;
}

/* What was kept, from descriptor 3 on, and the variables that say so. */
static int hand_over(const struct broker *b, posix_spawn_file_actions_t *actions, char *n_fds,
		     size_t n_size, char *names, size_t names_size)
{
	size_t at;
	int r = 0;

	snprintf(n_fds, n_size, "LISTEN_FDS=%u", b->n_kept);
	at = (size_t)snprintf(names, names_size, "LISTEN_FDNAMES=");
	for (unsigned i = 0; i < b->n_kept && r == 0; i++) {
		at += (size_t)snprintf(names + at, names_size - at, "%s%s", i ? ":" : "",
				       b->kept[i].name);
		r = posix_spawn_file_actions_adddup2(actions, b->kept[i].fd, 3 + (int)i);
	}
	return r;
}

/* Through a shell, since LISTEN_PID is known only once there is a process. */
static int spawn(struct broker *b)
{
	const struct broker_options *o = &b->options;
	char notify[128], runtime[64], watchdog[64], state[64], n_fds[32];
	char names[KEPT_MAX * (sizeof(b->kept->name) + 1) + 32];
	char *const argv[] = { "sh",
			       "-c",
			       "LISTEN_PID=$$ exec \"$@\"",
			       "sh",
			       (char *)o->program,
			       "--model",
			       (char *)o->model,
			       "--socket",
			       b->socket,
			       "--state",
			       state,
			       o->set ? "--set" : NULL,
			       (char *)o->set,
			       NULL };
	_cleanup_(freep) char **env = NULL;
	posix_spawn_file_actions_t actions;
	size_t n = 0, n_env = 0;
	int r;

	snprintf(state, sizeof(state), "%s/state", b->dir);
	snprintf(notify, sizeof(notify), "NOTIFY_SOCKET=%s", b->notify);
	snprintf(runtime, sizeof(runtime), "XDG_RUNTIME_DIR=%s", b->dir);
	snprintf(watchdog, sizeof(watchdog), "WATCHDOG_USEC=%u", o->watchdog_ms * 1000);
	while (environ[n])
		n++;
	env = calloc(n + ENVIRONMENT_MORE, sizeof(*env));
	if (!env)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		if (!is_overridden(environ[i]))
			env[n_env++] = environ[i];
	}
	env[n_env++] = notify;
	env[n_env++] = runtime;
	/* nothing sleeps because the machine that measures is short of memory */
	env[n_env++] = "MEMORY_PRESSURE_WATCH=/dev/null";
	if (o->watchdog_ms)
		env[n_env++] = watchdog;

	r = posix_spawn_file_actions_init(&actions);
	if (r)
		return -r;
	if (b->n_kept) {
		r = hand_over(b, &actions, n_fds, sizeof(n_fds), names, sizeof(names));
		env[n_env++] = n_fds;
		env[n_env++] = names;
	}
	if (r == 0 && !getenv("BENCH_LOG"))
		r = posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
	if (r == 0)
		r = posix_spawnp(&b->pid, "sh", &actions, NULL, argv, env);
	posix_spawn_file_actions_destroy(&actions);
	return -r;
}

static int await_ready(struct broker *b, struct err *err)
{
	struct pollfd p[] = { { .fd = b->ready_fd[0], .events = POLLIN },
			      { .fd = b->pidfd, .events = POLLIN } };
	const char *program = b->options.program;
	int n;

	do
		n = poll(p, ARRAY_SIZE(p), START_MS);
	while (n < 0 && errno == EINTR);
	if (n == 0)
		return err_set(err, -ETIMEDOUT, "'%s' was not ready within %d s", program,
			       START_MS / 1000);
	if (p[0].revents)
		return 0;
	return err_set(err, -EIO, "'%s' ended before it was ready; BENCH_LOG=1 shows its log",
		       program);
}

static int run(struct broker *b, struct err *err)
{
	int r;

	pthread_mutex_lock(&b->lock);
	closep(&b->ready_fd[0]);
	closep(&b->ready_fd[1]);
	r = pipe2(b->ready_fd, O_CLOEXEC) < 0 ? -errno : 0;
	pthread_mutex_unlock(&b->lock);
	if (r >= 0)
		r = spawn(b);
	if (r < 0)
		return err_wrap(err, r, "cannot start '%s'", b->options.program);
	b->pidfd = pidfd_open(b->pid, 0);
	if (b->pidfd < 0)
		return err_wrap(err, -errno, "cannot watch '%s'", b->options.program);
	return await_ready(b, err);
}

static void end(struct broker *b, int signal)
{
	if (b->pid > 0) {
		kill(b->pid, signal);
		waitpid(b->pid, NULL, 0);
	}
	b->pid = 0;
	closep(&b->pidfd);
	b->pidfd = -1;
}

int broker_start(const struct broker_options *o, struct broker **ret, struct err *err)
{
	_cleanup_(broker_stopp) struct broker *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return err_set(err, -ENOMEM, "out of memory");
	b->options = *o;
	b->notify_fd = b->executor_fd = b->pidfd = b->ready_fd[0] = b->ready_fd[1] = -1;
	pthread_mutex_init(&b->lock, NULL);
	/* not in $TMPDIR: paths of sockets are short */
	strcpy(b->dir, "/tmp/steamd-bench-XXXXXX");
	if (!mkdtemp(b->dir)) {
		r = -errno;
		b->dir[0] = '\0';
		return err_wrap(err, r, "cannot make a directory in /tmp");
	}
	chmod(b->dir, 0711); /* SocketMode= decides who may connect */
	snprintf(b->socket, sizeof(b->socket), "%s/socket", b->dir);
	snprintf(b->notify, sizeof(b->notify), "%s/notify", b->dir);
	/* where the broker looks for the socket of its executor's unit */
	snprintf(b->executor, sizeof(b->executor), "%s/steamd-exec-cpu.sock", b->dir);
	r = start_listening(b);
	if (r == 0 && o->computes_here) {
		b->executor_fd = bind_at(b->executor, SOCK_SEQPACKET);
		r = MIN(b->executor_fd, 0);
	}
	if (r < 0)
		return err_wrap(err, r, "cannot listen in '%s'", b->dir);
	r = run(b, err);
	if (r < 0)
		return r;
	*ret = steal(b);
	return 0;
}

int broker_restart(struct broker *b, struct err *err)
{
	end(b, SIGKILL);
	return run(b, err);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	(void)st, (void)kind, (void)ftw;
	return remove(path);
}

static void remove_files(const struct broker *b)
{
	nftw(b->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

struct broker *broker_stop(struct broker *b)
{
	if (!b)
		return NULL;
	end(b, SIGTERM);
	stop_listening(b);
	forget(b, NULL);
	closep(&b->notify_fd);
	closep(&b->executor_fd);
	closep(&b->pidfd);
	closep(&b->ready_fd[0]);
	closep(&b->ready_fd[1]);
	if (b->dir[0])
		remove_files(b);
	pthread_mutex_destroy(&b->lock);
	free(b);
	return NULL;
}

pid_t broker_pid(const struct broker *b)
{
	return b->pid;
}

const char *broker_socket(const struct broker *b)
{
	return b->socket;
}

int broker_executor_fd(const struct broker *b)
{
	return b->executor_fd;
}
