/* Reading traces, and putting allocators through them. */
#include "tests/bench/replay.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *grown(void *array, uint32_t n, size_t size)
{
	/* doubled whenever n is a power of two */
	if (n & (n - 1))
		return array;
	array = realloc(array, (n ? 2 * (size_t)n : 1) * size);
	if (!array)
		abort();
	return array;
}

static void bad(const char *path, const char *line)
{
	fprintf(stderr, "%s: no line of a trace: %s\n", path, line);
	exit(2);
}

static void add_event(struct trace *t, bool comes, uint32_t object)
{
	t->events = grown(t->events, t->n_events, sizeof(*t->events));
	t->events[t->n_events++] = (struct event){ comes, object };
}

static bool read_kind(struct trace *t, const char *line)
{
	struct kind k = { .most = 1 };
	unsigned long long bytes;
	uint32_t index;

	if (sscanf(line, "kind %u %c %u %*s %llu %u", &index, &k.class, &k.owner, &bytes, &k.most) <
		    4 ||
	    index != t->n_kinds || k.owner >= OWNERS_MAX || !strchr("wktl", k.class))
		return false;
	k.bytes = bytes;
	t->kinds = grown(t->kinds, t->n_kinds, sizeof(*t->kinds));
	t->kinds[t->n_kinds++] = k;
	return true;
}

static bool read_coming(struct trace *t, const char *line)
{
	uint32_t times = 1, count = 1;
	char *end;
	const unsigned long kind = strtoul(line + 1, &end, 10);

	if (*end == '*')
		times = strtoul(end + 1, &end, 10);
	if (*end == 'x')
		count = strtoul(end + 1, &end, 10);
	if (*end != '\n' || kind >= t->n_kinds || times == 0)
		return false;
	if (t->kinds[kind].class == 't' && times > t->kinds[kind].most)
		return false;
	for (uint32_t i = 0; i < count; i++) {
		t->objects = grown(t->objects, t->n_objects, sizeof(*t->objects));
		t->objects[t->n_objects] = (struct object){ kind, t->kinds[kind].bytes * times };
		add_event(t, true, t->n_objects++);
	}
	return true;
}

static bool read_going(struct trace *t, const char *line)
{
	char *end;
	const unsigned long first = strtoul(line + 1, &end, 10);
	const unsigned long last = *end == '-' ? strtoul(end + 1, &end, 10) : first;

	if (*end != '\n' || last >= t->n_objects || last < first)
		return false;
	for (unsigned long i = first; i <= last; i++)
		add_event(t, false, i);
	return true;
}

struct trace *trace_read(const char *path)
{
	struct trace *t = calloc(1, sizeof(*t));
	FILE *f = fopen(path, "re");
	uint64_t live = 0;
	char line[256];

	if (!f || !t || !fgets(line, sizeof(line), f) || sscanf(line, "trace %31s", t->name) != 1)
		bad(path, "its first");
	while (fgets(line, sizeof(line), f)) {
		const bool good = line[0] == '+'   ? read_coming(t, line)
				  : line[0] == '-' ? read_going(t, line)
						   : read_kind(t, line);

		if (!good)
			bad(path, line);
	}
	fclose(f);
	for (uint32_t i = 0; i < t->n_events; i++) {
		const uint64_t bytes = t->objects[t->events[i].object].bytes;

		live = t->events[i].comes ? live + bytes : live - bytes;
		t->peak_live_bytes = live > t->peak_live_bytes ? live : t->peak_live_bytes;
	}
	return t;
}

struct trace *trace_free(struct trace *t)
{
	free(t->kinds);
	free(t->objects);
	free(t->events);
	free(t);
	return NULL;
}

void replay(const struct rival *rival, const struct trace *t, uint64_t limit_bytes,
	    struct outcome *ret)
{
	struct outcome o = { .fits = true };
	void *r = rival->open(t, limit_bytes);
	uint64_t leased = 0;

	for (uint32_t i = 0; i < t->n_events && o.fits; i++) {
		const struct event *e = &t->events[i];
		const struct object *x = &t->objects[e->object];
		struct rival_figures f;

		if (t->kinds[x->kind].class == 'l') {
			leased = e->comes ? leased + x->bytes : leased - x->bytes;
			o.fits = rival->lease(r, leased) == 0;
		} else if (e->comes) {
			o.fits = rival->add(r, e->object) == 0;
		} else {
			rival->drop(r, e->object);
		}
		o.object = e->object;
		if (!e->comes || !o.fits)
			continue;
		rival->figures(r, &f);
		if (f.reserved_bytes + leased > o.peak_reserved_bytes)
			o.peak_reserved_bytes = f.reserved_bytes + leased;
		if (f.allocated_bytes + leased > o.peak_allocated_bytes)
			o.peak_allocated_bytes = f.allocated_bytes + leased;
	}
	rival->figures(r, &o.end);
	rival->close(r);
	*ret = o;
}

uint64_t replay_needs(const struct rival *rival, const struct trace *t)
{
	const uint64_t step = t->peak_live_bytes / 1000 + 1;
	uint64_t low = 999,
		 high = 4000; /* steps: it does not fit in the one and, one hopes, in the other */
	struct outcome o;

	replay(rival, t, high * step, &o);
	if (!o.fits)
		return 0;
	while (high - low > 1) {
		const uint64_t middle = (low + high) / 2;

		replay(rival, t, middle * step, &o);
		if (o.fits)
			high = middle;
		else
			low = middle;
	}
	return high * step;
}
