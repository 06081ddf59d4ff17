/* SIGINT as a flag that the waiting loops look at. */
#include <signal.h>

#include "client/steamctl/steamctl.h"

static volatile sig_atomic_t pending;

static void on_signal(int number)
{
	(void)number;
	pending = 1;
}

void interrupt_catch(void)
{
	/* no SA_RESTART: a wait ends with EINTR */
	const struct sigaction catch = { .sa_handler = on_signal },
			       ignore = { .sa_handler = SIG_IGN };

	sigaction(SIGINT, &catch, NULL);
	sigaction(SIGTERM, &catch, NULL);
	/* a closed stdout is seen by the write that fails, and cancels */
	sigaction(SIGPIPE, &ignore, NULL);
}

bool interrupt_pending(void)
{
	return pending;
}

void interrupt_clear(void)
{
	pending = 0;
}
