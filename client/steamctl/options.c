/*
 * The command line by its tables: commands, options, exit codes. --help, the
 * manual page and the shell's completion are printed from the same rows.
 */
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "client/steamctl/steamctl.h"
#include "client/wire/codes.h"

enum bit {
	ASK = 1,
	CHAT = 2,
	COMPLETE = 4,
	SCORE = 8,
	TOKENIZE = 16,
	DETOKENIZE = 32,
	RENDER = 64,
	STATUS = 128,
	PS = 256,
	MODELS = 512,
	CANCEL = 1024,
	RELOAD = 2048,
	BENCH = 4096,
	SESSION = 1 << 16,
	CACHE = 1 << 20,
	SLEEP = 1 << 24,
	WAKE = 1 << 25,
	YIELD = 1 << 26,
	MEM = 1 << 27,
	ANY = 0x7fffffff,
	SAMPLING = ASK | CHAT | COMPLETE,
};

const struct command commands[] = {
	{ "ask", "[WORD… | -]", "ask once; words, - for stdin, or text on stdin", ASK, run_ask,
	  false },
	{ "chat", "", "a conversation; Ctrl-C stops the answer, Ctrl-D leaves", CHAT, run_chat,
	  false },
	{ "complete", "[TEXT | -]", "go on from raw text or --ids, without a template", COMPLETE,
	  run_complete, false },
	{ "score", "[TEXT | -]", "log-probability of each token, and the perplexity", SCORE,
	  run_score, false },
	{ "tokenize", "[TEXT | -]", "text to token ids", TOKENIZE, run_tokenize, false },
	{ "detokenize", "[ID… | -]", "token ids (a JSON array) to text", DETOKENIZE, run_detokenize,
	  false },
	{ "render", "[-]", "a conversation (JSON) to the exact prompt", RENDER, run_render, false },
	{ "session", "VERB [NAME]…",
	  "list, show, new, fork, rewind, rename, pin, unpin, rm, export, import, gc", SESSION,
	  run_session, false },
	{ "cache", "explain WHICH",
	  "why not all of a prompt was cached; WHICH: a turn as ps shows it, or a session", CACHE,
	  run_cache, false },
	{ "status", "", "what is served, from where, how it is", STATUS, run_status, false },
	{ "mem", "", "what is held in memory, and where in the KV cache is room", MEM, run_mem,
	  false },
	{ "ps", "", "requests: one's own; those of others as totals", PS, run_ps, false },
	{ "models", "", "names of the model in service", MODELS, run_models, false },
	{ "cancel", "TURN…", "end requests by the numbers that ps shows", CANCEL, run_cancel,
	  false },
	{ "reload", "", "read the settings and the model again", RELOAD, run_reload, false },
	{ "sleep", "[RUNG]",
	  "when the answers being computed are over, give memory back: parked (the weights) or "
	  "gone (the executor)",
	  SLEEP, run_sleep, false },
	{ "wake", "", "load what sleeps, and end all leases", WAKE, run_wake, false },
	{ "yield", "SIZE", "free SIZE bytes (K, M, G, T) and keep them free until Ctrl-C", YIELD,
	  run_yield, false },
	{ "bench", "", "tokens a second, and how much of the machine's limit that is", BENCH,
	  run_bench, false },
};
const unsigned n_commands = ARRAY_SIZE(commands);

enum kind {
	FLAG,
	NO_FLAG,
	TEXT,
	REAL,
	COUNT,
	SEED,
	STOP,
	BIAS,
	TOP,
	CLASS,
	HELP,
	SHOW_VERSION,
	PRINT_MAN,
	PRINT_COMPLETION
};

