/*
 * steamctl: the command line to steamd. What was asked for, as the tables in
 * options.c read it, and what the commands share.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "client/steamd.h"
#include "client/wire/ownership.h"

#define STOPS_MAX 16
#define BIAS_MAX 1024
#define INPUT_BYTES_MAX (1u << 30)

/* Exit codes besides those of client/wire/codes.h. */
enum exit_code {
	EXIT_OK = 0,
	EXIT_USAGE = 64,
	EXIT_NO_INPUT = 66,
	EXIT_NO_DAEMON = 69,
	EXIT_FAULT = 70,
	EXIT_LOCAL = 71,
	EXIT_TRY_AGAIN = 75,
	EXIT_PROTOCOL = 76,
	EXIT_INTERRUPTED = 130,
	EXIT_PIPE = 141,
};

struct ctl {
	const char *socket;
	bool json;
	bool now; /* --now */

	struct steamd_generate g; /* sampler flags go straight in */
	const char *stops[STOPS_MAX];
	uint32_t bias_ids[BIAS_MAX];
	float bias_values[BIAS_MAX];
	const char *system, *file, *tools, *label;
	int think; /* -1: not said */
	bool ids, no_special, skip_special, names, limits, kv;
	uint32_t pid;	     /* --for-pid; 0: none */
	uint32_t turn, days; /* STEAMD_UNSET: not said */
	uint32_t top, prompt_tokens, tokens, rounds;
	char **words; /* what is left of the command line */
	int n_words;

	struct steamd *s;
};

struct command {
	const char *name, *arguments, *help;
	unsigned bit;
	int (*run)(struct ctl *c);
	bool offline; /* needs no daemon */
};

extern const struct command commands[];
extern const unsigned n_commands;

int run_ask(struct ctl *c);
int run_chat(struct ctl *c);
int run_complete(struct ctl *c);
int run_score(struct ctl *c);
int run_tokenize(struct ctl *c);
int run_detokenize(struct ctl *c);
int run_render(struct ctl *c);
int run_status(struct ctl *c);
int run_mem(struct ctl *c);
int run_ps(struct ctl *c);
int run_models(struct ctl *c);
int run_cancel(struct ctl *c);
int run_reload(struct ctl *c);
int run_bench(struct ctl *c);
int run_sleep(struct ctl *c);
int run_wake(struct ctl *c);
int run_yield(struct ctl *c);
int run_session(struct ctl *c);
int run_cache(struct ctl *c);

/* options.c: troff reads a leading dash as a hyphen and a leading dot as a request. */
void print_troff(const char *text);
/* session.c: a row for each verb; @man: as troff. */
void session_print_verbs(bool man);

/* options.c. Returns -1 to go on with *@ret_command, or an exit code. */
int options_read(int argc, char **argv, struct ctl *c, const struct command **ret_command);

/* input.c: prints "steamctl: …" and returns @code. */
int fail(int code, const char *format, ...) _printf_(2, 3);
/* The sentence and exit code of a failure of the library or the daemon. */
int fail_with(const struct steamd_error *err);

/* text.c: one line on stdout, not flushed. Takes @line over; NULL counts as a failure. */
bool print_json(json_t *line);

/* input.c. All return 0, or an exit code after printing why. */
int read_stream(FILE *f, const char *name, char **ret, size_t *ret_len);	/* byte for byte */
int read_file(const char *path, char **ret, size_t *ret_len);			/* "-": stdin */
int read_prompt(struct ctl *c, char **ret, size_t *ret_len);			/* words, -, -f or stdin; valid UTF-8 */
int read_ids(struct ctl *c, uint32_t **ret, size_t *ret_n);			/* JSON on stdin, or words */

/* interrupt.c: Ctrl-C as a flag; system calls return EINTR. */
void interrupt_catch(void);
bool interrupt_pending(void);
void interrupt_clear(void);

/*
 * generate.c: one answer, streamed to stdout (or as JSON lines), the rest to
 * stderr. @conversation: what is collected goes there too, for chat; or NULL.
 */
struct answer_text {
	char *content, *reasoning;
	size_t content_len, reasoning_len;
	json_t *tool_calls;
};
void answer_text_deinit(struct answer_text *a);
int generate(struct ctl *c, struct answer_text *ret);
