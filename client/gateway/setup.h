/* What the command line and the settings file say; one table each, see setup.def. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "client/gateway/setup.def"
#include "client/wire/err.h"

#define SETUP_LISTEN_MAX 8

#define SETUP_C_STRING char *
#define SETUP_C_SIZE uint64_t
#define SETUP_C_UINT uint64_t
#define SETUP_C_BOOL uint64_t
#define SETUP_C_SECS uint64_t
#define SETUP_MEMBER(kind, member, key, otherwise, min, max, help) SETUP_C_##kind member;

struct setup {
	const char *listen[SETUP_LISTEN_MAX]; /* ADDRESS:PORT, or the path of a Unix socket */
	unsigned n_listen;
	const char *socket; /* of steamd; NULL: where the library finds it */
	SETUP_SETTINGS(SETUP_MEMBER)
};

/* What else was asked for; then the gateway does not serve. */
enum setup_action { SETUP_SERVE, SETUP_HELP, SETUP_MAN, SETUP_VERSION, SETUP_ROUTES, SETUP_OPENAPI };

/*
 * Reads the command line, and the settings file that it names. Words point into
 * @argv. Returns 0, or -EINVAL (also for what is wrong in the file), -ENOMEM, or
 * the errno of reading the file.
 */
int setup_read(int argc, char **argv, struct setup *ret, enum setup_action *ret_action,
	       struct err *err);
void setup_deinit(struct setup *s);

/* Whether @word is one of the words of @words, which spaces separate. */
bool setup_has_word(const char *words, const char *word);

void setup_print_help(FILE *f);
void setup_print_man(FILE *f);