#define AT(member) offsetof(struct ctl, member)
static const struct option {
	const char *name, *alias, *value;
	unsigned bits;
	enum kind kind;
	size_t at;
	double min, max; /* REAL, COUNT */
	const char *help;
} options[] = {
	{ "--socket", NULL, "PATH", ANY, TEXT, AT(socket), 0, 0, "the daemon's socket" },
	{ "--json", NULL, NULL, ANY, FLAG, AT(json), 0, 0, "one JSON object a line" },
	{ "--label", NULL, "NAME", ANY, TEXT, AT(label), 0, 0, "a namespace inside one's own uid" },
	{ "--file", "-f", "FILE", ASK | COMPLETE | SCORE | TOKENIZE | DETOKENIZE | RENDER, TEXT,
	  AT(file), 0, 0, "put the text of FILE behind the words" },
	{ "--system", "-s", "TEXT", ASK | CHAT, TEXT, AT(system), 0, 0, "the system message" },
	{ "--session", "-S", "NAME", ASK | CHAT, TEXT, AT(g.session), 0, 0,
	  "go on with this session, which is made on first use; its turns are kept" },
	{ "--turn", NULL, "N", SESSION, COUNT, AT(turn), 0, 0x7fffffff,
	  "fork: the last turn that is copied" },
	{ "--days", NULL, "N", SESSION, COUNT, AT(days), 0, 36500,
	  "gc: remove what is not pinned and was not used for N days (90)" },
	{ "--kv", NULL, NULL, SESSION, FLAG, AT(kv), 0, 0,
	  "export: with what was computed for it, for a steamd with the same model and processor" },
	{ "--names", NULL, NULL, SESSION, FLAG, AT(names), 0, 0, "list: names only, one a line" },
	{ "--tools", NULL, "FILE", ASK | CHAT, TEXT, AT(tools), 0, 0,
	  "a JSON array of tools; calls are printed as JSON" },
	{ "--think", NULL, NULL, ASK | CHAT, FLAG, AT(think), 0, 0, "reason before answering" },
	{ "--no-think", NULL, NULL, ASK | CHAT, NO_FLAG, AT(think), 0, 0, "answer at once" },
	{ "--ids", NULL, NULL, COMPLETE | SCORE, FLAG, AT(ids), 0, 0,
	  "the input is a JSON array of token ids" },
	{ "--max-tokens", "-n", "N", SAMPLING, COUNT, AT(g.max_tokens), 1, 0x7fffffff,
	  "longest answer" },
	{ "--min-tokens", NULL, "N", SAMPLING, COUNT, AT(g.min_tokens), 0, 0x7fffffff,
	  "no stop id before that" },
	{ "--temperature", "-t", "T", SAMPLING | BENCH | SESSION, REAL, AT(g.temperature), 0, 1e6,
	  "0: always the likeliest" },
	{ "--top-p", NULL, "P", SAMPLING | SESSION, REAL, AT(g.top_p), 0, 1,
	  "keep the likeliest up to this mass" },
	{ "--min-p", NULL, "P", SAMPLING | SESSION, REAL, AT(g.min_p), 0, 1,
	  "drop what is less likely than P times the best" },
	{ "--top-k", NULL, "K", SAMPLING | SESSION, COUNT, AT(g.top_k), 0, 0x7fffffff,
	  "keep the K likeliest; 0: all" },
	{ "--repetition-penalty", NULL, "R", SAMPLING | SESSION, REAL, AT(g.repetition_penalty),
	  1e-3, 1e6, "1: none" },
	{ "--frequency-penalty", NULL, "F", SAMPLING | SESSION, REAL, AT(g.frequency_penalty), -1e6,
	  1e6, "0: none" },
	{ "--presence-penalty", NULL, "F", SAMPLING | SESSION, REAL, AT(g.presence_penalty), -1e6,
	  1e6, "0: none" },
	{ "--seed", NULL, "N", SAMPLING, SEED, 0, 0, 0, "the same seed gives the same answer" },
	{ "--stop", NULL, "TEXT", SAMPLING, STOP, 0, 0, 0,
	  "end the answer before TEXT; up to 16 times" },
	{ "--logit-bias", NULL, "ID=B", SAMPLING, BIAS, 0, 0, 0,
	  "add B to the logit of ID; repeatable" },
	{ "--ignore-eos", NULL, NULL, SAMPLING, FLAG, AT(g.ignore_eos), 0, 0,
	  "the model's stop ids do not stop" },
	{ "--top", NULL, "N", SAMPLING | SCORE, TOP, AT(top), 0, 20,
	  "with --json: log-probabilities and the N best" },
	{ "--deadline", NULL, "MS", SAMPLING | SCORE, COUNT, AT(g.deadline_ms), 1, 0x7fffffff,
	  "give up after MS milliseconds" },
	{ "--class", NULL, "CLASS", SAMPLING, CLASS, 0, 0, 0,
	  "interactive, or batch, which waits behind it; batch unless stdout is a terminal" },
	{ "--model", "-m", "NAME", SAMPLING, TEXT, AT(g.model), 0, 0, "insist on this model" },
	{ "--limits", NULL, NULL, STATUS, FLAG, AT(limits), 0, 0,
	  "what one may have, and what one has now; administrators: of all users" },
	{ "--no-special", NULL, NULL, TOKENIZE, FLAG, AT(no_special), 0, 0,
	  "recognise no added token" },
	{ "--skip-special", NULL, NULL, DETOKENIZE, FLAG, AT(skip_special), 0, 0,
	  "leave special tokens out" },
	{ "--now", NULL, NULL, SLEEP, FLAG, AT(now), 0, 0,
	  "answers pause; they go on at the next request or wake" },
	{ "--for-pid", NULL, "PID", YIELD, COUNT, AT(pid), 1, 0x7fffffff,
	  "keep them free until this process ends, and return at once" },
	{ "--prompt-tokens", NULL, "N", BENCH, COUNT, AT(prompt_tokens), 1, 1 << 20,
	  "length of the prompt (512)" },
	{ "--tokens", NULL, "N", BENCH, COUNT, AT(tokens), 2, 1 << 20,
	  "length of the answer (64)" },
	{ "--rounds", NULL, "N", BENCH, COUNT, AT(rounds), 1, 1000,
	  "rounds, of which the median is shown (3)" },
	{ "--help", "-h", NULL, ANY, HELP, 0, 0, 0, "print this" },
	{ "--version", NULL, NULL, ANY, SHOW_VERSION, 0, 0, 0, "print the version" },
	{ "--print-man", NULL, NULL, 0, PRINT_MAN, 0, 0, 0, NULL },
	{ "--print-completion", NULL, NULL, 0, PRINT_COMPLETION, 0, 0, 0, NULL },
};

