/* Whose a connection from this machine is, as the kernel knows it. */
#pragma once

#include <sys/socket.h>
#include <sys/types.h>

/*
 * The uid of the process at the other end of the connected TCP socket @fd, whose
 * address is one of this machine's: by a socket diagnostics query for exactly
 * that socket. Returns 0, or:
 *	-ENOENT		it has closed its end already, or is not on this machine
 *	-EAFNOSUPPORT	@fd is no TCP socket
 *	… or what the kernel says about the query
 */
int ident_of_tcp(int fd, uid_t *ret);

/* The same of a Unix socket. */
int ident_of_unix(int fd, uid_t *ret);
