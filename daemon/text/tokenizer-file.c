/*
 * tokenizer.json to tables. The big arrays are pulled through, the small
 * sections checked as trees: everything that would change the ids and that
 * this tokenizer does not do is refused. "truncation" and "padding" belong to
 * training scripts and are not read.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <sys/stat.h>

#include "daemon/text/jsonpull.h"
#include "daemon/text/split.h"
#include "daemon/text/tokenizer-parts.h"
#include "daemon/text/unicode.h"

#define SECTION_BYTES_MAX (1u << 20) /* of a section read as a tree */
#define ADDED_MAX (1u << 16)
#define TEMPLATE_IDS_MAX 64
#define SHOWN(s) (int)MIN((s).len, (size_t)60), (s).data

struct sections {
	struct span version, added_tokens, normalizer, pre_tokenizer, post_processor, decoder,
		model;
};

struct model_parts {
	struct span type, vocab, merges, ignore_merges, dropout, prefix, suffix;
};

struct member {
	const char *name;
	struct span *value;
};

/* Notes where the values of the members listed are; the others are passed over. */
static int locate(struct span object, const struct member *members, size_t n, struct err *err)
{
	struct jsonpull j;
	struct span key, value;
	int r;

	jsonpull_init(&j, object);
	r = jsonpull_open(&j, '{');
	for (size_t i = 0; r >= 0; i++) {
		struct span *into = NULL;

		r = jsonpull_more(&j, '}', i);
		if (r <= 0)
			break;
		r = jsonpull_key(&j, &key);
		for (size_t k = 0; r == 0 && k < n; k++)
			if (span_is(key, members[k].name))
				into = members[k].value;
		if (r == 0 && into && into->data)
			r = err_set(err, -EBADMSG, "'%.*s' is given twice", SHOWN(key));
		if (r == 0)
			r = jsonpull_skip(&j, &value);
		if (r == 0 && into)
			*into = value;
	}
	if (r == 0 && jsonpull_peek(&j)) {
		j.problem = "something follows the object";
		r = -EBADMSG;
	}
	r = jsonpull_explain(&j, r, err);
	jsonpull_deinit(&j);
	return r;
}

static bool is_absent(struct span value)
{
	return !value.data || span_is(value, "null");
}

static int load(struct span value, const char *what, json_t **ret, struct err *err)
{
	json_error_t error;

	*ret = NULL;
	if (is_absent(value))
		return 0;
	if (value.len > SECTION_BYTES_MAX)
		return err_set(err, -EBADMSG, "%s is longer than %u bytes", what,
			       SECTION_BYTES_MAX);
	*ret = json_loadb(value.data, value.len,
			  JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &error);
	return *ret ? 0 : err_set(err, -EBADMSG, "%s: %s", what, error.text);
}

static void decrefp(json_t **json)
{
	json_decref(*json);
}

static const char *type_of(const json_t *json)
{
	const char *type = json_string_value(json_object_get(json, "type"));

	return type ? type : "of no type";
}

static bool is_type(const json_t *json, const char *type)
{
	return strcmp(type_of(json), type) == 0;
}

static int check_normalizer(struct span value, struct err *err)
{
	_cleanup_(decrefp) json_t *json = NULL;
	int r;

	r = load(value, "normalizer", &json, err);
	if (r < 0 || !json)
		return r;
	if (is_type(json, "Sequence") && json_array_size(json_object_get(json, "normalizers")) == 0)
		return 0;
	return err_set(err, -ENOTSUP, "normalizer is '%s'; only null is supported", type_of(json));
}

static int check_split(const json_t *split, struct err *err)
{
	const char *regex =
		json_string_value(json_object_get(json_object_get(split, "pattern"), "Regex"));
	const char *behavior = json_string_value(json_object_get(split, "behavior"));

	if (!is_type(split, "Split"))
		return err_set(err, -ENOTSUP, "pre_tokenizer[0] is '%s'; 'Split' is wanted",
			       type_of(split));
	if (!regex || strcmp(regex, SPLIT_PATTERN) != 0)
		return err_set(err, -ENOTSUP,
			       "the split pattern is '%.200s'; only '%s' is supported",
			       regex ? regex : "not a Regex", SPLIT_PATTERN);
	if (!behavior || strcmp(behavior, "Isolated") != 0)
		return err_set(err, -ENOTSUP, "the split behavior is '%.60s'; 'Isolated' is wanted",
			       behavior ? behavior : "missing");
	if (json_is_true(json_object_get(split, "invert")))
		return err_set(err, -ENOTSUP, "the split pattern is inverted");
	return 0;
}