static const struct {
	int code;
	const char *meaning;
} own_exits[] = {
	{ EXIT_OK, "the answer is complete" },
	{ EXIT_USAGE, "the command line makes no sense" },
	{ EXIT_NO_INPUT, "an input file cannot be read" },
	{ EXIT_NO_DAEMON, "no daemon answers at the socket" },
	{ EXIT_LOCAL, "out of memory or descriptors here" },
	{ EXIT_TRY_AGAIN, "the connection was lost and did not come back" },
	{ EXIT_PROTOCOL, "the peer does not speak steamd's language" },
	{ EXIT_INTERRUPTED, "cancelled: Ctrl-C, or by an administrator" },
	{ EXIT_PIPE, "stdout was closed; the request was cancelled" },
};

#define CODE_ROW(NAME, string, exit_code, meaning) { string, exit_code, meaning },
static const struct {
	const char *code;
	int exit_code;
	const char *meaning;
} daemon_exits[] = { CODES(CODE_ROW) };

static void print_options(unsigned bits)
{
	for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
		char left[64];

		if (!options[i].help || (bits != ANY && !(options[i].bits & bits)))
			continue;
		snprintf(left, sizeof(left), "%s%s%s%s%s", options[i].alias ? options[i].alias : "",
			 options[i].alias ? ", " : "", options[i].name, options[i].value ? " " : "",
			 options[i].value ? options[i].value : "");
		printf("  %-26s %s\n", left, options[i].help);
	}
}

