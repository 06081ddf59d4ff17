/* The memory of running turns: layout, the order of writes, and what is believed of it later. */
#include "daemon/session/turns.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "client/wire/ownership.h"
#include "client/wire/sealed.h"

#define MEMORY_PAGE 4096ull
#define CONTEXT_MAX (1u << 24)
#define PAGES_MAX (1u << 22)
#define BOOT_ID_BYTES 40

struct turns_shared {
	uint64_t magic;
	uint32_t version, n_records;
	uint32_t max_context, max_pages;
	uint64_t record_bytes;
	char boot_id[BOOT_ID_BYTES];
};
_Static_assert(sizeof(struct turns_shared) == 72, "the layout outlives its writer");
_Static_assert(offsetof(struct turn_record, id) == 8, "the layout outlives its writer");

/* Where a record's arrays begin, counted from the record, and where the next one is. */
struct layout {
	uint64_t ids, pages, logprobs, top_ids, top_logprobs, conversation, bytes;
};

struct turns {
	int memfd;
	struct turns_shared *shared;
	uint64_t bytes;
	uint32_t max_context, max_pages;
	struct layout at;
};

static const char *const finish_names[FINISH_N] = {
	[FINISH_NONE] = "none",		[FINISH_STOP] = "stop",
	[FINISH_STOP_STRING] = "stop",	[FINISH_LENGTH] = "length",
	[FINISH_DEADLINE] = "deadline", [FINISH_CANCELLED] = "cancelled",
	[FINISH_FAULT] = "fault",	[FINISH_SCORED] = "scored",
};

const char *turn_finish_name(enum turn_finish finish)
{
	return finish < FINISH_N ? finish_names[finish] : "none";
}

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

static void lay_out(struct turns *t)
{
	const uint64_t rows = (uint64_t)t->max_context + 1;

	t->at.ids = round_up(sizeof(struct turn_record), MEMORY_PAGE);
	t->at.pages = t->at.ids + rows * sizeof(uint32_t);
	t->at.logprobs = t->at.pages + (uint64_t)t->max_pages * sizeof(uint32_t);
	t->at.top_ids = t->at.logprobs + rows * sizeof(float);
	t->at.top_logprobs = t->at.top_ids + rows * STEP_TOP_MAX * sizeof(uint32_t);
	t->at.conversation = t->at.top_logprobs + rows * STEP_TOP_MAX * sizeof(float);
	t->at.bytes = round_up(t->at.conversation + TURN_CONVERSATION_BYTES, MEMORY_PAGE);
	t->bytes = MEMORY_PAGE + TURNS_MAX * t->at.bytes;
}

/* The service's ProcSubset=pid hides it; then it is zeros, and that a memfd ends with its boot has to do. */
static int read_boot_id(char ret[BOOT_ID_BYTES])
{
	_cleanup_(closep) int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n;

	memset(ret, 0, BOOT_ID_BYTES);
	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	n = read(fd, ret, BOOT_ID_BYTES - 1);
	return n < 0 ? -errno : 0;
}

static int map(struct turns *t, struct err *err)
{
	void *at = mmap(NULL, t->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
			t->memfd, 0);

	if (at == MAP_FAILED)
		return err_wrap(err, -errno, "cannot map %llu bytes for turns",
				(unsigned long long)t->bytes);
	t->shared = at;
	return 0;
}

static struct turns *turns_alloc(int memfd)
{
	struct turns *t = calloc(1, sizeof(*t));

	if (t)
		t->memfd = memfd;
	return t;
}

int turns_new(uint32_t max_context, uint32_t max_pages, struct turns **ret, struct err *err)
{
	_cleanup_(turns_freep) struct turns *t = turns_alloc(-1);
	char boot_id[BOOT_ID_BYTES];
	int r;

	if (!t)
		return err_set(err, -ENOMEM, "out of memory");
	if (max_context == 0 || max_context > CONTEXT_MAX || max_pages == 0 ||
	    max_pages > PAGES_MAX)
		return err_set(err, -EINVAL, "turns of %u tokens and %u pages; at most %u and %u",
			       max_context, max_pages, CONTEXT_MAX, PAGES_MAX);
	r = read_boot_id(boot_id);
	if (r < 0)
		return err_wrap(err, r, "cannot read the boot id");

	t->max_context = max_context;
	t->max_pages = max_pages;
	lay_out(t);
	t->memfd = sealed_memfd("steamd-turns", t->bytes);
	if (t->memfd < 0)
		return err_wrap(err, t->memfd, "cannot make %llu bytes for turns",
				(unsigned long long)t->bytes);
	r = map(t, err);
	if (r < 0)
		return r;

	t->shared->version = TURNS_VERSION;
	t->shared->n_records = TURNS_MAX;
	t->shared->max_context = max_context;
	t->shared->max_pages = max_pages;
	t->shared->record_bytes = t->at.bytes;
	memcpy(t->shared->boot_id, boot_id, sizeof(boot_id));
	atomic_thread_fence(memory_order_release);
	t->shared->magic = TURNS_MAGIC;
	*ret = steal(t);
	return 0;
}

