/*
 * One line an event, to the journal if stderr is connected to it (with
 * structured fields, so that no text can forge one), else to stderr. Never
 * prompt text.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <syslog.h>

#include "client/wire/ownership.h"

void log_init(const char *identifier, int max_level);
void log_set_level(int max_level);
/* LOG_ERR for "error", … as the setting LogLevel= has them; LOG_INFO for anything else. */
int log_level_of(const char *name);
void log_at(int level, const char *format, ...) _printf_(2, 3);

#define log_error(...) log_at(LOG_ERR, __VA_ARGS__)
#define log_warning(...) log_at(LOG_WARNING, __VA_ARGS__)
#define log_info(...) log_at(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_at(LOG_DEBUG, __VA_ARGS__)

/* At most @burst lines a second for what a peer can cause; says how many it left out. */
struct log_limit {
	uint64_t window_us;
	uint32_t n, left_out;
};
bool log_allowed(struct log_limit *limit, uint32_t burst);