static int print_help(const struct command *command)
{
	if (command) {
		printf("usage: steamctl %s [OPTION]… %s\n\n%s\n\n", command->name,
		       command->arguments, command->help);
		if (command->bit == SESSION) {
			session_print_verbs(false);
			printf("\nNAME is a session's name or id.\n\n");
		}
		print_options(command->bit);
		return EXIT_OK;
	}
	printf("usage: steamctl [--socket PATH] COMMAND [OPTION]… [ARGUMENT]…\n\n");
	for (unsigned i = 0; i < n_commands; i++)
		printf("  %-11s%-13s %s\n", commands[i].name, commands[i].arguments,
		       commands[i].help);
	printf("\nOptions; steamctl COMMAND --help shows those of a command:\n\n");
	print_options(ANY);
	printf("\nThe answer goes to stdout and nothing else does. Exit codes:\n\n");
	for (size_t i = 0; i < ARRAY_SIZE(own_exits); i++)
		printf("  %3d  %s\n", own_exits[i].code, own_exits[i].meaning);
	for (size_t i = 0; i < ARRAY_SIZE(daemon_exits); i++)
		printf("  %3d  %s: %s\n", daemon_exits[i].exit_code, daemon_exits[i].code,
		       daemon_exits[i].meaning);
	return EXIT_OK;
}

void print_troff(const char *text)
{
	for (; *text; text++) {
		if (*text == '-')
			fputs("\\-", stdout);
		else if (*text == '\\')
			fputs("\\e", stdout);
		else
			putchar(*text);
	}
}

static int print_man(void)
{
	printf(".TH STEAMCTL 1 \"\" \"steamd %s\"\n.SH NAME\nsteamctl \\- the command line to "
	       "steamd\n"
	       ".SH SYNOPSIS\n.B steamctl\n[\\fB\\-\\-socket\\fR \\fIPATH\\fR] \\fICOMMAND\\fR "
	       "[\\fIOPTION\\fR]... [\\fIARGUMENT\\fR]...\n.SH COMMANDS\n",
	       STEAMD_VERSION);
	for (unsigned i = 0; i < n_commands; i++) {
		printf(".TP\n\\fB%s\\fR %s\n", commands[i].name, commands[i].arguments);
		print_troff(commands[i].help);
		putchar('\n');
	}
	printf(".SH OPTIONS\n");
	for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
		if (!options[i].help)
			continue;
		printf(".TP\n\\fB");
		if (options[i].alias) {
			print_troff(options[i].alias);
			printf("\\fR, \\fB");
		}
		print_troff(options[i].name);
		printf("\\fR %s\n", options[i].value ? options[i].value : "");
		print_troff(options[i].help);
		putchar('\n');
	}
	printf(".SH SESSIONS\nA session is a conversation that steamd keeps. The verbs of\n.BR "
	       "session :\n");
	session_print_verbs(true);
	printf(".SH EXIT STATUS\n");
	for (size_t i = 0; i < ARRAY_SIZE(own_exits); i++)
		printf(".TP\n%d\n%s\n", own_exits[i].code, own_exits[i].meaning);
	for (size_t i = 0; i < ARRAY_SIZE(daemon_exits); i++) {
		printf(".TP\n%d\n", daemon_exits[i].exit_code);
		print_troff(daemon_exits[i].code);
		printf(": %s\n", daemon_exits[i].meaning);
	}
	printf(".SH ENVIRONMENT\n.TP\nSTEAMD_SOCKET\nthe socket, unless \\-\\-socket names one\n"
	       ".SH SEE ALSO\n.BR steamd (8),\n.BR steamd.conf (5)\n");
	return EXIT_OK;
}

/* Not by compgen -W, which expands its words: a name may come with somebody's file, and be a command. */
static const char complete_names[] =
	"_steamctl_names()\n{\n\tlocal name quoted\n\tCOMPREPLY=()\n"
	"\twhile IFS= read -r name; do\n\t\tprintf -v quoted %q \"$name\"\n"
	"\t\t[[ $name == \"$cur\"* || $quoted == \"$cur\"* ]] && COMPREPLY+=(\"$quoted\")\n"
	"\tdone < <(steamctl session list --names 2>/dev/null)\n}\n";