static int check_pre_tokenizer(struct span value, struct err *err)
{
	_cleanup_(decrefp) json_t *json = NULL;
	const json_t *list, *level;
	int r;

	r = load(value, "pre_tokenizer", &json, err);
	if (r < 0)
		return r;
	list = json_object_get(json, "pretokenizers");
	if (!is_type(json, "Sequence") || json_array_size(list) != 2)
		return err_set(err, -ENOTSUP,
			       "pre_tokenizer is '%.60s' of %zu; a Sequence of Split and ByteLevel "
			       "is wanted",
			       type_of(json), json_array_size(list));
	r = check_split(json_array_get(list, 0), err);
	if (r < 0)
		return r;
	level = json_array_get(list, 1);
	if (!is_type(level, "ByteLevel"))
		return err_set(err, -ENOTSUP, "pre_tokenizer[1] is '%.60s'; 'ByteLevel' is wanted",
			       type_of(level));
	if (!json_is_false(json_object_get(level, "add_prefix_space")) ||
	    !json_is_false(json_object_get(level, "use_regex")))
		return err_set(err, -ENOTSUP,
			       "pre_tokenizer[1] must have add_prefix_space and use_regex false");
	return 0;
}

static int check_decoder(struct span value, struct err *err)
{
	_cleanup_(decrefp) json_t *json = NULL;
	int r;

	r = load(value, "decoder", &json, err);
	if (r < 0)
		return r;
	if (!is_type(json, "ByteLevel"))
		return err_set(err, -ENOTSUP, "decoder is '%.60s'; only ByteLevel is supported",
			       type_of(json));
	return 0;
}

/* One step of a template: a special token's ids, or the text itself. */
static int template_step(struct tokenizer *t, const json_t *step, const json_t *tokens, bool *text,
			 struct err *err)
{
	struct ids *ids = *text ? &t->after : &t->before;
	const char *name =
		json_string_value(json_object_get(json_object_get(step, "SpecialToken"), "id"));
	const json_t *list, *value;
	size_t i;

	if (json_object_get(step, "Sequence")) {
		if (*text)
			return err_set(err, -ENOTSUP, "the template takes the text twice");
		*text = true;
		return 0;
	}
	list = name ? json_object_get(json_object_get(tokens, name), "ids") : NULL;
	if (!json_is_array(list))
		return err_set(err, -EBADMSG,
			       "post_processor: the template's token '%.60s' has no ids",
			       name ? name : "");
	json_array_foreach(list, i, value) {
		const json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
		const uint32_t narrow = id;

		if (id < 0 || id >= t->vocab.size || ids->n == TEMPLATE_IDS_MAX)
			return err_set(err, -EBADMSG,
				       "post_processor: id %lld of '%.60s' is not a token",
				       (long long)id, name);
		if (ids_append(ids, &narrow, 1) < 0)
			return -ENOMEM;
	}
	return 0;
}

static int read_processor(struct tokenizer *t, const json_t *json, unsigned int depth,
			  struct err *err)
{
	const json_t *list, *item;
	bool text = false;
	size_t i;
	int r;

