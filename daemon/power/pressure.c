/* Opening, registering, and one event source. */
#include "daemon/power/pressure.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "client/wire/ownership.h"

#define PSI_PATH "/proc/pressure/memory"
#define WRITE_MAX 4096

struct pressure {
	char *path;
	int fd;
	bool psi;  /* else what it gives is read */
	bool pipe; /* what is written to it would come back as a sign */
	sd_event_source *source;
	void (*on_pressure)(void *userdata);
	void *userdata;
};

static int base64_value(char c)
{
	static const char digits[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const char *at = c ? strchr(digits, c) : NULL;

	return at ? (int)(at - digits) : -1;
}

/* Returns the bytes written to @to, or -EINVAL. */
static ssize_t decode_base64(const char *text, char *to, size_t room)
{
	uint32_t bits = 0, n_bits = 0;
	size_t n = 0;

	for (; *text && *text != '='; text++) {
		const int value = base64_value(*text);

		if (value < 0)
			return -EINVAL;
		bits = bits << 6 | (uint32_t)value;
		n_bits += 6;
		if (n_bits < 8)
			continue;
		n_bits -= 8;
		if (n == room)
			return -EINVAL;
		to[n++] = (char)(bits >> n_bits);
	}
	return (ssize_t)n;
}

/* Signs that came in a pipe or a socket are taken out of it; its end is no sign. */
static bool take_signs(struct pressure *p)
{
	char bytes[256];
	ssize_t n;
	bool any = false;

	while ((n = read(p->fd, bytes, sizeof(bytes))) > 0)
		any = true;
	if (n == 0 || errno != EAGAIN)
		p->source = sd_event_source_disable_unref(p->source);
	return any;
}

static int on_sign(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct pressure *p = userdata;

	(void)source, (void)fd;
	if (p->psi && !(revents & EPOLLPRI)) {
		/* the group that was watched is gone */
		p->source = sd_event_source_disable_unref(p->source);
		return 0;
	}
	if (p->psi || take_signs(p))
		p->on_pressure(p->userdata);
	return 0;
}

static int open_socket(const char *path)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	_cleanup_(closep) int fd = -1;

	if (strlen(path) >= sizeof(to.sun_path))
		return -ENAMETOOLONG;
	memcpy(to.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
		return -errno;
	return steal_fd(&fd);
}

static int open_path(struct pressure *p, bool writes)
{
	struct stat st;

	if (stat(p->path, &st) < 0)
		return -errno;
	p->psi = S_ISREG(st.st_mode);
	p->pipe = S_ISFIFO(st.st_mode);
	if (S_ISSOCK(st.st_mode)) {
		p->fd = open_socket(p->path);
		return MIN(p->fd, 0);
	}
	/* a pipe is opened both ways, so that it has no end when a writer goes */
	p->fd = open(p->path, O_CLOEXEC | O_NONBLOCK | (writes || p->pipe ? O_RDWR : O_RDONLY));
	return p->fd < 0 ? -errno : 0;
}

/* What registers: the manager's own, or the trigger with its NUL, without which its last digit is cut. */
static ssize_t read_order(const char *path_given, char *to, size_t room)
{
	const char *text = getenv("MEMORY_PRESSURE_WRITE");

	if (!path_given) {
		memcpy(to, PRESSURE_TRIGGER, sizeof(PRESSURE_TRIGGER));
		return sizeof(PRESSURE_TRIGGER);
	}
	return text && text[0] ? decode_base64(text, to, room) : 0;
}

static int open_and_register(struct pressure *p, const char *path_given, struct err *err)
{
	char order[WRITE_MAX];
	const ssize_t n = read_order(path_given, order, sizeof(order));
	int r;

	if (n < 0)
		return err_set(err, (int)n, "$MEMORY_PRESSURE_WRITE is no base64");
	r = open_path(p, n > 0);
	if (r < 0)
		return err_set(err, r, "cannot open '%s': %s", p->path, strerror(-r));
	if (n > 0 && !p->pipe && write(p->fd, order, (size_t)n) < 0) {
		r = -errno;
		return err_set(err, r, "cannot set a trigger on '%s': %s", p->path, strerror(-r));
	}
	return 0;
}

int pressure_new(sd_event *loop, void (*on_pressure)(void *userdata), void *userdata,
		 struct pressure **ret, struct err *err)
{
	const char *given = getenv("MEMORY_PRESSURE_WATCH");
	struct pressure *p;
	int r;

	*ret = NULL;
	if (given && strcmp(given, "/dev/null") == 0)
		return 0;
	p = calloc(1, sizeof(*p));
	if (!p)
		return err_set(err, -ENOMEM, "out of memory");
	p->fd = -1;
	p->on_pressure = on_pressure;
	p->userdata = userdata;
	if (given && !given[0])
		given = NULL;
	p->path = strdup(given ? given : PSI_PATH);
	r = p->path ? open_and_register(p, given, err) : err_set(err, -ENOMEM, "out of memory");
	if (r == 0) {
		r = sd_event_add_io(loop, &p->source, p->fd, p->psi ? EPOLLPRI : EPOLLIN, on_sign,
				    p);
		if (r < 0)
			err_set(err, r, "cannot wait on '%s': %s", p->path, strerror(-r));
	}
	if (r < 0) {
		pressure_free(p);
		return r;
	}
	*ret = p;
	return 0;
}

struct pressure *pressure_free(struct pressure *p)
{
	if (!p)
		return NULL;
	sd_event_source_disable_unref(p->source);
	closep(&p->fd);
	free(p->path);
	free(p);
	return NULL;
}

const char *pressure_path(const struct pressure *p)
{
	return p->path;
}
