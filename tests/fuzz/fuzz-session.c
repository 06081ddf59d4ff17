/* Any bytes as an exported session: refused with a sentence, or a session that can be shown and gone on with. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "client/wire/ownership.h"
#include "daemon/session/export.h"
#include "daemon/session/store.h"

#define VOCAB 7
#define VOCAB_SIZE 100

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[] = "/tmp/steamd-fuzz-XXXXXX", path[64];
static struct store *store;

static void leave(void)
{
	store = store_free(store);
	unlink(path);
	rmdir(folder);
}

static void open_store(void)
{
	struct err err = { 0 };

	if (!mkdtemp(folder))
		abort();
	snprintf(path, sizeof(path), "%s/state.db", folder);
	if (store_open(path, NULL, &store, &err) < 0)
		abort();
	atexit(leave);
}

static void import(struct span file)
{
	static const struct store_who who = { 1, "" };
	static const struct span request = SPAN("{\"messages\": [{\"role\": \"user\"}]}");
	struct store_begun b = { 0 };
	struct bytes out = { 0 };
	struct err err = { 0 };
	const int r = store_import(store, &who, file, SPAN("it"), VOCAB, VOCAB_SIZE,
				   &(struct store_limits){ .max_sessions = 1 }, &out, &err);

	bytes_deinit(&out);
	if (r < 0 && !err.text[0])
		abort();
	if (r < 0)
		return;
	if (store_show(store, &who, SPAN("it"), &out, &err) < 0 ||
	    store_begin(store, &who, SPAN("it"), false, &(struct store_limits){ .max_sessions = 1 },
			request, VOCAB, &b, &err) < 0)
		abort();
	for (size_t i = 0; i < b.n_ids; i++)
		if (b.ids[i] >= VOCAB_SIZE)
			abort();
	if (store_abort(store, b.session, b.turn, &err) < 0)
		abort();
	store_begun_deinit(&b);
	bytes_deinit(&out);
	if (store_rm(store, &who, SPAN("it"), &out, &err) < 0)
		abort();
	bytes_deinit(&out);
}

/* Makes the sums right as far as the lengths allow, so that what they guard is reached. */
static void mend(uint8_t *data, size_t size)
{
	struct export_head head;
	struct export_section section;
	size_t at = sizeof(head);

	if (size < sizeof(head))
		return;
	memcpy(&head, data, sizeof(head));
	head.sum = XXH3_64bits(&head, 16);
	memcpy(data, &head, sizeof(head));
	while (size - at >= sizeof(section)) {
		uint8_t *summed;

		memcpy(&section, data + at, sizeof(section));
		if (section.bytes > size - at - sizeof(section))
			return;
		summed = malloc(16 + section.bytes);
		if (!summed)
			abort();
		memcpy(summed, &section, 16);
		memcpy(summed + 16, data + at + sizeof(section), section.bytes);
		section.sum = XXH3_64bits(summed, 16 + section.bytes);
		free(summed);
		memcpy(data + at, &section, sizeof(section));
		at += sizeof(section) + section.bytes;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *copy = malloc(size + 1);

	if (!copy)
		abort();
	if (!store)
		open_store();
	import((struct span){ (const char *)data, size });
	memcpy(copy, data, size);
	mend(copy, size);
	import((struct span){ (const char *)copy, size });
	free(copy);
	return 0;
}
