/* A broker that is told to leave while it still opens its model. */
#include "daemon/server/server.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <unistd.h>

#include "tests/unit/manager.h"

static void what_is_parked_is_left_to_the_next_one(void **state)
{
	const char *src = getenv("srcdir");
	char model[512];

	(void)state;
	snprintf(model, sizeof(model), "Model=%s/tests/golden/air", src ? src : ".");
	setenv("MEMORY_PRESSURE_WATCH", "/dev/null", 1);
	setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent", 1);
	for (uint32_t i = 0; i < 20; i++) {
		struct settings settings = { 0 };
		struct server_options options = { .settings = &settings, .program = "/bin/false" };
		struct server *s = NULL;
		struct manager manager;
		sd_event *loop = NULL;

		manager_open(&manager);
		assert_int_equal(settings_init(&settings), 0);
		assert_int_equal(settings_set(&settings, model, "test", NULL), 0);
		assert_int_equal(sd_event_new(&loop), 0);
		assert_int_equal(server_new(loop, &options, &s, NULL), 0);
		assert_int_equal(server_load(s, NULL), 0);
		usleep(i * 500); /* the opening is not begun, under way, or over */
		server_free(s);
		manager_read(&manager);
		assert_null(strstr(manager.log, "FDSTORE")); /* put nothing, removed nothing */
		sd_event_unref(loop);
		settings_deinit(&settings);
		manager_close(&manager);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_parked_is_left_to_the_next_one),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
