/* Parsing the command line by its table. */
#include "daemon/server/options.h"

#include <errno.h>
#include <string.h>

enum kind {
	KIND_SET,
	KIND_CONFIG,
	KIND_USER,
	KIND_INSPECT,
	KIND_MEMORY,
	KIND_VRAM,
	KIND_GPUS,
	KIND_ACTION
};

/* name, value's name or NULL, what it is, the setting it stands for or the action, help */
static const struct option {
	const char *name, *value;
	enum kind kind;
	const char *key;
	enum options_action action;
	const char *help;
} table[] = {
	{ "--model", "DIR", KIND_SET, "Model", 0,
	  "serve the checkpoint in DIR; settings files are read only if --config names one" },
	{ "--socket", "PATH", KIND_SET, "Socket", 0, "listen at PATH" },
	{ "--state", "DIR", KIND_SET, "StateDirectory", 0, "keep state in DIR" },
	{ "--set", "KEY=VALUE", KIND_SET, NULL, 0, "change a setting, as in steamd.conf(5)" },
	{ "--config", "FILE", KIND_CONFIG, NULL, 0,
	  "read FILE instead of /etc/steamd/steamd.conf and conf.d" },
	{ "--user", NULL, KIND_USER, NULL, 0,
	  "read ~/.config/steamd/ instead; without Model=, serve steamd-tiny" },
	{ "--check-config", NULL, KIND_ACTION, NULL, OPTIONS_CHECK_CONFIG,
	  "read the settings, name the first error, exit" },
	{ "--print-config", NULL, KIND_ACTION, NULL, OPTIONS_PRINT_CONFIG,
	  "print every setting, its value and where it came from" },
	{ "--inspect", "DIR", KIND_INSPECT, NULL, OPTIONS_INSPECT,
	  "print what the model in DIR is, and every problem it has" },
	{ "--memory", "SIZE", KIND_MEMORY, NULL, 0,
	  "with --inspect: the context that fits in SIZE" },
	{ "--plan", NULL, KIND_ACTION, NULL, OPTIONS_PLAN,
	  "print what a model takes of each GPU, without one; --model air: GLM-4.5-Air's "
	  "dimensions" },
	{ "--vram", "SIZE", KIND_VRAM, NULL, 0,
	  "with --plan: of each GPU; 96GB as it is sold, 94.5GiB what is free on it" },
	{ "--gpus", "N", KIND_GPUS, NULL, 0, "with --plan: that the model is divided among; 1" },
	{ "--version", NULL, KIND_ACTION, NULL, OPTIONS_VERSION, "print the version" },
	{ "--help", NULL, KIND_ACTION, NULL, OPTIONS_HELP, "print this" },
	{ "--print-man", NULL, KIND_ACTION, NULL, OPTIONS_PRINT_MAN,
	  "print these options as troff" },
};

static const struct option *find(const char *arg, size_t len)
{
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		if (strlen(table[i].name) == len && memcmp(table[i].name, arg, len) == 0)
			return &table[i];
	}
	return NULL;
}

static int apply(struct options *o, const struct option *option, const char *value, struct err *err)
{
	switch (option->kind) {
	case KIND_SET:
		if (o->n_sets == OPTIONS_SETS_MAX)
			return err_set(err, -EINVAL, "more than %d settings", OPTIONS_SETS_MAX);
		o->sets[o->n_sets].key = option->key;
		o->sets[o->n_sets++].value = value;
		if (option->key && strcmp(option->key, "Model") == 0)
			o->has_model = true;
		return 0;
	case KIND_CONFIG:
		o->config = value;
		return 0;
	case KIND_USER:
		o->user = true;
		return 0;
	case KIND_MEMORY:
		o->memory = value;
		return 0;
	case KIND_VRAM:
		o->vram = value;
		return 0;
	case KIND_GPUS:
		o->gpus = value;
		return 0;
	case KIND_INSPECT:
		o->inspect = value;
		o->action = OPTIONS_INSPECT;
		return 0;
	case KIND_ACTION:
		o->action = option->action;
		return 0;
	}
	return -EINVAL;
}

int options_parse(int argc, char **argv, struct options *ret, struct err *err)
{
	struct options o = { .action = OPTIONS_SERVE };

	for (int i = 1; i < argc; i++) {
		const char *equals = strchr(argv[i], '='), *value = equals ? equals + 1 : NULL;
		const struct option *option = find(argv[i], equals ? (size_t)(equals - argv[i])
								   : strlen(argv[i]));
		int r;

		if (!option)
			return err_set(err, -EINVAL, "no option '%s'; see --help", argv[i]);
		if (!option->value && value)
			return err_set(err, -EINVAL, "%s takes no value", option->name);
		if (option->value && !value) {
			if (i + 1 == argc)
				return err_set(err, -EINVAL, "%s wants %s", option->name,
					       option->value);
			value = argv[++i];
		}
		r = apply(&o, option, value, err);
		if (r < 0)
			return r;
	}
	if (o.memory && !o.inspect)
		return err_set(err, -EINVAL, "--memory goes with --inspect");
	if (o.vram && o.action != OPTIONS_PLAN)
		return err_set(err, -EINVAL, "--vram goes with --plan");
	if (o.gpus && o.action != OPTIONS_PLAN)
		return err_set(err, -EINVAL, "--gpus goes with --plan");
	if (o.action == OPTIONS_PLAN && (!o.has_model || !o.vram))
		return err_set(err, -EINVAL, "--plan wants --model DIR and --vram SIZE");
	*ret = o;
	return 0;
}

void options_print_help(FILE *f)
{
	fputs("steamd: keeps one language model resident and shares it over a Unix socket.\n\n"
	      "usage: steamd [OPTION]…\n\n",
	      f);
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		char left[64];

		snprintf(left, sizeof(left), "%s%s%s", table[i].name, table[i].value ? " " : "",
			 table[i].value ? table[i].value : "");
		fprintf(f, "  %-18s  %s\n", left, table[i].help);
	}
	fputs("\nRun by hand, steamd stays in the foreground and prints 'ready' on stderr when it\n"
	      "serves. Exit codes: 0 ended by a signal, 64 wrong options, 65 the model's files "
	      "were\n"
	      "refused, 69 a --plan does not fit, 71 the system refused something, 78 wrong "
	      "settings.\n",
	      f);
}

void options_print_man(FILE *f)
{
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		fprintf(f, ".TP\n\\fB%s\\fR", table[i].name);
		if (table[i].value)
			fprintf(f, " \\fI%s\\fR", table[i].value);
		fprintf(f, "\n%s\n", table[i].help);
	}
}
