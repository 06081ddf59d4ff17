/* The file of keys, and looking one up without telling by time how much was right. */
#include "client/gateway/keys.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

struct key {
	char label[64]; /* as a hello takes it */
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

int keys_read(const char *path, struct keys **ret, struct err *err)
{
	_cleanup_(keys_freep) struct keys *k = NULL;
	_cleanup_(fclosep) FILE *f = fopen(path, "re");
	char line[1024];

	if (!f)
		return err_set(err, -errno, "cannot open the keys in '%s': %s", path,
			       strerror(errno));
	k = calloc(1, sizeof(*k) + KEYS_MAX * sizeof(*k->at));
	if (!k)
		return err_set(err, -ENOMEM, "out of memory");
	for (unsigned n = 1; fgets(line, sizeof(line), f); n++) {
		char *at = line + strspn(line, " \t");
		int r;

		at[strcspn(at, "\r\n")] = '\0';
		if (*at == '\0' || *at == '#')
			continue;
		if (k->n == KEYS_MAX)
			return err_set(err, -EBADMSG, "'%s' has more than %d keys", path, KEYS_MAX);
		r = read_key(at, &k->at[k->n], err);
		if (r < 0)
			return err_wrap(err, r, "'%s' line %u", path, n);
		k->n++;
	}
	explicit_bzero(line, sizeof(line));
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
