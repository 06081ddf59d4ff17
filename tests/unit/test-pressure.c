/* Signs of memory pressure: from a pipe, a socket, the kernel; and what cannot be watched. */
#include "daemon/power/pressure.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "client/wire/ownership.h"

struct rig {
	sd_event *loop;
	char dir[40], path[64];
	uint32_t n_signs;
};

static void on_pressure(void *userdata)
{
	((struct rig *)userdata)->n_signs++;
}

static int set_up(void **state)
{
	struct rig *r = calloc(1, sizeof(*r));

	assert_non_null(r);
	strcpy(r->dir, "/tmp/test-pressure-XXXXXX");
	assert_non_null(mkdtemp(r->dir));
	snprintf(r->path, sizeof(r->path), "%s/watched", r->dir);
	assert_int_equal(sd_event_new(&r->loop), 0);
	unsetenv("MEMORY_PRESSURE_WATCH");
	unsetenv("MEMORY_PRESSURE_WRITE");
	*state = r;
	return 0;
}

static int tear_down(void **state)
{
	struct rig *r = *state;

	sd_event_unref(r->loop);
	unlink(r->path);
	rmdir(r->dir);
	free(r);
	unsetenv("MEMORY_PRESSURE_WATCH");
	unsetenv("MEMORY_PRESSURE_WRITE");
	return 0;
}

static void turn(struct rig *r)
{
	while (sd_event_run(r->loop, 0) > 0)
		;
}

static void every_byte_of_a_pipe_is_a_sign(void **state)
{
	struct rig *r = *state;
	struct pressure *p = NULL;
	struct err err = { 0 };
	int fd;

	assert_int_equal(mkfifo(r->path, 0600), 0);
	setenv("MEMORY_PRESSURE_WATCH", r->path, 1);
	setenv("MEMORY_PRESSURE_WRITE", "c29tZQA=", 1); /* which would come back as a sign */
	assert_int_equal(pressure_new(r->loop, on_pressure, r, &p, &err), 0);
	assert_string_equal(pressure_path(p), r->path);
	turn(r);
	assert_int_equal(r->n_signs, 0);
	fd = open(r->path, O_WRONLY | O_CLOEXEC);
	for (uint32_t i = 1; i <= 3; i++) {
		assert_int_equal(write(fd, "x", 1), 1);
		turn(r);
		assert_int_equal(r->n_signs, i);
	}
	close(fd); /* the writer's end is no sign, and no busy loop */
	assert_int_equal(sd_event_run(r->loop, 0), 0);
	pressure_free(p);
}

static void a_socket_is_told_what_is_wanted_and_tells_signs(void **state)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	struct rig *r = *state;
	struct pressure *p = NULL;
	int listener, fd;
	char got[64];

	strcpy(at.sun_path, r->path);
	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&at, sizeof(at)), 0);
	assert_int_equal(listen(listener, 1), 0);
	setenv("MEMORY_PRESSURE_WATCH", r->path, 1);
	setenv("MEMORY_PRESSURE_WRITE", "c29tZSAyMDAwMDAgMjAwMDAwMAA=", 1);
	assert_int_equal(pressure_new(r->loop, on_pressure, r, &p, NULL), 0);
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_int_equal(read(fd, got, sizeof(got)), 20);
	assert_memory_equal(got, "some 200000 2000000\0", 20);
	assert_int_equal(write(fd, "x", 1), 1);
	turn(r);
	assert_int_equal(r->n_signs, 1);
	close(fd);
	turn(r);
	assert_int_equal(r->n_signs, 1);
	pressure_free(p);
	close(listener);
}

static void a_manager_may_want_none(void **state)
{
	struct rig *r = *state;
	struct pressure *p = NULL;

	setenv("MEMORY_PRESSURE_WATCH", "/dev/null", 1);
	assert_int_equal(pressure_new(r->loop, on_pressure, r, &p, NULL), 0);
	assert_null(p);
}

static void what_cannot_be_watched_is_named(void **state)
{
	struct rig *r = *state;
	struct pressure *p = NULL;
	struct err err = { 0 };
	int fd;

	setenv("MEMORY_PRESSURE_WATCH", "/nowhere/memory.pressure", 1);
	assert_int_equal(pressure_new(r->loop, on_pressure, r, &p, &err), -ENOENT);
	assert_string_equal(err.text,
			    "cannot open '/nowhere/memory.pressure': No such file or directory");

	fd = open(r->path, O_CREAT | O_RDWR | O_CLOEXEC, 0600); /* a plain file has no events */
	close(fd);
	setenv("MEMORY_PRESSURE_WATCH", r->path, 1);
	assert_int_equal(pressure_new(r->loop, on_pressure, r, &p, &err), -EPERM);
	assert_non_null(strstr(err.text, "cannot wait on '"));

	setenv("MEMORY_PRESSURE_WRITE", "no base64!", 1);
	assert_int_equal(pressure_new(r->loop, on_pressure, r, &p, &err), -EINVAL);
	assert_string_equal(err.text, "$MEMORY_PRESSURE_WRITE is no base64");
	assert_null(p);
}

/* The window is one that users without rights may have, and the NUL is written with it. */
static void the_kernel_takes_the_trigger(void **state)
{
	struct rig *r = *state;
	struct pressure *p = NULL;
	struct err err = { 0 };
	const int e = pressure_new(r->loop, on_pressure, r, &p, &err);

	if (e == -ENOENT || e == -EOPNOTSUPP || e == -EPERM || e == -EACCES) {
		print_message("skipped: %s\n", err.text);
		skip();
	}
	assert_int_equal(e, 0);
	assert_string_equal(pressure_path(p), "/proc/pressure/memory");
	turn(r); /* no sign by itself, and none that repeats at once */
	assert_in_range(r->n_signs, 0, 1);
	pressure_free(p);
}

static void a_trigger_without_its_rights_is_named(void **state)
{
	struct rig *r = *state;
	struct pressure *p = NULL;
	struct err err = { 0 };

	if (access("/proc/pressure/memory", W_OK) < 0) {
		print_message("skipped: no /proc/pressure/memory\n");
		skip();
	}
	setenv("MEMORY_PRESSURE_WATCH", "/proc/pressure/memory", 1);
	setenv("MEMORY_PRESSURE_WRITE", "bm9uc2Vuc2UA", 1);
	assert_int_equal(pressure_new(r->loop, on_pressure, r, &p, &err), -EINVAL);
	assert_string_equal(err.text,
			    "cannot set a trigger on '/proc/pressure/memory': Invalid argument");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(every_byte_of_a_pipe_is_a_sign, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_socket_is_told_what_is_wanted_and_tells_signs,
						set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_manager_may_want_none, set_up, tear_down),
		cmocka_unit_test_setup_teardown(what_cannot_be_watched_is_named, set_up, tear_down),
		cmocka_unit_test_setup_teardown(the_kernel_takes_the_trigger, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_trigger_without_its_rights_is_named, set_up,
						tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
