/* steamd: keeps one language model resident and shares it over a Unix socket. */
#include <stdio.h>

#include "daemon/server/options.h"
#include "daemon/server/broker.h"

#ifndef STEAMD_VERSION
#define STEAMD_VERSION "unknown"
#endif

int main(int argc, char **argv)
{
	struct options options;
	struct err err = { 0 };

	if (options_parse(argc, argv, &options, &err) < 0) {
		fprintf(stderr, "steamd: %s\n", err.text);
		return BROKER_USAGE;
	}
	switch (options.action) {
	case OPTIONS_HELP:
		options_print_help(stdout);
		return BROKER_OK;
	case OPTIONS_PRINT_MAN:
		options_print_man(stdout);
		return BROKER_OK;
	case OPTIONS_VERSION:
		puts("steamd " STEAMD_VERSION);
		return BROKER_OK;
	default:
		return broker_run(&options);
	}
}
