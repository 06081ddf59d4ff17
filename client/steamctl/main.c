/* steamctl: words from the language model that steamd keeps resident. */
#include "client/steamctl/steamctl.h"

int main(int argc, char **argv)
{
	const struct command *command = NULL;
	struct steamd_error err = { 0 };
	static struct ctl c;
	int r;

	r = options_read(argc, argv, &c, &command);
	if (r >= 0)
		return r;
	interrupt_catch();
	if (steamd_open(c.socket, "steamctl", c.label, &c.s, &err) < 0)
		return fail_with(&err);
	r = command->run(&c);
	if (fflush(stdout) != 0 && r == EXIT_OK)
		r = EXIT_PIPE;
	steamd_close(c.s);
	return r;
}
