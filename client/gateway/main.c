/* steamd-gateway: OpenAI's HTTP APIs over steamd's socket. */
#include <errno.h>

#include "client/gateway/gateway.h"
#include "client/gateway/routes.h"

#define EXIT_USAGE 64
#define EXIT_SYSTEM 71

static int fail(const struct err *err)
{
	fprintf(stderr, "steamd-gateway: %s\n", err->text);
	return err->code == -EINVAL || err->code == -EBADMSG || err->code == -ENOENT ||
			       err->code == -EISDIR
		       ? EXIT_USAGE
		       : EXIT_SYSTEM;
}

int main(int argc, char **argv)
{
	_cleanup_(setup_deinit) struct setup setup = { 0 };
	enum setup_action action;
	struct err err = { 0 };

	if (setup_read(argc, argv, &setup, &action, &err) < 0)
		return fail(&err);
	switch (action) {
	case SETUP_HELP:
		setup_print_help(stdout);
		return 0;
	case SETUP_MAN:
		setup_print_man(stdout);
		return 0;
	case SETUP_VERSION:
		puts("steamd-gateway " STEAMD_VERSION);
		return 0;
	case SETUP_ROUTES:
		routes_print(stdout);
		return 0;
	case SETUP_OPENAPI:
		routes_print_openapi(stdout);
		return 0;
	default:
		return gateway_run(&setup, &err) < 0 ? fail(&err) : 0;
	}
}