static struct turn_record *record_at(const struct turns *t, uint32_t i)
{
	return (struct turn_record *)((char *)t->shared + MEMORY_PAGE + i * t->at.bytes);
}

static uint32_t state_of(const struct turn_record *rec)
{
	return atomic_load_explicit(&rec->state, memory_order_acquire);
}

static bool is_terminated(const char *s, size_t size)
{
	return strnlen(s, size) < size;
}

static bool stops_hold(const struct turn_record *rec)
{
	uint32_t n = 0;

	if (rec->stops_len > TURN_STOP_BYTES)
		return false;
	for (uint32_t i = 0; i < rec->stops_len; i++)
		n += rec->stops[i] == '\0';
	return n == rec->n_stops && (rec->stops_len == 0 || !rec->stops[rec->stops_len - 1]);
}

/* Whether every number that is used as an index or a count is within its bounds. */
static bool record_holds(const struct turns *t, const struct turn_record *rec)
{
	return rec->id != 0 && rec->finish < FINISH_N && rec->n_prompt > 0 &&
	       rec->n_prompt <= t->max_context && rec->n_ids >= rec->n_prompt &&
	       rec->n_ids <= t->max_context + 1 && rec->n_kv <= rec->n_ids &&
	       rec->n_scored <= rec->n_prompt && rec->n_pages <= t->max_pages &&
	       (rec->slot < STEP_ROWS_MAX || rec->slot == TURN_NO_SLOT) &&
	       rec->n_top <= STEP_TOP_MAX && rec->n_bias <= STEP_BIAS_MAX &&
	       rec->sampler.n_stop_ids <= STEP_STOP_IDS_MAX && stops_hold(rec) &&
	       rec->conversation_len <= TURN_CONVERSATION_BYTES && rec->miss.n_ids <= KV_MISS_IDS &&
	       rec->miss.at <= rec->n_ids && is_terminated(rec->label, sizeof(rec->label)) &&
	       is_terminated(rec->client, sizeof(rec->client));
}

static void restore_mark(struct turn_record *rec)
{
	const struct turn_mark *mark = &rec->marks[atomic_load(&rec->mark) & 1];

	rec->n_ids = mark->n_ids;
	rec->n_kv = mark->n_kv;
	rec->n_scored = mark->n_scored;
	rec->sampled = mark->sampled;
	rec->last_step = mark->last_step;
}

static void free_record(struct turn_record *rec)
{
	atomic_store_explicit(&rec->state, TURN_FREE, memory_order_release);
}

static void adopt_records(struct turns *t)
{
	for (uint32_t i = 0; i < TURNS_MAX; i++) {
		struct turn_record *rec = record_at(t, i);
		const uint32_t state = state_of(rec);

		if (state == TURN_FREE)
			continue;
		if (state != TURN_QUEUED && state != TURN_RUNNING && state != TURN_ENDED) {
			free_record(rec);
			continue;
		}
		restore_mark(rec);
		/* what a queued turn still says of slot and pages is from before it was put back */
		if (state == TURN_QUEUED) {
			rec->slot = TURN_NO_SLOT;
			rec->n_pages = 0;
		}
		if (!record_holds(t, rec) || turns_find(t, rec->id) != rec)
			free_record(rec);
	}
}

int turns_adopt(int memfd, struct turns **ret, struct err *err)
{
	_cleanup_(turns_freep) struct turns *t = turns_alloc(-1);
	struct turns_shared head;
	char boot_id[BOOT_ID_BYTES];
	struct stat st;
	ssize_t n;
	int r;

	if (!t)
		return err_set(err, -ENOMEM, "out of memory");
	r = read_boot_id(boot_id);
	if (r < 0)
		return err_wrap(err, r, "cannot read the boot id");
	n = sealed_head(memfd, &head, sizeof(head), &st);
	if (n < 0)
		return err_wrap(err, (int)n, "cannot read the turns' memory");
	if (n != (ssize_t)sizeof(head))
		return err_set(err, -EBADMSG, "the turns' memory ends in its head");
	if (head.magic != TURNS_MAGIC || head.version != TURNS_VERSION ||
	    head.n_records != TURNS_MAX)
		return err_set(err, -EBADMSG, "the turns' memory is not of this version of steamd");
	if (memcmp(head.boot_id, boot_id, sizeof(boot_id)) != 0)
		return err_set(err, -EBADMSG, "the turns' memory is from another boot");
	if (head.max_context == 0 || head.max_context > CONTEXT_MAX || head.max_pages == 0 ||
	    head.max_pages > PAGES_MAX)
		return err_set(err, -EBADMSG, "the turns' memory is for %u tokens and %u pages",
			       head.max_context, head.max_pages);
	t->max_context = head.max_context;
	t->max_pages = head.max_pages;
	lay_out(t);
	if (head.record_bytes != t->at.bytes || (uint64_t)st.st_size != t->bytes)
		return err_set(err, -EBADMSG, "the turns' memory has %lld bytes; %llu are wanted",
			       (long long)st.st_size, (unsigned long long)t->bytes);
	if (!sealed_is(memfd))
		return err_set(err, -EBADMSG, "the turns' memory is not sealed against resizing");

	t->memfd = memfd;
	r = map(t, err);
	if (r < 0) {
		t->memfd = -1; /* still the caller's */
		return r;
	}
	adopt_records(t);
	*ret = steal(t);
	return 0;
}

