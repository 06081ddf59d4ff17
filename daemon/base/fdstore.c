/* The service manager's descriptor store: what came from it, what goes to it. */
#include "daemon/base/fdstore.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <systemd/sd-daemon.h>

#include "client/wire/ownership.h"

#define NAME_MAX_BYTES 255 /* what the manager accepts */
#define STATE_BYTES 1024
#define TRIES 3 /* a message that the kernel has no room for now is missed for ever */

static struct {
	char **names;
	int *fds;  /* -1: taken */
	int *kept; /* duplicates of those, or -1; NULL: nothing is kept */
	int n;
} received;

void fdstore_init(void)
{
	char **names = NULL;
	int n;

	/* the environment is cleared, so that no child believes it is meant */
	n = sd_listen_fds_with_names(true, &names);
	if (n <= 0)
		return;
	received.fds = calloc((size_t)n, sizeof(*received.fds));
	if (!received.fds) {
		for (int i = 0; i < n; i++) {
			close(SD_LISTEN_FDS_START + i);
			free(names[i]);
		}
		free(names);
		return;
	}
	for (int i = 0; i < n; i++)
		received.fds[i] = SD_LISTEN_FDS_START + i;
	received.names = names;
	received.n = n;
}

void fdstore_receive(char **names, int *fds, int n)
{
	fdstore_discard_rest(NULL);
	received.names = names;
	received.fds = fds;
	received.n = n;
}

static void drop_kept(void)
{
	for (int i = 0; received.kept && i < received.n; i++)
		closep(&received.kept[i]);
	free(received.kept);
	received.kept = NULL;
}

int fdstore_keep(void)
{
	int r;

	drop_kept();
	if (received.n == 0)
		return 0;
	received.kept = malloc((size_t)received.n * sizeof(*received.kept));
	if (!received.kept)
		return -ENOMEM;
	for (int i = 0; i < received.n; i++)
		received.kept[i] = -1;
	for (int i = 0; i < received.n; i++) {
		if (received.fds[i] < 0)
			continue;
		received.kept[i] = fcntl(received.fds[i], F_DUPFD_CLOEXEC, 3);
		if (received.kept[i] < 0) {
			r = -errno;
			drop_kept();
			return r;
		}
	}
	return 0;
}

void fdstore_give_back(void)
{
	for (int i = 0; received.kept && i < received.n; i++) {
		if (received.fds[i] < 0)
			received.fds[i] = steal_fd(&received.kept[i]);
	}
	drop_kept();
}

int fdstore_take(const char *name)
{
	for (int i = 0; i < received.n; i++) {
		if (received.fds[i] >= 0 && strcmp(received.names[i], name) == 0)
			return steal_fd(&received.fds[i]);
	}
	return -1;
}

int fdstore_take_next(const char *prefix, char *name, size_t size)
{
	for (int i = 0; i < received.n; i++) {
		if (received.fds[i] < 0 || strncmp(received.names[i], prefix, strlen(prefix)) != 0)
			continue;
		snprintf(name, size, "%s", received.names[i]);
		return steal_fd(&received.fds[i]);
	}
	return -1;
}

/* Removing is by name: not if one of that name is in use. */
static bool was_taken(const char *name)
{
	for (int i = 0; i < received.n; i++) {
		if (received.fds[i] < 0 && strcmp(received.names[i], name) == 0)
			return true;
	}
	return false;
}

void fdstore_discard_rest(void (*on_discard)(const char *name))
{
	drop_kept();
	for (int i = 0; i < received.n; i++) {
		if (received.fds[i] < 0)
			continue;
		if (on_discard)
			on_discard(received.names[i]);
		if (!was_taken(received.names[i]))
			fdstore_remove(received.names[i]);
		close(received.fds[i]);
	}
	for (int i = 0; i < received.n; i++)
		free(received.names[i]);
	free(received.names);
	free(received.fds);
	received.names = NULL;
	received.fds = NULL;
	received.n = 0;
}

static bool is_name(const char *name)
{
	const size_t len = strlen(name);

	if (len == 0 || len > NAME_MAX_BYTES)
		return false;
	for (size_t i = 0; i < len; i++) {
		if (name[i] <= ' ' || name[i] >= 127 || name[i] == ':')
			return false;
	}
	return true;
}

/* With @fd, or -1. */
static int tell(const char *state, int fd)
{
	int r = 0;

	for (int i = 0; i < TRIES; i++) {
		r = sd_pid_notify_with_fds(0, false, state, &fd, fd >= 0 ? 1 : 0);
		if (r >= 0)
			return 0;
	}
	return r;
}

int fdstore_put(const char *name, int fd, int watch)
{
	char state[NAME_MAX_BYTES + 64];

	if (!is_name(name) || fd < 0)
		return -EINVAL;
	snprintf(state, sizeof(state), "FDSTORE=1\nFDNAME=%s%s", name, watch ? "" : "\nFDPOLL=0");
	return tell(state, fd);
}

void fdstore_remove(const char *name)
{
	if (is_name(name))
		fdstore_notify("FDSTOREREMOVE=1\nFDNAME=%s", name);
}

void fdstore_notify(const char *format, ...)
{
	char state[STATE_BYTES];
	va_list ap;
	int n;

	va_start(ap, format);
	n = vsnprintf(state, sizeof(state), format, ap);
	va_end(ap);
	if (n >= 0)
		tell(state, -1);
}

int fdstore_barrier(uint64_t timeout_us)
{
	return MIN(sd_notify_barrier(false, timeout_us), 0);
}