static int print_completion(void)
{
	printf("# bash completion for steamctl\n");
	fputs(complete_names, stdout);
	printf("_steamctl()\n{\n\tlocal "
	       "cur=${COMP_WORDS[COMP_CWORD]} word\n"
	       "\tlocal command=\n\tfor word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n\t\tcase "
	       "$word in\n\t\t");
	for (unsigned i = 0; i < n_commands; i++)
		printf("%s%s", i ? " | " : "", commands[i].name);
	printf(") command=$word; break ;;\n\t\tesac\n\tdone\n\tcase $command in\n");
	for (unsigned i = 0; i < n_commands; i++) {
		printf("\t%s) COMPREPLY=($(compgen -W \"", commands[i].name);
		for (size_t k = 0; k < ARRAY_SIZE(options); k++)
			if (options[k].help && (options[k].bits & commands[i].bit))
				printf("%s ", options[k].name);
		printf("\" -- \"$cur\")) ;;\n");
	}
	printf("\t*) COMPREPLY=($(compgen -W \"--socket --json --help --version ");
	for (unsigned i = 0; i < n_commands; i++)
		printf("%s ", commands[i].name);
	printf("\" -- \"$cur\")) ;;\n\tesac\n\tcase ${COMP_WORDS[COMP_CWORD-1]} in\n"
	       "\t--socket | --file | -f | --tools) COMPREPLY=($(compgen -f -- \"$cur\")) "
	       ";;\n\t--session | -S | show | fork | rewind | rename | pin | unpin | rm | "
	       "export | explain)\n\t\t[[ $command == @(ask|chat|session|cache) ]] "
	       "&&\n\t\t\t_steamctl_names ;;\n"
	       "\tcache) COMPREPLY=($(compgen -W explain -- \"$cur\")) ;;\n"
	       "\tsession) COMPREPLY=($(compgen -W \"list show new fork rewind rename pin unpin rm "
	       "export import gc\" -- \"$cur\")) ;;\n"
	       "\timport) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n\tesac\n}\n"
	       "complete -F _steamctl steamctl\n");
	return EXIT_OK;
}

static int set_number(const struct option *o, void *at, const char *value)
{
	double d;
	char *end;

	errno = 0;
	d = strtod(value, &end);
	if (errno || end == value || *end || !isfinite(d) || (o->kind != REAL && d != floor(d)))
		return fail(EXIT_USAGE, "%s is '%s'; a %snumber is wanted", o->name, value,
			    o->kind == REAL ? "" : "whole ");
	if (d < o->min || d > o->max)
		return fail(EXIT_USAGE, "%s is '%s'; from %.10g to %.10g is allowed", o->name,
			    value, o->min, o->max);
	if (o->kind == REAL)
		*(double *)at = d;
	else
		*(uint32_t *)at = (uint32_t)d;
	return -1;
}

static int set_seed(struct ctl *c, const char *value)
{
	char *end;

	errno = 0;
	c->g.seed = strtoull(value, &end, 0);
	if (errno || *end || end == value || value[0] == '-')
		return fail(EXIT_USAGE, "--seed is '%s'; a whole number is wanted", value);
	c->g.has_seed = 1;
	return -1;
}

static int add_bias(struct ctl *c, const char *value)
{
	unsigned long long id;
	char *end, *end2;
	float bias;

	errno = 0;
	id = strtoull(value, &end, 10);
	bias = *end == '=' ? strtof(end + 1, &end2) : NAN;
	if (errno || end == value || *end != '=' || end2 == end + 1 || *end2 || id > UINT32_MAX ||
	    !isfinite(bias))
		return fail(EXIT_USAGE, "--logit-bias is '%s'; ID=NUMBER is wanted", value);
	if (c->g.n_bias == BIAS_MAX)
		return fail(EXIT_USAGE, "--logit-bias is given more than %d times", BIAS_MAX);
	c->bias_ids[c->g.n_bias] = (uint32_t)id;
	c->bias_values[c->g.n_bias++] = bias;
	return -1;
}

static int set_class(struct ctl *c, const char *value)
{
	c->g.batch = strcmp(value, "batch") == 0;
	if (!c->g.batch && strcmp(value, "interactive") != 0)
		return fail(EXIT_USAGE, "--class is '%s'; interactive or batch is wanted", value);
	return -1;
}

