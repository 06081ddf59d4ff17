/* A child process that its owner may forget while it still ends. */
#include "daemon/sched/child.h"

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

#include "client/wire/control.h"
#include "client/wire/ownership.h"

extern char **environ;

struct child {
	pid_t pid;
	int pidfd;
	bool ended;
	siginfo_t how;
	int (*on_end)(void *userdata); /* NULL: nobody is interested any more */
	void *userdata;
	sd_event_source *source;
};

/* What the service manager told us is not for the child. */
static const char *const private_variables[] = { "NOTIFY_SOCKET=", "LISTEN_FDS=",
						 "LISTEN_PID=",	   "LISTEN_FDNAMES=",
						 "WATCHDOG_USEC=", "WATCHDOG_PID=" };

static bool is_private(const char *variable)
{
	for (size_t i = 0; i < ARRAY_SIZE(private_variables); i++) {
		if (strncmp(variable, private_variables[i], strlen(private_variables[i])) == 0)
			return true;
	}
	return false;
}

static char **child_environment(void)
{
	size_t n = 0, kept = 0;
	char **env;

	while (environ[n])
		n++;
	env = calloc(n + 1, sizeof(*env));
	for (size_t i = 0; env && i < n; i++) {
		if (!is_private(environ[i]))
			env[kept++] = environ[i];
	}
	return env;
}

/* Default signals, none blocked; a process group of its own, so that Ctrl-C is the broker's. */
static int set_attributes(posix_spawnattr_t *attributes)
{
	sigset_t none, all;

	sigemptyset(&none);
	sigfillset(&all);
	posix_spawnattr_setsigmask(attributes, &none);
	posix_spawnattr_setsigdefault(attributes, &all);
	posix_spawnattr_setpgroup(attributes, 0);
	return posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
							    POSIX_SPAWN_SETPGROUP);
}

static int spawn(const char *program, int control_fd, pid_t *ret)
{
	_cleanup_(freep) char **env = child_environment();
	char *argv[] = { (char *)program, NULL };
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	int r;

	if (!env)
		return -ENOMEM;
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attributes);
	r = posix_spawn_file_actions_adddup2(&actions, control_fd, CONTROL_FD);
	if (r == 0)
		r = set_attributes(&attributes);
	if (r == 0)
		r = posix_spawn(ret, program, &actions, &attributes, argv, env);
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	return -r;
}

static void child_destroy(struct child *c)
{
	closep(&c->pidfd);
	free(c);
}

static void on_source_gone(void *userdata)
{
	child_destroy(userdata);
}

static int on_pidfd(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct child *c = userdata;

	(void)fd, (void)revents;
	if (waitid(P_PID, (id_t)c->pid, &c->how, WEXITED | WNOHANG) < 0 || c->how.si_pid == 0)
		return 0;
	c->ended = true;
	sd_event_source_set_enabled(source, SD_EVENT_OFF);
	if (c->on_end)
		return c->on_end(c->userdata);
	sd_event_source_disable_unref(source); /* nobody is left: takes the child with it */
	return 0;
}

int child_start(sd_event *loop, const char *program, int control_fd, int (*on_end)(void *userdata),
		void *userdata, struct child **ret, struct err *err)
{
	struct child *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return err_set(err, -ENOMEM, "out of memory");
	c->pidfd = -1;
	c->on_end = on_end;
	c->userdata = userdata;
	r = spawn(program, control_fd, &c->pid);
	if (r < 0) {
		child_destroy(c);
		return err_set(err, r, "cannot start '%s': %s", program, strerror(-r));
	}
	c->pidfd = pidfd_open(c->pid, 0);
	r = c->pidfd < 0 ? -errno
			 : sd_event_add_io(loop, &c->source, c->pidfd, EPOLLIN, on_pidfd, c);
	if (r < 0) {
		kill(c->pid, SIGKILL);
		waitpid(c->pid, NULL, 0); /* ends at once: it was just killed */
		child_destroy(c);
		return err_set(err, r, "cannot watch '%s': %s", program, strerror(-r));
	}
	sd_event_source_set_destroy_callback(c->source, on_source_gone);
	*ret = c;
	return 0;
}

struct child *child_leave(struct child *c)
{
	if (!c)
		return NULL;
	c->on_end = NULL;
	if (c->ended) {
		sd_event_source_disable_unref(c->source);
		return NULL;
	}
	/* the loop keeps the source, and the source the child, until it ends */
	sd_event_source_set_floating(c->source, true);
	sd_event_source_unref(c->source);
	return NULL;
}

bool child_kill(struct child *c)
{
	if (c->ended)
		return false;
	kill(c->pid, SIGKILL);
	return true;
}

pid_t child_pid(const struct child *c)
{
	return c->pid;
}

void child_describe(const struct child *c, char *ret, size_t size)
{
	if (c->how.si_code == CLD_EXITED)
		snprintf(ret, size, "the executor exited with status %d", c->how.si_status);
	else
		snprintf(ret, size, "the executor was killed by signal %d", c->how.si_status);
}