	if (is_type(json, "ByteLevel"))
		return 0; /* offsets only */
	if (is_type(json, "Sequence") && depth < 2) {
		list = json_object_get(json, "processors");
		json_array_foreach(list, i, item) {
			r = read_processor(t, item, depth + 1, err);
			if (r < 0)
				return r;
		}
		return 0;
	}
	if (!is_type(json, "TemplateProcessing"))
		return err_set(
			err, -ENOTSUP,
			"post_processor is '%.60s'; ByteLevel and TemplateProcessing are supported",
			type_of(json));
	if (t->before.n || t->after.n)
		return err_set(err, -ENOTSUP, "post_processor has two templates");
	list = json_object_get(json, "single");
	if (!json_is_array(list))
		return err_set(err, -ENOTSUP, "post_processor: 'single' is not a list");
	json_array_foreach(list, i, item) {
		r = template_step(t, item, json_object_get(json, "special_tokens"), &text, err);
		if (r < 0)
			return r;
	}
	return text ? 0
		    : err_set(err, -EBADMSG, "post_processor: the template leaves out the text");
}

static int read_post_processor(struct tokenizer *t, struct span value, struct err *err)
{
	_cleanup_(decrefp) json_t *json = NULL;
	int r;

	r = load(value, "post_processor", &json, err);
	if (r < 0 || !json)
		return r;
	return read_processor(t, json, 0, err);
}

/* One key in the byte alphabet and its id. */
static int add_key(struct tokenizer *t, struct jsonpull *j, struct bytes *raw, struct err *err)
{
	struct span key;
	uint32_t id = 0;
	size_t len;
	long n;
	int r;

	r = jsonpull_key(j, &key);
	if (r < 0)
		return r;
	bytes_clear(raw);
	bytes_append_span(raw, key);
	bytes_append_span(raw, key); /* the copy is translated, unless it is a literal */
	if (raw->failed)
		return -ENOMEM;
	len = key.len;
	r = jsonpull_u32(j, &id);
	if (r < 0)
		return r;
	if (len == 0)
		return err_set(err, -EBADMSG, "token %u is empty", id);
	n = vocab_from_alphabet((struct span){ raw->at, len }, raw->at + len);
	if (n < 0)
		return vocab_add(&t->vocab, id, (struct span){ raw->at, len }, VOCAB_LITERAL, err);
	return vocab_add(&t->vocab, id, (struct span){ raw->at + len, n }, 0, err);
}

static int check_vocab(struct tokenizer *t, struct err *err)
{
	const struct vocab *v = &t->vocab;

	if ((uint64_t)v->size > 4ull * v->n_used + 1024)
		return err_set(err, -EBADMSG, "the largest id is %u, but there are only %u tokens",
			       v->size - 1, v->n_used);
	for (unsigned int i = 0; i < 256; i++) {
		const char byte = i;

		t->bpe.byte_ids[i] = vocab_find(v, (struct span){ &byte, 1 }, 0);
		if (t->bpe.byte_ids[i] == VOCAB_NONE)
			return err_set(err, -EBADMSG, "there is no token for byte 0x%02x", i);
	}
	return 0;
}

static int read_vocab(struct tokenizer *t, struct span value, struct err *err)
{
	_cleanup_(bytes_deinit) struct bytes raw = { 0 };
	struct jsonpull j;
	int r;

	if (!value.data)
		return err_set(err, -EBADMSG, "it is missing");
	jsonpull_init(&j, value);
	r = jsonpull_open(&j, '{');
	for (size_t i = 0; r >= 0; i++) {
		r = jsonpull_more(&j, '}', i);
		if (r <= 0)
			break;
		r = add_key(t, &j, &raw, err);
	}
	r = jsonpull_explain(&j, r, err);
	jsonpull_deinit(&j);
	if (r == 0)
		r = vocab_index(&t->vocab, err);
	return r < 0 ? r : check_vocab(t, err);
}

/* The token that @key names, its bytes appended to @both. */
static int side(const struct tokenizer *t, struct span key, struct bytes *both, uint32_t *ret,
		struct err *err)
{
	const size_t from = both->n;
	long n = 0;

	bytes_append_span(both, key);
	if (both->failed)
		return -ENOMEM;
	if (key.len)
		n = vocab_from_alphabet(key, both->at + from);
	if (n > 0)
		*ret = vocab_find(&t->vocab, (struct span){ both->at + from, n }, 0);
	if (n <= 0 || *ret == VOCAB_NONE)
		return err_set(err, -EBADMSG, "'%.*s' is not in the vocabulary", SHOWN(key));
	both->n = from + n;
	return 0;
}

