/* The descriptor store, with a socket that stands for the manager. */
#include "daemon/base/fdstore.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tests/unit/manager.h"

static void without_a_manager_nothing_happens(void **state)
{
	(void)state;
	unsetenv("NOTIFY_SOCKET");
	assert_int_equal(fdstore_put("ring", 0, 0), 0);
	fdstore_remove("ring");
	fdstore_notify("STATUS=%d", 1);
	assert_int_equal(fdstore_barrier(1000), 0);
	assert_int_equal(fdstore_take("ring"), -1);
	fdstore_discard_rest(NULL);
}

static void a_descriptor_is_parked_under_its_name(void **state)
{
	const int fd = memfd_create("x", MFD_CLOEXEC);
	struct manager m;
	char bytes[4];
	int got;

	(void)state;
	assert_int_equal(write(fd, "abcd", 4), 4);
	manager_open(&m);
	assert_int_equal(fdstore_put("arena", fd, 0), 0);
	assert_int_equal(fdstore_put("exec-ctl", fd, 1), 0);
	manager_read(&m);
	assert_string_equal(m.log,
			    "FDSTORE=1\nFDNAME=arena\nFDPOLL=0\nFDSTORE=1\nFDNAME=exec-ctl\n");
	assert_int_equal(m.n, 2);
	got = manager_get(&m, "arena");
	assert_int_equal(pread(got, bytes, 4, 0), 4);
	assert_memory_equal(bytes, "abcd", 4);
	close(got);
	fdstore_remove("arena");
	manager_read(&m);
	assert_int_equal(m.n, 1);
	close(fd);
	manager_close(&m);
}

static uint32_t n_failing; /* of the next messages */

/* Stands before libc's. */
ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	if (n_failing > 0) {
		n_failing--;
		errno = ENOBUFS;
		return -1;
	}
	return syscall(SYS_sendmsg, fd, message, flags);
}

static void what_cannot_be_sent_once_is_sent_again(void **state)
{
	struct manager m;

	(void)state;
	manager_open(&m);
	n_failing = 1;
	assert_int_equal(fdstore_put("arena", STDOUT_FILENO, 0), 0);
	assert_int_equal(n_failing, 0);
	n_failing = 2;
	fdstore_notify("READY=1");
	fdstore_remove("arena");
	manager_read(&m);
	assert_string_equal(m.log, "FDSTORE=1\nFDNAME=arena\nFDPOLL=0\nREADY=1\n"
				   "FDSTOREREMOVE=1\nFDNAME=arena\n");
	assert_int_equal(m.n, 0);
	n_failing = 1000; /* for ever: it is told, and not waited for */
	assert_int_equal(fdstore_put("arena", STDOUT_FILENO, 0), -ENOBUFS);
	assert_in_range(n_failing, 990, 999);
	n_failing = 0;
	manager_close(&m);
}

static void a_bad_name_is_refused(void **state)
{
	char long_name[257];

	(void)state;
	memset(long_name, 'x', 256);
	long_name[256] = '\0';
	assert_int_equal(fdstore_put("", 0, 0), -EINVAL);
	assert_int_equal(fdstore_put("a:b", 0, 0), -EINVAL);
	assert_int_equal(fdstore_put("a\nFDSTORE=1", 0, 0), -EINVAL);
	assert_int_equal(fdstore_put(long_name, 0, 0), -EINVAL);
	assert_int_equal(fdstore_put("a", -1, 0), -EINVAL);
}

static void states_are_sent(void **state)
{
	struct manager m;

	(void)state;
	manager_open(&m);
	fdstore_notify("READY=1\nSTATUS=loading %d %%", 43);
	manager_read(&m);
	assert_string_equal(m.log, "READY=1\nSTATUS=loading 43 %\n");
	manager_close(&m);
}

static char discarded[64];

static void on_discard(const char *name)
{
	strcat(strcat(discarded, name), ";");
}

/* In a child, since the numbers of received descriptors are fixed: 3, 4, 5. */
static int receive(void)
{
	char pid[16];
	struct manager m;
	int a;

	for (int fd = 3; fd <= 5; fd++) {
		a = memfd_create("x", 0);
		if (write(a, (char[]){ (char)('0' + fd) }, 1) != 1 || dup2(a, fd) != fd)
			return 1;
	}
	manager_open(&m);
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	setenv("LISTEN_PID", pid, 1);
	setenv("LISTEN_FDS", "3", 1);
	setenv("LISTEN_FDNAMES", "api:turns:old", 1);
	fdstore_init();
	if (getenv("LISTEN_FDS"))
		return 2;
	if (fdstore_take("turns") != 4 || fdstore_take("turns") != -1 || fdstore_take("api") != 3)
		return 3;
	if (!(fcntl(3, F_GETFD) & FD_CLOEXEC) || !(fcntl(5, F_GETFD) & FD_CLOEXEC))
		return 4;
	fdstore_discard_rest(on_discard);
	if (strcmp(discarded, "old;") != 0)
		return 7;
	if (fcntl(5, F_GETFD) != -1 || fcntl(3, F_GETFD) == -1 || fcntl(4, F_GETFD) == -1)
		return 5;
	manager_read(&m);
	if (strcmp(m.log, "FDSTOREREMOVE=1\nFDNAME=old\n") != 0)
		return 6;
	manager_close(&m);
	return 0;
}

static void what_nobody_took_leaves_the_store(void **state)
{
	const pid_t pid = fork();
	int status;

	(void)state;
	if (pid == 0)
		_exit(receive());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(without_a_manager_nothing_happens),
		cmocka_unit_test(a_descriptor_is_parked_under_its_name),
		cmocka_unit_test(what_cannot_be_sent_once_is_sent_again),
		cmocka_unit_test(a_bad_name_is_refused),
		cmocka_unit_test(states_are_sent),
		cmocka_unit_test(what_nobody_took_leaves_the_store),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