/* Returns -1 to go on, else an exit code. */
static int apply(struct ctl *c, const struct option *o, const char *value,
		 const struct command *command)
{
	void *at = (char *)c + o->at;

	switch (o->kind) {
	case FLAG:
		if (o->at == AT(think))
			c->think = 1;
		else if (o->at == AT(g.ignore_eos))
			c->g.ignore_eos = 1;
		else
			*(bool *)at = true;
		return -1;
	case NO_FLAG:
		c->think = 0;
		return -1;
	case TEXT:
		*(const char **)at = value;
		return -1;
	case REAL:
	case COUNT:
		return set_number(o, at, value);
	case TOP:
		c->g.logprobs = 1;
		return set_number(o, at, value);
	case SEED:
		return set_seed(c, value);
	case STOP:
		if (value[0] == '\0')
			return fail(EXIT_USAGE, "--stop is empty; a text is wanted");
		if (c->g.n_stop == STOPS_MAX)
			return fail(EXIT_USAGE, "--stop is given more than %d times", STOPS_MAX);
		c->stops[c->g.n_stop++] = value;
		return -1;
	case BIAS:
		return add_bias(c, value);
	case CLASS:
		return set_class(c, value);
	case HELP:
		return print_help(command);
	case SHOW_VERSION:
		puts("steamctl " STEAMD_VERSION);
		return EXIT_OK;
	case PRINT_MAN:
		return print_man();
	case PRINT_COMPLETION:
		return print_completion();
	}
	return -1;
}

static const struct option *find_option(const char *arg, size_t len)
{
	for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
		if (strlen(options[i].name) == len && memcmp(options[i].name, arg, len) == 0)
			return &options[i];
		if (options[i].alias && strlen(options[i].alias) == len &&
		    memcmp(options[i].alias, arg, len) == 0)
			return &options[i];
	}
	return NULL;
}

static const struct command *find_command(const char *name)
{
	for (unsigned i = 0; i < n_commands; i++)
		if (strcmp(commands[i].name, name) == 0)
			return &commands[i];
	return NULL;
}

/* The options in argv[*at]; moves *@at over its value. -1 to go on, else an exit code. */
static int take_option(struct ctl *c, int argc, char **argv, int *at, const struct command *command)
{
	const char *arg = argv[*at], *equals = strncmp(arg, "--", 2) == 0 ? strchr(arg, '=') : NULL;
	const struct option *o = find_option(arg, equals ? (size_t)(equals - arg) : strlen(arg));
	const char *value = equals ? equals + 1 : NULL;

	if (!o)
		return fail(EXIT_USAGE, "no option '%s'; see steamctl --help", arg);
	if (command && o->bits && !(o->bits & command->bit))
		return fail(EXIT_USAGE, "%s does not go with %s; see steamctl %s --help", o->name,
			    command->name, command->name);
	if (!o->value && value)
		return fail(EXIT_USAGE, "%s takes no value", o->name);
	if (o->value && !value) {
		if (*at + 1 >= argc)
			return fail(EXIT_USAGE, "%s wants %s", o->name, o->value);
		value = argv[++*at];
	}
	return apply(c, o, value, command);
}

int options_read(int argc, char **argv, struct ctl *c, const struct command **ret_command)
{
	const struct command *command = NULL;
	bool only_words = false;

	steamd_generate_init(&c->g);
	c->g.batch = !isatty(STDOUT_FILENO); /* nobody sits there and waits */
	c->think = -1;
	c->turn = c->days = STEAMD_UNSET;
	c->words = calloc((size_t)argc + 1, sizeof(*c->words));
	if (!c->words)
		return fail(EXIT_LOCAL, "out of memory");
	for (int i = 1; i < argc; i++) {
		int r;

		if (!only_words && argv[i][0] == '-' && argv[i][1]) {
			if (strcmp(argv[i], "--") == 0) {
				only_words = true;
				continue;
			}
			r = take_option(c, argc, argv, &i, command);
			if (r >= 0)
				return r;
		} else if (!command) {
			command = find_command(argv[i]);
			if (!command)
				return fail(EXIT_USAGE, "no command '%s'; see steamctl --help",
					    argv[i]);
		} else {
			c->words[c->n_words++] = argv[i];
		}
	}
	if (!command) {
		print_help(NULL);
		return EXIT_USAGE;
	}
	c->g.n_top = c->top;
	c->g.stop = c->stops;
	c->g.bias_ids = c->bias_ids;
	c->g.bias_values = c->bias_values;
	*ret_command = command;
	return -1;
}
