/*
 * Settings: one table (settings.def), read from /etc/steamd/steamd.conf, then
 * /etc/steamd/conf.d, *.conf in the order of their names, then --set.
 * The files are INI with one section, [steamd]. Unknown keys, unknown sections
 * and bad values are errors that name file and line.
 */
#pragma once

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "client/wire/err.h"
#include "daemon/base/settings.def"

#define UNSET_REAL NAN
#define UNSET_UINT UINT32_MAX

#define SETTING_C_STRING(member) char *member;
#define SETTING_C_ENUM(member) char *member;
#define SETTING_C_SIZE(member) uint64_t member;
#define SETTING_C_UINT(member) uint32_t member;
#define SETTING_C_SECS(member) uint32_t member;
#define SETTING_C_MODE(member) uint32_t member;
#define SETTING_C_BOOL(member) bool member;
#define SETTING_C_REAL(member) double member;
#define SETTING_MEMBER(kind, member, key, def, min, max, reload, help) SETTING_C_##kind(member)

struct settings {
	SETTINGS(SETTING_MEMBER)
	struct setting_origin *origins; /* where each value came from, for --print-config and status */
};

enum setting_reload { SETTING_RELOAD, SETTING_RESTART, SETTING_MODEL };

/* All defaults. Returns 0 or -ENOMEM. */
int settings_init(struct settings *s);
void settings_deinit(struct settings *s);

/*
 * Reads @path (must exist if @required), then every *.conf of @dropin_dir in
 * the order of their names; either may be NULL.
 *
 * Returns 0; -EINVAL with "FILE:LINE: unknown key 'X'" or the like; -ENOENT;
 * or another errno of reading. On failure the settings are half changed:
 * read into a fresh struct.
 */
int settings_read(struct settings *s, const char *path, bool required, const char *dropin_dir,
		  struct err *err);

/* Sets one, as "--set Key=Value" does. Returns 0 or -EINVAL. */
int settings_set(struct settings *s, const char *assignment, const char *origin, struct err *err);

/* Prints every key with its value, and its origin as a comment. */
void settings_print(const struct settings *s, FILE *f);

/* Prints etc/steamd.conf: every key as a comment, with its help and default. */
void settings_print_template(FILE *f);

/* Prints the rows of steamd.conf(5), as troff. */
void settings_print_man(FILE *f);

/* Where @key's value came from: "default", "FILE:LINE", "--set"; NULL if there is no such key. */
const char *settings_origin(const struct settings *s, const char *key);

/*
 * Takes over from @next what a reload can change. Calls @on_kept for every key
 * that differs but needs more: RESTART or MODEL. Returns the number taken over.
 */
int settings_apply(struct settings *s, const struct settings *next,
		   void (*on_kept)(const char *key, enum setting_reload needs, void *userdata),
		   void *userdata);
