/*
 * Loaded into the broker or its executor before libc, for tests: counts calls that write,
 * sync, rename, cut, make memory files and speak to the service manager, and
 * at the Nth of a kind does what the test has ordered: kills the process before
 * the call, after it, or after half of what was to be written; or lets it fail.
 *
 * Order and counts are in a file that the test maps too, whose path is in
 * STEAMD_TEST_CALLS: counting goes on over all lives of the program, whose name
 * is in STEAMD_TEST_CALLS_OF. What is loaded into any other does nothing.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))

enum kind {
	KIND_NONE,
	WRITE, /* to a file, a memfd too */
	BELL,  /* to anything else: eventfds, sockets */
	SYNC,
	RENAME,
	TRUNCATE, /* fallocate() too */
	MEMFD,
	NOTIFY, /* a message to the service manager */
	SEND,	/* one to anybody else */
	UNLINK,
	N_KINDS,
};

enum how { NOTHING, BEFORE, HALF, AFTER, FAIL };

/* As tests/e2e/calls.py has it. */
struct shared {
	uint32_t kind, how;
	uint64_t at; /* the count of @kind at which it happens; 0: never */
	int32_t error;
	_Atomic uint32_t done;
	char where[64]; /* the call that it was */
	_Atomic uint64_t counts[N_KINDS];
};
_Static_assert(sizeof(struct shared) == 168, "calls.py has it too");

static struct shared *shared; /* NULL: not in this program */
static char notify_path[sizeof(((struct sockaddr_un *)0)->sun_path)];

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("STEAMD_TEST_CALLS"), *notify = getenv("NOTIFY_SOCKET");
	const char *program = getenv("STEAMD_TEST_CALLS_OF");
	void *at;
	int fd;

	if (!path || !program || strcmp(program_invocation_short_name, program) != 0)
		return;
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return;
	at = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (notify)
		snprintf(notify_path, sizeof(notify_path), "%s", notify);
	if (at != MAP_FAILED)
		shared = at;
}

static void die(void)
{
	syscall(SYS_kill, getpid(), SIGKILL);
	for (;;)
		pause();
}

/* Counts the call; what is to become of it. Does not return if it is never made. */
static enum how meet(enum kind kind, const char *name)
{
	enum how how;

	if (!shared || kind == KIND_NONE)
		return NOTHING;
	if (atomic_fetch_add(&shared->counts[kind], 1) + 1 != shared->at || shared->kind != kind)
		return NOTHING;
	how = shared->how;
	snprintf(shared->where, sizeof(shared->where), "%s", name);
	atomic_store(&shared->done, 1);
	if (how == BEFORE)
		die();
	if (how == FAIL)
		errno = shared->error;
	return how;
}

static enum kind kind_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? WRITE : BELL;
}

static enum kind kind_of_message(const void *to, socklen_t bytes)
{
	const struct sockaddr_un *un = to;

	return notify_path[0] && un && bytes > offsetof(struct sockaddr_un, sun_path) &&
			       un->sun_family == AF_UNIX &&
			       strncmp(un->sun_path, notify_path, sizeof(notify_path)) == 0
		       ? NOTIFY
		       : SEND;
}

