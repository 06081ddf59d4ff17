/* Which layout a model's template asks for, and a rendering's way to ids. */
#include "daemon/text/chat.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define TEMPLATE_BYTES_MAX (1u << 20)
#define TOKENIZER_CONFIG_BYTES_MAX (16u << 20)

static const struct {
	enum chat_layout layout;
	const char *name;
} names[] = {
	{ CHAT_NONE, "none" },
	{ CHAT_GLM45, "glm45" },
	{ CHAT_GLM46, "glm46" },
	{ CHAT_GLM47, "glm47" },
};

const char *chat_layout_name(enum chat_layout layout)
{
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (names[i].layout == layout)
			return names[i].name;
	return "?";
}

int chat_layout_parse(const char *name, enum chat_layout *ret)
{
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (strcmp(names[i].name, name) == 0) {
			*ret = names[i].layout;
			return 0;
		}
	}
	return -EINVAL;
}

static bool has_all(const char *text, const char *const *words)
{
	for (; *words; words++)
		if (!strstr(text, *words))
			return false;
	return true;
}

/*
 * Features, not sums: copies of one template differ in white space. "/nothink"
 * is written by 4.5 and 4.6 alone, clear_thinking read by 4.7 alone.
 */
enum chat_layout chat_detect(const char *text, const char **ret_warning)
{
	static const char *const glm[] = { "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", NULL };
	static const char *const parts[] = { "<|system|>", "<|observation|>", "<tool_call>",
					     "<arg_key>",  "<arg_value>",     "<tool_response>",
					     "</think>",   "enable_thinking", NULL };
	bool nothink, clear;

	*ret_warning = NULL;
	if (!text) {
		*ret_warning = "the model has no chat template: chat is off, completion works";
		return CHAT_NONE;
	}
	if (!has_all(text, glm)) {
		*ret_warning = "the model's chat template is not of the GLM-4.5 family: chat is "
			       "off, completion works";
		return CHAT_NONE;
	}
	nothink = strstr(text, "/nothink") != NULL;
	clear = strstr(text, "clear_thinking") != NULL;
	if (has_all(text, parts) && nothink != clear)
		return clear ? CHAT_GLM47 : CHAT_GLM46;
	if (clear || (!nothink && strstr(text, "<|assistant|><think>"))) {
		*ret_warning = "the model's chat template is unknown: rendered in the GLM-4.7 "
			       "layout, the nearest one";
		return CHAT_GLM47;
	}
	*ret_warning = "the model's chat template is unknown: rendered in the GLM-4.6 layout, the "
		       "nearest one";
	return CHAT_GLM46;
}

/* Reads a whole file of at most @max bytes; *@ret stays NULL if there is none. */
static int read_file(const char *path, size_t max, char **ret, struct err *err)
{
	_cleanup_(fclosep) FILE *f = fopen(path, "re");
	_cleanup_(freep) char *text = NULL;
	struct stat st;

	if (!f)
		return errno == ENOENT ? 0
				       : err_set(err, -errno, "cannot open '%s': %s", path,
						 strerror(errno));
	if (fstat(fileno(f), &st) < 0)
		return err_set(err, -errno, "cannot read '%s': %s", path, strerror(errno));
	if ((uint64_t)st.st_size > max)
		return err_set(err, -EBADMSG, "'%s' has %lld bytes; at most %zu are allowed", path,
			       (long long)st.st_size, max);
	text = malloc((size_t)st.st_size + 1);
	if (!text)
		return -ENOMEM;
	if (fread(text, 1, (size_t)st.st_size, f) != (size_t)st.st_size)
		return err_set(err, -EIO, "cannot read all of '%s'", path);
	text[st.st_size] = '\0';
	*ret = steal(text);
	return 0;
}

/* "chat_template" of tokenizer_config.json: a string, or a list of named ones of which "default" counts. */
static int embedded_template(const char *text, const char *path, char **ret, struct err *err)
{
	json_error_t error;
	json_t *root = json_loads(text, 0, &error), *value, *entry;
	const char *found = NULL;
	size_t i;

	if (!root)
		return err_set(err, -EBADMSG, "'%s' is no valid JSON at line %d: %s", path,
			       error.line, error.text);
	value = json_object_get(root, "chat_template");
	found = json_string_value(value);
	if (json_is_array(value)) {
		json_array_foreach(value, i, entry) {
			const char *name = json_string_value(json_object_get(entry, "name"));

			if (name && strcmp(name, "default") == 0)
				found = json_string_value(json_object_get(entry, "template"));
		}
	}
	if (found && !(*ret = strdup(found))) {
		json_decref(root);
		return -ENOMEM;
	}
	json_decref(root);
	return 0;
}

int chat_template_read(const char *dir, char **ret, struct err *err)
{
	_cleanup_(freep) char *path = NULL, *config_path = NULL, *config = NULL;
	int r;

	*ret = NULL;
	if (asprintf(&path, "%s/chat_template.jinja", dir) < 0 ||
	    asprintf(&config_path, "%s/tokenizer_config.json", dir) < 0)
		return -ENOMEM;
	r = read_file(path, TEMPLATE_BYTES_MAX, ret, err);
	if (r < 0 || *ret)
		return r;
	r = read_file(config_path, TOKENIZER_CONFIG_BYTES_MAX, &config, err);
	if (r < 0 || !config)
		return r;
	return embedded_template(config, config_path, ret, err);
}

void chat_rendering_deinit(struct chat_rendering *r)
{
	free(r->text);
	free(r->pieces);
	free(r->string_args);
	memset(r, 0, sizeof(*r));
}

uint32_t chat_marker_id(const struct chat_rendering *r, const struct chat_piece *piece,
			const struct tokenizer *t)
{
	char name[64];

	if (!piece->marker)
		return UINT32_MAX;
	snprintf(name, sizeof(name), "%.*s", (int)piece->len, r->text + piece->begin);
	return tokenizer_added_id(t, name);
}

int chat_encode(const struct chat_rendering *r, const struct tokenizer *t, struct ids *ids)
{
	size_t from = 0; /* of the text that was not encoded yet */
	int e;

	for (size_t i = 0; i < r->n_pieces; i++) {
		const struct chat_piece *p = &r->pieces[i];
		const uint32_t id = chat_marker_id(r, p, t);

		if (id == UINT32_MAX)
			continue;
		e = tokenizer_encode(t, (struct span){ r->text + from, p->begin - from },
				     TOKENIZER_ADDED_NONE, ids);
		if (e == 0)
			e = ids_append(ids, &id, 1);
		if (e < 0)
			return e;
		from = p->begin + p->len;
	}
	return tokenizer_encode(t, (struct span){ r->text + from, r->len - from },
				TOKENIZER_ADDED_NONE, ids);
}
