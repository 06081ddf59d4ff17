/* The file of keys, and looking one up without telling by time how much was right. */
#include "client/gateway/keys.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "client/wire/utf8.h"

struct key {
	char label[64];		       /* as a hello takes it */
	uint8_t bytes[KEYS_BYTES_MAX]; /* the rest is 0 */
};

struct keys {
	size_t n;
	struct key at[];
};

struct keys *keys_free(struct keys *k)
{
	if (k)
		explicit_bzero(k, sizeof(*k) + k->n * sizeof(*k->at));
	free(k);
	return NULL;
}

static void keys_freep(struct keys **k)
{
	*k = keys_free(*k);
}

/* steamd shows it as it is: two that look alike there would be one. */
static bool is_printable(const char *label)
{
	const struct span s = span_of(label);

	if (utf8_valid_bytes(s) < s.len)
		return false;
	for (size_t i = 0; i < s.len; i++)
		if (utf8_control(s.data + i, s.len - i) > 0)
			return false;
	return true;
}

/* Cuts @line in two. */
static int read_key(char *line, struct key *ret, struct err *err)
{
	char *key = strpbrk(line, " \t");
	size_t n;

	if (!key)
		return err_set(err, -EBADMSG, "a line 'LABEL KEY' is wanted");
	*key++ = '\0';
	key += strspn(key, " \t");
	n = strlen(key);
	while (n > 0 && (key[n - 1] == ' ' || key[n - 1] == '\t'))
		key[--n] = '\0';
	if (strlen(line) >= sizeof(ret->label))
		return err_set(err, -EBADMSG, "the label has more than %zu bytes",
			       sizeof(ret->label) - 1);
	if (!is_printable(line))
		return err_set(err, -EBADMSG, "the label has bytes that are no text");
	if (n < KEYS_BYTES_MIN || n > KEYS_BYTES_MAX || strpbrk(key, " \t"))
		return err_set(err, -EBADMSG,
			       "the key of label '%s' has %zu bytes; %d to %d without spaces are "
			       "wanted",
			       line, n, KEYS_BYTES_MIN, KEYS_BYTES_MAX);
	memset(ret, 0, sizeof(*ret));
	memcpy(ret->label, line, strlen(line) + 1);
	memcpy(ret->bytes, key, n);
	return 0;
}

/* Of one key that two labels have, nobody could say whose it is. */
static int check_new(const struct keys *k, struct err *err)
{
	const struct key *last = &k->at[k->n];

	for (size_t i = 0; i < k->n; i++)
		if (memcmp(k->at[i].bytes, last->bytes, sizeof(last->bytes)) == 0)
			return err_set(err, -EBADMSG,
				       "the key of label '%s' is that of label '%s', too",
				       last->label, k->at[i].label);
	return 0;
}

int keys_read(const char *path, struct keys **ret, struct err *err)
{
	_cleanup_(keys_freep) struct keys *k = NULL;
	_cleanup_(fclosep) FILE *f = fopen(path, "re");
	_cleanup_(freep) char *line = NULL;
	size_t size = 0;
	ssize_t len;

	if (!f)
		return err_set(err, -errno, "cannot open the keys in '%s': %s", path,
			       strerror(errno));
	k = calloc(1, sizeof(*k) + KEYS_MAX * sizeof(*k->at));
	if (!k)
		return err_set(err, -ENOMEM, "out of memory");
	for (unsigned n = 1; (len = getline(&line, &size, f)) >= 0; n++) {
		char *at = line + strspn(line, " \t");
		int r;

		if (strlen(line) < (size_t)len)
			return err_set(err, -EBADMSG, "'%s' line %u: it holds a NUL", path, n);
		at[strcspn(at, "\r\n")] = '\0';
		if (*at == '\0' || *at == '#')
			continue;
		if (k->n == KEYS_MAX)
			return err_set(err, -EBADMSG, "'%s' has more than %d keys", path, KEYS_MAX);
		r = read_key(at, &k->at[k->n], err);
		if (r == 0)
			r = check_new(k, err);
		if (r < 0)
			return err_wrap(err, r, "'%s' line %u", path, n);
		k->n++;
	}
	if (line)
		explicit_bzero(line, size);
	if (ferror(f))
		return err_set(err, -errno, "cannot read the keys in '%s': %s", path,
			       strerror(errno));
	if (k->n == 0)
		return err_set(err, -EBADMSG, "'%s' holds no key", path);
	*ret = steal(k);
	return 0;
}

const char *keys_label(const struct keys *k, const char *key)
{
	uint8_t given[KEYS_BYTES_MAX] = { 0 };
	const char *found = NULL;
	const size_t n = strlen(key);

	if (n > sizeof(given))
		return NULL;
	memcpy(given, key, n);
	for (size_t i = 0; i < k->n; i++) {
		volatile uint8_t differs = 0;

		for (size_t b = 0; b < sizeof(given); b++)
			differs = differs | (given[b] ^ k->at[i].bytes[b]);
		if (!differs)
			found = k->at[i].label;
	}
	return found;
}