/* "left right", or ["left", "right"]. */
static int read_pair(const struct tokenizer *t, struct jsonpull *j, struct bytes *both,
		     uint32_t ret[2], struct err *err)
{
	struct span text;
	const char *space;
	int r;

	bytes_clear(both);
	if (jsonpull_peek(j) == '"') {
		r = jsonpull_string(j, &text);
		if (r < 0)
			return r;
		space = text.len ? memchr(text.data, ' ', text.len) : NULL;
		if (!space)
			return err_set(err, -EBADMSG, "'%.*s' is not a pair", SHOWN(text));
		r = side(t, (struct span){ text.data, space - text.data }, both, &ret[0], err);
		if (r < 0)
			return r;
		text.len -= space + 1 - text.data;
		text.data = space + 1;
		return side(t, text, both, &ret[1], err);
	}
	r = jsonpull_open(j, '[');
	for (size_t i = 0; r >= 0; i++) {
		r = jsonpull_more(j, ']', i);
		if (r < 0)
			break;
		if (r != (i < 2))
			return err_set(err, -EBADMSG, "it is not a pair");
		if (r == 0)
			break;
		r = jsonpull_string(j, &text);
		if (r == 0)
			r = side(t, text, both, &ret[i], err);
	}
	return r;
}

static int add_merge(struct tokenizer *t, struct jsonpull *j, struct bytes *both, struct err *err)
{
	uint32_t pair[2], id;
	int r;

	r = read_pair(t, j, both, pair, err);
	if (r < 0)
		return r;
	id = vocab_find(&t->vocab, bytes_span(both), 0);
	if (id == VOCAB_NONE)
		return err_set(err, -EBADMSG, "what it makes is not in the vocabulary");
	return bpe_add(&t->bpe, pair[0], pair[1], id, err);
}

static int read_merges(struct tokenizer *t, struct span value, struct err *err)
{
	_cleanup_(bytes_deinit) struct bytes both = { 0 };
	struct jsonpull j;
	int r;

	if (!value.data)
		return err_set(err, -EBADMSG, "model.merges is missing");
	jsonpull_init(&j, value);
	r = jsonpull_open(&j, '[');
	for (size_t i = 0; r >= 0; i++) {
		r = jsonpull_more(&j, ']', i);
		if (r <= 0)
			break;
		r = add_merge(t, &j, &both, err);
		if (r < 0 && !j.problem)
			r = err_wrap(err, r, "model.merges[%zu]", i);
	}
	r = jsonpull_explain(&j, r, err);
	jsonpull_deinit(&j);
	return r;
}

static int read_model(struct tokenizer *t, struct span model, struct err *err)
{
	struct model_parts p = { 0 };
	const struct member members[] = {
		{ "type", &p.type },
		{ "vocab", &p.vocab },
		{ "merges", &p.merges },
		{ "ignore_merges", &p.ignore_merges },
		{ "dropout", &p.dropout },
		{ "continuing_subword_prefix", &p.prefix },
		{ "end_of_word_suffix", &p.suffix },
	};
	int r;

	if (!model.data)
		return err_set(err, -EBADMSG, "there is no 'model'");
	r = locate(model, members, ARRAY_SIZE(members), err);
	if (r < 0)
		return err_wrap(err, r, "model");
	if (p.type.data && !span_is(p.type, "\"BPE\""))
		return err_set(err, -ENOTSUP, "model.type is %.*s; only \"BPE\" is supported",
			       SHOWN(p.type));
	if (!is_absent(p.dropout))
		return err_set(err, -ENOTSUP, "model.dropout is %.*s; only null is supported",
			       SHOWN(p.dropout));
	if (!(is_absent(p.prefix) || span_is(p.prefix, "\"\"")) ||
	    !(is_absent(p.suffix) || span_is(p.suffix, "\"\"")))
		return err_set(
			err, -ENOTSUP,
			"model.continuing_subword_prefix and end_of_word_suffix must be empty");
	if (!is_absent(p.ignore_merges) && !span_is(p.ignore_merges, "true") &&
	    !span_is(p.ignore_merges, "false"))
		return err_set(err, -EBADMSG,
			       "model.ignore_merges is %.*s; true or false is wanted",
			       SHOWN(p.ignore_merges));
	t->ignore_merges = p.ignore_merges.data && span_is(p.ignore_merges, "true");

	r = read_vocab(t, p.vocab, err);
	if (r < 0)
		return err_wrap(err, r, "model.vocab");
	return read_merges(t, p.merges, err);
}

