/* The command line of steamd: one table, from which --help and the manual page come. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "client/wire/err.h"

#define OPTIONS_SETS_MAX 256

enum options_action {
	OPTIONS_SERVE, OPTIONS_CHECK_CONFIG, OPTIONS_PRINT_CONFIG, OPTIONS_INSPECT,
	OPTIONS_PLAN, OPTIONS_VERSION, OPTIONS_HELP, OPTIONS_PRINT_MAN,
};

/* Strings are argv's own. */
struct options {
	enum options_action action;
	bool has_model;		/* --model: the settings files are not read unless --config names one */
	bool user;		/* the user's settings files; by default the model that comes with steamd */
	const char *config;	/* NULL: those in /etc/steamd, or the user's */
	const char *inspect, *memory;
	const char *vram, *gpus; /* of --plan; gpus NULL: one */
	struct {
		const char *key, *value; /* key NULL: value is a whole Key=Value */
	} sets[OPTIONS_SETS_MAX];
	uint32_t n_sets;
};

/* Returns 0 or -EINVAL with a sentence. */
int options_parse(int argc, char **argv, struct options *ret, struct err *err);
void options_print_help(FILE *f);
void options_print_man(FILE *f); /* the rows of steamd(8), as troff */
