/* steamd-exec-cpu, steamd-exec-cuda: computes the steps of one broker with one model. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "client/wire/control.h"
#include "daemon/base/log.h"
#include "daemon/exec/service.h"

#ifndef STEAMD_VERSION
#define STEAMD_VERSION "unknown"
#endif

static const char usage[] =
	"Usage: " EXEC_NAME "\n"
	"\n"
	"Computes for steamd, which starts it, configures it over descriptor 3 (a\n"
	"SOCK_SEQPACKET socket) and shares memory with it. There is nothing to run by hand.\n"
	"\n"
	"  --help     print this\n"
	"  --version  print the version\n"
	"\n"
	"Exit status: 0 told to stop, 64 usage, 65 the model's files were refused,\n"
	"69 there is no GPU that can be used, 70 steamd is gone or a step failed, 71 no\n"
	"memory or threads, 76 a configuration that makes no sense.\n";

static void on_term(int signal)
{
	(void)signal;
	_exit(0); /* nothing here outlives the process, and nobody waits for it */
}

int main(int argc, char **argv)
{
	const struct sigaction leave = { .sa_handler = on_term };
	socklen_t len = sizeof(int);
	struct err err = { 0 };
	int type, code;

	if (argc == 2 && strcmp(argv[1], "--help") == 0)
		return fputs(usage, stdout) < 0;
	if (argc == 2 && strcmp(argv[1], "--version") == 0)
		return puts(EXEC_NAME " " STEAMD_VERSION) < 0;
	if (argc != 1 || getsockopt(CONTROL_FD, SOL_SOCKET, SO_TYPE, &type, &len) < 0 ||
	    type != SOCK_SEQPACKET) {
		fputs(usage, stderr);
		return SERVICE_EXIT_USAGE;
	}

	log_init(EXEC_NAME, LOG_INFO);
	sigaction(SIGTERM, &leave, NULL);
	sigaction(SIGINT, &leave, NULL);

	code = service_run(CONTROL_FD, &err);
	log_error("leaving: %s", err.text);
	return code;
}