/* The token of the model that is written like @content, in the byte alphabet or literally. */
static uint32_t find_written(const struct vocab *v, struct span content, char *raw)
{
	const long n = vocab_from_alphabet(content, raw);

	return n < 0 ? vocab_find(v, content, VOCAB_LITERAL)
		     : vocab_find(v, (struct span){ raw, n }, 0);
}

/*
 * The reference numbers added tokens itself: a token of the model keeps its
 * id, the others follow the largest in the order of the file, whose "id" only
 * matters if the model's own ids have holes.
 */
static int give_id(struct tokenizer *t, struct added_token *a, bool dense, struct err *err)
{
	_cleanup_(freep) char *raw = malloc(a->len);
	const struct span content = { a->content, a->len };
	const uint8_t flags = VOCAB_ADDED | (a->special ? VOCAB_SPECIAL : 0);
	uint32_t id;
	long n;

	if (!raw)
		return -ENOMEM;
	id = find_written(&t->vocab, content, raw);
	if (id != VOCAB_NONE) {
		a->id = id;
		t->vocab.tokens[id].flags |= flags;
		return 0;
	}
	if (dense)
		a->id = t->vocab.size;
	else if (a->id >= t->vocab.size + ADDED_MAX)
		return err_set(err, -EBADMSG, "its id is %u, but the model has only %u", a->id,
			       t->vocab.size);
	n = vocab_from_alphabet(content, raw); /* decoding goes through the alphabet where it can */
	return vocab_add(&t->vocab, a->id, n < 0 ? content : (struct span){ raw, n }, flags, err);
}

static int read_added_members(struct jsonpull *j, struct added_token *a)
{
	const struct {
		const char *name;
		bool *flag;
	} flags[] = {
		{ "single_word", &a->single_word }, { "lstrip", &a->lstrip },
		{ "rstrip", &a->rstrip },	    { "normalized", &a->normalized },
		{ "special", &a->special },
	};
	struct span key, value;
	int r;

	r = jsonpull_open(j, '{');
	for (size_t i = 0; r >= 0; i++) {
		bool *flag = NULL;

		r = jsonpull_more(j, '}', i);
		if (r <= 0)
			break;
		r = jsonpull_key(j, &key);
		for (size_t k = 0; r == 0 && k < ARRAY_SIZE(flags); k++)
			if (span_is(key, flags[k].name))
				flag = flags[k].flag;
		if (r < 0)
			break;
		if (flag) {
			r = jsonpull_bool(j, flag);
		} else if (span_is(key, "id")) {
			r = jsonpull_u32(j, &a->id);
		} else if (span_is(key, "content")) {
			r = jsonpull_string(j, &value);
			if (r < 0)
				break;
			free(a->content);
			a->content = malloc(value.len + 1);
			if (!a->content)
				return -ENOMEM;
			if (value.len)
				memcpy(a->content, value.data, value.len);
			a->content[value.len] = '\0';
			a->len = value.len;
		} else {
			r = jsonpull_skip(j, &value);
		}
	}
	return r;
}