/* Declares real_NAME, which finds the function that NAME stands before. */
#define REAL(type, name, ...)                                                                      \
	typedef type (*name##_fn)(__VA_ARGS__);                                                    \
	static name##_fn real_##name(void)                                                         \
	{                                                                                          \
		static _Atomic(void *) found;                                                      \
                                                                                                   \
		if (!atomic_load(&found))                                                          \
			atomic_store(&found, dlsym(RTLD_NEXT, #name));                             \
		return (name##_fn)atomic_load(&found);                                             \
	}

/* A call of @kind that @call makes; @half makes half of it, if there is such a thing. */
#define MEET(type, kind, name, call, half)                                                         \
	do {                                                                                       \
		const enum how how = meet(kind, name);                                             \
		type result;                                                                       \
                                                                                                   \
		if (how == FAIL)                                                                   \
			return -1;                                                                 \
		if (how == HALF) {                                                                 \
			(void)!(half);                                                             \
			die();                                                                     \
		}                                                                                  \
		result = (call);                                                                   \
		if (how == AFTER)                                                                  \
			die();                                                                     \
		return result;                                                                     \
	} while (0)

REAL(ssize_t, write, int, const void *, size_t)
EXPORTED ssize_t write(int fd, const void *data, size_t n)
{
	MEET(ssize_t, shared ? kind_of(fd) : KIND_NONE, "write", real_write()(fd, data, n),
	     real_write()(fd, data, n / 2));
}

REAL(ssize_t, pwrite, int, const void *, size_t, off_t)
EXPORTED ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
	MEET(ssize_t, WRITE, "pwrite", real_pwrite()(fd, data, n, at),
	     real_pwrite()(fd, data, n / 2, at));
}

REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t)
EXPORTED ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at)
{
	MEET(ssize_t, WRITE, "pwrite64", real_pwrite64()(fd, data, n, at),
	     real_pwrite64()(fd, data, n / 2, at));
}

REAL(ssize_t, writev, int, const struct iovec *, int)
EXPORTED ssize_t writev(int fd, const struct iovec *iov, int n)
{
	MEET(ssize_t, shared ? kind_of(fd) : KIND_NONE, "writev", real_writev()(fd, iov, n),
	     real_writev()(fd, iov, n / 2));
}

REAL(int, fsync, int)
EXPORTED int fsync(int fd)
{
	MEET(int, SYNC, "fsync", real_fsync()(fd), 0);
}

REAL(int, fdatasync, int)
EXPORTED int fdatasync(int fd)
{
	MEET(int, SYNC, "fdatasync", real_fdatasync()(fd), 0);
}

REAL(int, rename, const char *, const char *)
EXPORTED int rename(const char *from, const char *to)
{
	MEET(int, RENAME, "rename", real_rename()(from, to), 0);
}

REAL(int, ftruncate, int, off_t)
EXPORTED int ftruncate(int fd, off_t bytes)
{
	MEET(int, TRUNCATE, "ftruncate", real_ftruncate()(fd, bytes), 0);
}

REAL(int, ftruncate64, int, off64_t)
EXPORTED int ftruncate64(int fd, off64_t bytes)
{
	MEET(int, TRUNCATE, "ftruncate64", real_ftruncate64()(fd, bytes), 0);
}

REAL(int, fallocate, int, int, off_t, off_t)
EXPORTED int fallocate(int fd, int mode, off_t at, off_t bytes)
{
	MEET(int, TRUNCATE, "fallocate", real_fallocate()(fd, mode, at, bytes), 0);
}

REAL(int, memfd_create, const char *, unsigned int)
EXPORTED int memfd_create(const char *name, unsigned int flags)
{
	MEET(int, MEMFD, name, real_memfd_create()(name, flags), 0);
}

REAL(int, unlink, const char *)
EXPORTED int unlink(const char *path)
{
	MEET(int, UNLINK, "unlink", real_unlink()(path), 0);
}

REAL(int, unlinkat, int, const char *, int)
EXPORTED int unlinkat(int dir, const char *path, int flags)
{
	MEET(int, UNLINK, "unlinkat", real_unlinkat()(dir, path, flags), 0);
}

REAL(ssize_t, send, int, const void *, size_t, int)
EXPORTED ssize_t send(int fd, const void *data, size_t n, int flags)
{
	MEET(ssize_t, SEND, "send", real_send()(fd, data, n, flags), 0);
}

REAL(ssize_t, sendto, int, const void *, size_t, int, const struct sockaddr *, socklen_t)
EXPORTED ssize_t sendto(int fd, const void *data, size_t n, int flags, const struct sockaddr *to,
			socklen_t bytes)
{
	MEET(ssize_t, kind_of_message(to, bytes), "sendto",
	     real_sendto()(fd, data, n, flags, to, bytes), 0);
}

REAL(ssize_t, sendmsg, int, const struct msghdr *, int)
EXPORTED ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
	MEET(ssize_t, kind_of_message(m->msg_name, m->msg_namelen), "sendmsg",
	     real_sendmsg()(fd, m, flags), 0);
}
