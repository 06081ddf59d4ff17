/*
 * The first bytes of a connection, looked at before libmicrohttpd gets it: what
 * is no HTTP is told so in our form, where the library would send a page.
 */
#pragma once

#include "client/gateway/refusal.h"

#define HEAD_BYTES_MAX 8192 /* request line and headers, with the empty line behind them */
#define HEAD_FIELDS_MAX 100 /* headers, cookies, and parts of the address behind its '?' */

/*
 * Looks at the @n bytes that have come. They are of a peer, and may be anything.
 *
 * Returns 1 if request line and headers are whole and well-formed; 0 if more is
 * to come, in which case @n is below HEAD_BYTES_MAX; -EINVAL, as soon as it can
 * be known, with *@no: 400, 414 for a long address, 431 for long or many headers,
 * 501 for a Transfer-Encoding, 505 for a version of HTTP.
 */
int head_check(const char *bytes, size_t n, struct refusal *no);

/* Appends the whole answer, after which the connection ends. */
void head_write_refusal(const struct refusal *no, struct jsontext *to);
