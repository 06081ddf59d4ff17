/*
 * Any bytes as the file of a session with KV, on their way in pieces into a
 * real server: they end in a sentence or in a session, and what is carried into
 * the cache holds numbers alone.
 */
#include "tests/unit/server-client.h"

#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "client/wire/control.h"
#include "client/wire/ownership.h"
#include "daemon/session/export.h"

#define EXECUTOR "STEAMD_FUZZ_EXECUTOR"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[] = "/tmp/steamd-fuzz-XXXXXX";
static struct world *world;
static struct client client;
static uint64_t last_id;

/* This program as the executor: it is ready at once, and computes nothing. */
__attribute__((constructor)) static void be_executor(void)
{
	static char bytes[1 << 16];
	const struct control_ready ready = { .kind = CONTROL_READY, .isa = "fuzz" };
	bool told = false;

	if (!getenv(EXECUTOR))
		return;
	while (recv(CONTROL_FD, bytes, sizeof(bytes), 0) > 0) {
		if (!told && send(CONTROL_FD, &ready, sizeof(ready), 0) != sizeof(ready))
			_exit(1);
		told = true;
	}
	_exit(0);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	(void)st, (void)kind, (void)ftw;
	return remove(path);
}

static void leave(void)
{
	close_client(&client);
	world_free(world);
	nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void open_server(void)
{
	const struct server_options options = { .program = "/proc/self/exe", .state_dir = folder };
	const char *src = getenv("srcdir");
	char model[512];
	const char *const set[] = { model, "KVCacheSize=1M", "PageTokens=8", "DiskCache=no", NULL };

	snprintf(model, sizeof(model), "Model=%s/tests/golden/air", src ? src : ".");
	setenv(EXECUTOR, "1", 1);
	if (!mkdtemp(folder))
		abort();
	world = world_of(options, set);
	atexit(leave);
	if (server_load(world->server, NULL) < 0)
		abort();
	while (!world->server->engine || !executor_known(world->server->engine->executor))
		if (sd_event_run(world->loop, 10000000) <= 0)
			abort();
	connect_client(world, &client);
	say_hello(world, &client);
}

/* In pieces, so that any of them may be the last; an empty one says that there is no more. */
static void send_wanted(uint64_t id, size_t wanted, struct span *file)
{
	struct msg piece = { .type = MSG_SESSION_DATA, .id = id };
	size_t n;

	for (; wanted > 0; wanted -= n) {
		n = MIN(MIN(wanted, file->len), (size_t)4099);
		MSG_SET(&piece.session_data, data, ((struct span){ file->data, n }));
		send_msg(&client, &piece);
		settle(world);
		file->data += n;
		file->len -= n;
		if (n == 0)
			return;
	}
}

/* Sends @m, and of @file what is wanted, until it ends. Returns whether it did well. */
static bool ask(struct msg *m, struct span file)
{
	m->id = ++last_id;
	send_msg(&client, m);
	for (;;) {
		await(world, &client);
		if (client.got.type == MSG_SESSION_WANT)
			send_wanted(m->id, client.got.session_want.bytes, &file);
		else if (client.got.type == MSG_DONE)
			return true;
		else if (client.got.type != MSG_ERROR || client.got.error.text.len == 0)
			abort();
		else
			return false;
	}
}

static void import(struct span file)
{
	struct msg m = { .type = MSG_SESSION_IMPORT }, rm = { .type = MSG_SESSION_RM };

	MSG_SET(&m.session_import, pieces, true);
	MSG_SET(&m.session_import, name, SPAN("it"));
	if (!ask(&m, file))
		return;
	MSG_SET(&rm.session_rm, session, SPAN("it"));
	if (!ask(&rm, (struct span){ 0 }))
		abort();
	kvcache_check(world->server->engine->kv);
	kvcache_yield(world->server->engine->kv,
		      UINT64_MAX); /* so that the next one brings its own */
}

/* Makes the sums right as far as the lengths allow, those of pages too, so that what they guard is reached. */
static void mend(uint8_t *data, size_t size)
{
	const uint64_t page_bytes = world->server->engine->plan.page_bytes;
	struct export_head head;
	struct export_section section;
	size_t at = sizeof(head);

	if (size < sizeof(head))
		return;
	memcpy(&head, data, sizeof(head));
	head.sum = XXH3_64bits(&head, 16);
	memcpy(data, &head, sizeof(head));
	for (; size - at >= sizeof(section); at += sizeof(section) + section.bytes) {
		uint8_t *payload = data + at + sizeof(section);

		memcpy(&section, data + at, sizeof(section));
		if (section.bytes > size - at - sizeof(section))
			return;
		if (section.kind == EXPORT_KVPG && section.bytes > page_bytes) {
			const XXH128_hash_t sum = XXH3_128bits(payload + section.bytes - page_bytes,
							       page_bytes);

			memcpy(payload + offsetof(struct export_page, sum), &sum, sizeof(sum));
		}
		section.sum = export_section_sum(&section,
						 (struct span){ (char *)payload, section.bytes },
						 (struct span){ 0 });
		memcpy(data + at, &section, sizeof(section));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_(freep) uint8_t *copy = malloc(size + 1);

	if (!copy)
		abort();
	if (!world)
		open_server();
	import((struct span){ (const char *)data, size });
	memcpy(copy, data, size);
	mend(copy, size);
	import((struct span){ (const char *)copy, size });
	return 0;
}