static int read_added_token(struct tokenizer *t, struct jsonpull *j, bool dense, struct err *err)
{
	struct added_token *a;
	int r;

	if (t->n_added == ADDED_MAX)
		return err_set(err, -EBADMSG, "there are more than %u", ADDED_MAX);
	if (t->n_added == t->cap_added) {
		const uint32_t cap = MAX(64u, t->cap_added * 2);
		struct added_token *added = realloc(t->added, cap * sizeof(*added));

		if (!added)
			return -ENOMEM;
		t->added = added;
		t->cap_added = cap;
	}
	a = &t->added[t->n_added++];
	*a = (struct added_token){ .id = VOCAB_NONE };
	r = read_added_members(j, a);
	if (r < 0)
		return r;
	if (a->len == 0)
		return err_set(err, -EBADMSG, "its content is empty or missing");
	for (uint32_t i = 0; i + 1 < t->n_added; i++)
		if (t->added[i].len == a->len &&
		    memcmp(t->added[i].content, a->content, a->len) == 0)
			return err_set(err, -EBADMSG, "'%.60s' is there twice", a->content);
	r = give_id(t, a, dense, err);
	if (r < 0)
		return r;
	return added_trie_insert(a->normalized ? &t->normalized : &t->raw,
				 (struct span){ a->content, a->len }, t->n_added - 1);
}

static int read_added(struct tokenizer *t, struct span value, struct err *err)
{
	const bool dense = t->vocab.n_used == t->vocab.size;
	struct jsonpull j;
	int r;

	if (is_absent(value))
		return 0;
	jsonpull_init(&j, value);
	r = jsonpull_open(&j, '[');
	for (size_t i = 0; r >= 0; i++) {
		r = jsonpull_more(&j, ']', i);
		if (r <= 0)
			break;
		r = read_added_token(t, &j, dense, err);
		if (r < 0 && !j.problem)
			r = err_wrap(err, r, "added_tokens[%zu]", i);
	}
	r = jsonpull_explain(&j, r, err);
	jsonpull_deinit(&j);
	return r;
}

int tokenizer_parse(const char *text, size_t len, struct tokenizer **ret, struct err *err)
{
	_cleanup_(tokenizer_freep) struct tokenizer *t = NULL;
	struct sections s = { 0 };
	const struct member members[] = {
		{ "version", &s.version },
		{ "added_tokens", &s.added_tokens },
		{ "normalizer", &s.normalizer },
		{ "pre_tokenizer", &s.pre_tokenizer },
		{ "post_processor", &s.post_processor },
		{ "decoder", &s.decoder },
		{ "model", &s.model },
	};
	int r;

	if (len > TOKENIZER_FILE_MAX)
		return err_set(err, -EBADMSG, "it has %zu bytes; at most %u are read", len,
			       TOKENIZER_FILE_MAX);
	r = locate((struct span){ text, len }, members, ARRAY_SIZE(members), err);
	if (r < 0)
		return r;
	if (s.version.data && !span_is(s.version, "\"1.0\""))
		return err_set(err, -ENOTSUP, "version is %.*s; only \"1.0\" is supported",
			       SHOWN(s.version));
	t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	t->classes = unicode_classes();

	r = check_normalizer(s.normalizer, err);
	if (r == 0)
		r = check_pre_tokenizer(s.pre_tokenizer, err);
	if (r == 0)
		r = check_decoder(s.decoder, err);
	if (r == 0)
		r = read_model(t, s.model, err);
	if (r == 0)
		r = read_added(t, s.added_tokens, err);
	if (r == 0)
		r = read_post_processor(t, s.post_processor, err);
	if (r < 0)
		return r;
	*ret = steal(t);
	return 0;
}

int tokenizer_open(const char *path, struct tokenizer **ret, struct err *err)
{
	_cleanup_(freep) char *text = NULL;
	_cleanup_(closep) int fd = -1;
	struct stat st;
	size_t n = 0;
	int r;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return err_wrap(err, -errno, "cannot open '%s'", path);
	if (!S_ISREG(st.st_mode) || st.st_size > TOKENIZER_FILE_MAX)
		return err_set(err, -EBADMSG, "'%s' is not a file of at most %u bytes", path,
			       TOKENIZER_FILE_MAX);
	text = malloc(st.st_size + 1);
	if (!text)
		return -ENOMEM;
	while (n < (size_t)st.st_size) {
		const ssize_t got = pread(fd, text + n, st.st_size - n, n);

		if (got < 0)
			return err_wrap(err, -errno, "cannot read '%s'", path);
		if (got == 0)
			break;
		n += got;
	}
	r = tokenizer_parse(text, n, ret, err);
	return r < 0 ? err_wrap(err, r, "%s", path) : 0;
}