struct turns *turns_free(struct turns *t)
{
	if (!t)
		return NULL;
	if (t->shared)
		munmap(t->shared, t->bytes);
	closep(&t->memfd);
	free(t);
	return NULL;
}

int turns_fd(const struct turns *t)
{
	return t->memfd;
}

uint32_t turns_max_context(const struct turns *t)
{
	return t->max_context;
}

uint32_t turns_max_pages(const struct turns *t)
{
	return t->max_pages;
}

static uint64_t new_id(struct turns *t)
{
	uint64_t id = 0;

	do {
		if (getrandom(&id, sizeof(id), 0) != (ssize_t)sizeof(id))
			return 0;
	} while (id == 0 || turns_find(t, id));
	return id;
}

struct turn_record *turns_take(struct turns *t)
{
	for (uint32_t i = 0; i < TURNS_MAX; i++) {
		struct turn_record *rec = record_at(t, i);
		uint64_t id;

		if (state_of(rec) != TURN_FREE)
			continue;
		id = new_id(t);
		if (id == 0)
			return NULL;
		memset(rec, 0, sizeof(*rec));
		rec->id = id;
		rec->slot = TURN_NO_SLOT;
		rec->stop_id = UINT32_MAX;
		atomic_store_explicit(&rec->state, TURN_OPEN, memory_order_release);
		return rec;
	}
	return NULL;
}

void turns_drop(struct turns *t, struct turn_record *rec)
{
	const uint64_t at = (uint64_t)((char *)rec - (char *)t->shared);

	free_record(rec);
	/* prompts and answers leave the memory; should the kernel refuse, they are overwritten later */
	(void)!fallocate(t->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			 (off_t)(at + t->at.ids), (off_t)(t->at.bytes - t->at.ids));
}

struct turn_record *turns_find(struct turns *t, uint64_t id)
{
	for (uint32_t i = 0; i < TURNS_MAX; i++) {
		struct turn_record *rec = record_at(t, i);

		if (state_of(rec) != TURN_FREE && rec->id == id)
			return rec;
	}
	return NULL;
}

struct turn_record *turns_next(struct turns *t, struct turn_record *after)
{
	uint32_t i = 0;

	if (after)
		i = (uint32_t)(((uint64_t)((char *)after - (char *)t->shared) - MEMORY_PAGE) /
			       t->at.bytes) +
		    1;
	for (; i < TURNS_MAX; i++) {
		struct turn_record *rec = record_at(t, i);

		if (state_of(rec) != TURN_FREE)
			return rec;
	}
	return NULL;
}

uint32_t *turn_ids(struct turns *t, struct turn_record *rec)
{
	return (uint32_t *)((char *)rec + t->at.ids);
}

uint32_t *turn_page_table(struct turns *t, struct turn_record *rec)
{
	return (uint32_t *)((char *)rec + t->at.pages);
}

float *turn_logprobs(struct turns *t, struct turn_record *rec)
{
	return (float *)((char *)rec + t->at.logprobs);
}

uint32_t *turn_top_ids(struct turns *t, struct turn_record *rec)
{
	return (uint32_t *)((char *)rec + t->at.top_ids);
}

float *turn_top_logprobs(struct turns *t, struct turn_record *rec)
{
	return (float *)((char *)rec + t->at.top_logprobs);
}

char *turn_conversation(struct turns *t, struct turn_record *rec)
{
	return (char *)rec + t->at.conversation;
}

/* The mark not in force is filled, then put in force by one store; the copies follow. */
static void publish(struct turn_record *rec, const struct turn_mark *mark)
{
	const uint32_t next = !(atomic_load_explicit(&rec->mark, memory_order_relaxed) & 1);

	rec->marks[next] = *mark;
	atomic_store_explicit(&rec->mark, next, memory_order_release);
	restore_mark(rec);
}

void turn_restart(struct turn_record *rec)
{
	publish(rec, &(struct turn_mark){
			     .last_step = rec->last_step,
			     .n_ids = rec->n_ids,
			     .n_kv = rec->n_kv,
			     .n_scored = rec->n_scored,
		     });
}

void turn_append(struct turns *t, struct turn_record *rec, uint32_t id, uint64_t step_id)
{
	turn_ids(t, rec)[rec->n_ids] = id;
	publish(rec, &(struct turn_mark){
			     .last_step = step_id,
			     .n_ids = rec->n_ids + 1,
			     .n_kv = rec->n_ids, /* the sampled one's is computed when it is fed */
			     .n_scored = rec->n_scored,
			     .sampled = 1,
		     });
}

void turn_advance(struct turn_record *rec, uint32_t n_kv, uint32_t n_scored, uint64_t step_id)
{
	publish(rec, &(struct turn_mark){
			     .last_step = step_id,
			     .n_ids = rec->n_ids,
			     .n_kv = n_kv,
			     .n_scored = n_scored,
		     });
}
