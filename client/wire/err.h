/*
 * One error sentence: what, where, found, wanted. Filled where the failure is
 * decided, widened by callers that know more, shown to a person at the end.
 */
#pragma once

#include <stdbool.h>

#include "client/wire/ownership.h"

#define ERR_TEXT_MAX 1024

struct err {
	int code;		  /* negative errno of the last err_set() or err_wrap(); 0: none */
	char text[ERR_TEXT_MAX];  /* one line, no final newline; cut, never overrun */
};

/*
 * Sets @err to @code and the sentence. @err may be NULL. Control characters
 * in the sentence are replaced by '?', invalid UTF-8 too, so that a foreign
 * string cannot break a line. Returns @code, which is negative.
 */
int err_set(struct err *err, int code, const char *format, ...) _printf_(3, 4);

/*
 * Puts "<sentence>: " before what @err already says; if it says nothing yet,
 * adds strerror(-code) behind it. Returns @code.
 */
int err_wrap(struct err *err, int code, const char *format, ...) _printf_(3, 4);

/*
 * Whether what failed with @code may go well another time though nothing of it is
 * changed: memory, descriptors or room were wanting, a device failed, something is
 * in use. All else is for whoever asked to mend.
 */
bool err_may_pass(int code);
