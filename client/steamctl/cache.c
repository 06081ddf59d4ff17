/* Why a prompt was not found in the cache. */
#include <errno.h>
#include <string.h>

#include "client/steamctl/steamctl.h"

static json_int_t integer_at(const json_t *o, const char *key)
{
	return json_integer_value(json_object_get(o, key));
}

/* One side of the place where they part: on one line, whatever is in it. */
static void print_side(const json_t *o, const char *title, const char *token, const char *text)
{
	const json_t *id = json_object_get(json_object_get(o, token), "id");
	_cleanup_(freep) char *quoted = NULL;

	if (!id)
		return;
	quoted = json_dumps(json_object_get(o, text), JSON_ENCODE_ANY);
	printf("%-12s %" JSON_INTEGER_FORMAT "  %s\n", title, json_integer_value(id),
	       quoted ? quoted : "");
}

static void print_object(const json_t *o)
{
	const char *turn = json_string_value(json_object_get(o, "turn"));
	const char *session = json_string_value(json_object_get(o, "session"));
	const char *text = json_string_value(json_object_get(o, "text"));

	printf("%s\n\n", text ? text : "");
	printf("%-12s %s\n", "turn", turn ? turn : "?");
	if (session)
		printf("%-12s %s, turn %" JSON_INTEGER_FORMAT "\n", "session", session,
		       integer_at(o, "session_turn"));
	printf("%-12s %" JSON_INTEGER_FORMAT " tokens\n", "prompt", integer_at(o, "prompt_tokens"));
	printf("%-12s %" JSON_INTEGER_FORMAT " in the arena, %" JSON_INTEGER_FORMAT " from disk\n",
	       "cached", integer_at(o, "cached_arena"), integer_at(o, "cached_disk"));
	if (integer_at(o, "recomputed_tokens") > 0)
		printf("%-12s %" JSON_INTEGER_FORMAT " after a loss\n", "recomputed",
		       integer_at(o, "recomputed_tokens"));
	if (!json_is_integer(json_object_get(o, "diverged_at")))
		return;
	printf("%-12s %" JSON_INTEGER_FORMAT "\n", "missed from", integer_at(o, "diverged_at"));
	print_side(o, "in prompt", "prompt_token", "prompt_text");
	print_side(o, "in cache", "cached_token", "cached_text");
}

/* A word that is a number may be a turn's, a session's name or its id. */
static int ask(struct ctl *c, const char *word, char **ret, struct steamd_error *err)
{
	unsigned long long turn;
	char *end;
	int r;

	errno = 0;
	turn = strtoull(word, &end, 0);
	if (!errno && end != word && !*end && word[0] != '-') {
		r = steamd_cache_explain(c->s, turn, NULL, ret, err);
		if (r != -ENOENT)
			return r;
		if (steamd_cache_explain(c->s, 0, word, ret, &(struct steamd_error){ 0 }) == 0)
			return 0;
		return r; /* what is said of the turn is more likely meant */
	}
	return steamd_cache_explain(c->s, 0, word, ret, err);
}

int run_cache(struct ctl *c)
{
	_cleanup_(freep) char *text = NULL;
	struct steamd_error err = { 0 };
	json_error_t error;
	json_t *o;

	if (c->n_words != 2 || strcmp(c->words[0], "explain") != 0)
		return fail(EXIT_USAGE, "usage: steamctl cache explain TURN|SESSION");
	if (ask(c, c->words[1], &text, &err) < 0)
		return fail_with(&err);
	if (c->json)
		return puts(text) >= 0 ? EXIT_OK : EXIT_PIPE;
	o = json_loads(text, 0, &error);
	if (!o)
		return fail(EXIT_PROTOCOL, "the daemon's answer is no JSON: %s", error.text);
	print_object(o);
	json_decref(o);
	return EXIT_OK;
}
