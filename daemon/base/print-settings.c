/* Prints, for the build, what is generated from the settings table: --template or --man. */
#include <string.h>

#include "daemon/base/settings.h"

static const char man_head[] =
	".TH STEAMD.CONF 5 \"\" \"steamd " STEAMD_VERSION "\"\n"
	".SH NAME\nsteamd.conf \\- settings of steamd\n"
	".SH SYNOPSIS\n.nf\n/etc/steamd/steamd.conf\n/etc/steamd/conf.d/*.conf\n.fi\n"
	".SH DESCRIPTION\n"
	"Both kinds of file are INI with one section, [steamd]. Files in conf.d are read after\n"
	"steamd.conf, in the order of their names; a later value replaces an earlier one, and\n"
	".B steamd \\-\\-set\nreplaces both. Lines that begin with # or ; are comments. Unknown "
	"keys and bad\n"
	"values are errors that name file and line:\n.B steamd \\-\\-check\\-config\nprints them,\n"
	".B steamd \\-\\-print\\-config\nprints every value in force and where it came from.\n"
	".SH KEYS\n";

static const char man_tail[] = ".SH SEE ALSO\n.BR steamd (8),\n.BR steamctl (1)\n";

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "--template") == 0) {
		settings_print_template(stdout);
	} else if (argc == 2 && strcmp(argv[1], "--man") == 0) {
		fputs(man_head, stdout);
		settings_print_man(stdout);
		fputs(man_tail, stdout);
	} else {
		fputs("usage: print-settings --template | --man\n", stderr);
		return 64;
	}
	return fflush(stdout) == 0 ? 0 : 74;
}
