/* From CONTROL_CONFIGURE to the last step. */
#include "daemon/exec/service.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "client/wire/control.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/exec/exec.h"
#include "daemon/exec/readrate.h"

#define N_FDS 4 /* arena, rings, bell down, bell up */
#define DEVICE_THREADS_MAX 1024

struct service {
	int control_fd;
	struct control_configure configure;
	int fds[N_FDS];
	void *arena;
	struct kv_cache kv;
	struct ring ring;
	struct checkpoint *checkpoint;
	struct team *team;
	struct exec *exec;
	uint64_t load_began_us;
	uint64_t read_bytes_per_second; /* measured once */
	uint32_t percent_told;
	_Atomic uint64_t pool_bytes; /* that the KV cache of devices may have, as ordered last; 0: all */
	_Atomic uint32_t
		order; /* of the broker, not yet obeyed; written by the watching thread, taken by the main one */
	_Atomic bool is_open; /* the watching thread may look at the team */
};

static void deinit(struct service *s)
{
	exec_free(s->exec);
	team_close(s->team);
	checkpoint_free(s->checkpoint);
	ring_deinit(&s->ring);
	if (s->arena)
		munmap(s->arena, s->configure.arena_bytes);
	for (int i = 0; i < N_FDS; i++)
		closep(&s->fds[i]);
}

/* Takes the descriptors of a message; closes them all if they are not N_FDS. */
static bool take_fds(struct msghdr *m, int *ret)
{
	uint32_t n = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		const uint32_t have = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (uint32_t i = 0; i < have; i++, n++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (n < N_FDS)
				ret[n] = fd;
			else
				close(fd);
		}
	}
	return n == N_FDS && !(m->msg_flags & MSG_CTRUNC);
}

static int receive(struct service *s, struct err *err)
{
	struct control_configure *c = &s->configure;
	struct iovec iov = { c, sizeof(*c) };
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(N_FDS * sizeof(int))];
	} control;
	struct msghdr m = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t n;

	do
		n = recvmsg(s->control_fd, &m, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return err_wrap(err, -errno, "cannot receive the configuration");
	if (n == 0)
		return err_set(err, -EPIPE,
			       "the broker closed the control socket before the configuration");
	if (!take_fds(&m, s->fds))
		return err_set(err, -EPROTO, "the configuration did not come with %d descriptors",
			       N_FDS);
	if (n != sizeof(*c) || (m.msg_flags & MSG_TRUNC) || c->kind != CONTROL_CONFIGURE ||
	    c->version != CONTROL_VERSION)
		return err_set(err, -EPROTO,
			       "the configuration is of kind %u, version %u and %zd bytes; "
			       "%u, %u and %zu are wanted",
			       c->kind, c->version, n, CONTROL_CONFIGURE, CONTROL_VERSION,
			       sizeof(*c));
	if (!memchr(c->isa, '\0', sizeof(c->isa)) || !memchr(c->model, '\0', sizeof(c->model)))
		return err_set(err, -EPROTO, "the configuration's strings have no end");
	if (c->n_pages == 0 || c->page_tokens == 0 || c->page_tokens > (1u << 16) ||
	    c->max_context == 0 || c->max_context > (1u << 24) || c->n_slots == 0 ||
	    c->n_slots > STEP_ROWS_MAX || c->max_batch_tokens == 0 ||
	    c->max_batch_tokens > STEP_TOKENS_MAX || c->n_threads > DEVICE_THREADS_MAX ||
	    c->n_ranks == 0 || c->n_ranks > SHARE_RANKS_MAX)
		return err_set(err, -EPROTO,
			       "the configuration wants %u pages of %u tokens, %u slots of "
			       "%u tokens, batches of %u, %u threads and %u ranks",
			       c->n_pages, c->page_tokens, c->n_slots, c->max_context,
			       c->max_batch_tokens, c->n_threads, c->n_ranks);
	atomic_store(&s->pool_bytes, c->pool_bytes);
	return 0;
}

static int send_packet(const struct service *s, const void *packet, size_t bytes)
{
	return send(s->control_fd, packet, bytes, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static void see_memory(const struct service *s, uint32_t rank, struct control_seen *seen)
{
	struct dev_region regions[CONTROL_REGIONS_MAX];
	struct dev_memory memory;

	seen->n_regions = dev_look(team_dev(s->team, rank), &memory, regions, CONTROL_REGIONS_MAX);
	for (uint32_t i = 0; i < seen->n_regions; i++) {
		struct control_region *to = &seen->regions[i];

		_Static_assert(sizeof(to->name) == sizeof(regions[i].name), "names are as long");
		memcpy(to->name, regions[i].name, sizeof(to->name));
		to->bytes = regions[i].bytes;
		to->chunk_bytes = regions[i].chunk_bytes;
		to->backed_bytes = regions[i].backed_bytes;
	}
	seen->taken_bytes = memory.taken_bytes;
	seen->peak_bytes = memory.peak_bytes;
	seen->reserved_bytes = memory.reserved_bytes;
	seen->stuck_bytes = memory.stuck_bytes;
	seen->refused_bytes = memory.refused_bytes;
	seen->n_calls = memory.n_calls;
}

static void see_pool(const struct service *s, uint32_t rank, struct control_seen *seen)
{
	struct mirror_figures f;

	if (!team_mirror(s->team, rank))
		return;
	mirror_look(team_mirror(s->team, rank), &f, seen->map, CONTROL_MAP_MAX);
	seen->page_bytes = f.page_bytes;
	seen->group_bytes = f.group_bytes;
	seen->pool_bytes = f.bytes;
	seen->frames = f.frames;
	seen->live_frames = f.live_frames;
	seen->largest_free_run = f.largest_free_run;
	seen->fragmentation_ppm = (uint32_t)(f.fragmentation * 1e6);
	seen->n_up = f.n_up;
	seen->n_down = f.n_down;
	seen->n_moved = f.n_moved;
}

static void see_card(const struct service *s, uint32_t rank, struct control_seen *seen)
{
	struct dev_sensors sensors;

	if (dev_sense(team_dev(s->team, rank), &sensors, seen->text, sizeof(seen->text)) < 0)
		return;
	seen->text[0] = '\0';
	seen->known = sensors.known;
	seen->card_bytes = sensors.total_bytes;
	seen->card_free_bytes = sensors.free_bytes;
	seen->power_mw = sensors.power_mw;
	seen->power_limit_mw = sensors.power_limit_mw;
	seen->temperature_c = sensors.temperature_c;
}

/* By the watching thread: whatever the others do, somebody may want to know. */
static void tell_seen(const struct service *s)
{
	const uint32_t n_ranks = atomic_load(&s->is_open) ? team_ranks(s->team) : 0;
	struct control_seen seen = { .kind = CONTROL_SEEN };

	for (uint32_t rank = 0; rank < n_ranks; rank++) {
		seen = (struct control_seen){ .kind = CONTROL_SEEN,
					      .rank = rank,
					      .n_ranks = n_ranks };
		see_memory(s, rank, &seen);
		see_pool(s, rank, &seen);
		see_card(s, rank, &seen);
		send_packet(s, &seen, sizeof(seen)); /* its end is told of by the socket */
	}
	if (n_ranks == 0)
		send_packet(s, &seen, sizeof(seen));
}

/*
 * Orders are rung in by the bell of the steps, so that the main thread waits
 * for both with one read. The broker's end closing is the only way it can tell
 * us that it is gone.
 */
static void *watch(void *userdata)
{
	const uint64_t one = 1;
	struct service *s = userdata;
	struct pollfd p = { .fd = s->control_fd, .events = POLLIN };
	struct control_order order;
	ssize_t n;

	for (;;) {
		n = recv(s->control_fd, &order, sizeof(order), MSG_DONTWAIT | MSG_TRUNC);
		if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
			poll(&p, 1, -1);
			continue;
		}
		if (n <= 0)
			_exit(SERVICE_EXIT_FAULT);
		if (n == sizeof(order) && order.kind == CONTROL_LOOK) {
			tell_seen(s);
			continue;
		}
		if (n != sizeof(order) ||
		    (order.kind != CONTROL_PARK && order.kind != CONTROL_WAKE &&
		     order.kind != CONTROL_POOL))
			_exit(SERVICE_EXIT_PROTOCOL);
		if (order.kind == CONTROL_POOL)
			atomic_store(&s->pool_bytes, order.bytes);
		atomic_store(&s->order, order.kind);
		if (write(s->ring.down_fd, &one, sizeof(one)) < 0)
			_exit(SERVICE_EXIT_FAULT);
	}
}

static int start_watching(struct service *s, struct err *err)
{
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	r = pthread_create(&thread, &attr, watch, s);
	pthread_attr_destroy(&attr);
	return r ? err_wrap(err, -r, "cannot start a thread") : 0;
}

static void on_progress(uint64_t done_bytes, uint64_t total_bytes, void *userdata)
{
	struct service *s = userdata;
	const uint64_t us = MAX(clock_us() - s->load_began_us, 1);
	const struct control_progress p = {
		.kind = CONTROL_PROGRESS,
		.percent = total_bytes ? done_bytes * 100 / total_bytes : 100,
		.done_bytes = done_bytes,
		.total_bytes = total_bytes,
		.bytes_per_second = (double)done_bytes * US_PER_S / us,
	};

	if (p.percent == s->percent_told)
		return;
	s->percent_told = p.percent;
	/* a broker too busy to listen misses a percentage, and the load goes on */
	if (send(s->control_fd, &p, sizeof(p), MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN)
		_exit(SERVICE_EXIT_FAULT);
}

/* Maps the arena, which must be sealed: a file that shrinks is a SIGBUS. */
static int map_arena(struct service *s, struct err *err)
{
	const struct control_configure *c = &s->configure;
	const uint64_t told = (uint64_t)c->page_bytes_hi << 32 | c->page_bytes_lo;
	const struct config *config = &s->checkpoint->config;
	struct stat st;
	int seals;

	s->kv = (struct kv_cache){
		.type = dev_kv_type(team_dev(s->team, 0)),
		.n_pages = c->n_pages,
		.page_tokens = c->page_tokens,
		.layers = config->layers,
		.kv_heads = config->kv_heads,
		.head_dim = config->head_dim,
	};
	if (kv_page_bytes(&s->kv) != told)
		return err_set(err, -EPROTO, "a page has %zu bytes; the broker reckons %llu",
			       kv_page_bytes(&s->kv), (unsigned long long)told);
	if (c->arena_bytes / told < c->n_pages)
		return err_set(err, -EPROTO, "%u pages of %llu bytes do not fit an arena of %llu",
			       c->n_pages, (unsigned long long)told,
			       (unsigned long long)c->arena_bytes);

	seals = fcntl(s->fds[0], F_GET_SEALS);
	if (seals < 0 || !(seals & F_SEAL_SHRINK))
		return err_set(err, -EPROTO, "the arena is not sealed against shrinking");
	if (fstat(s->fds[0], &st) < 0 || (uint64_t)st.st_size < c->arena_bytes)
		return err_set(err, -EPROTO, "the arena's file has fewer than %llu bytes",
			       (unsigned long long)c->arena_bytes);

	s->arena = mmap(NULL, c->arena_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->fds[0], 0);
	if (s->arena == MAP_FAILED) {
		s->arena = NULL;
		return err_wrap(err, -errno, "cannot map the arena");
	}
	madvise(s->arena, c->arena_bytes, MADV_HUGEPAGE); /* a wish */
	s->kv.base = s->arena;
	return 0;
}

static int map_ring(struct service *s, struct err *err)
{
	const int r = ring_map(s->fds[1], s->fds[2], s->fds[3], &s->ring, err);

	if (r < 0)
		return r == -EBADMSG ? -EPROTO : r; /* EBADMSG would be the model's fault */
	s->fds[1] = s->fds[2] = s->fds[3] = -1;
	return 0;
}

/* The model that the broker's sessions are of, if it knows one. */
static int check_fingerprint(const struct service *s, struct err *err)
{
	static const uint8_t any[CONTROL_FINGERPRINT_BYTES];
	const uint8_t *wanted = s->configure.fingerprint;

	if (memcmp(wanted, any, sizeof(any)) == 0 ||
	    memcmp(wanted, fingerprint_whole(team_weights(s->team, 0)->fingerprint), sizeof(any)) ==
		    0)
		return 0;
	return err_set(err, -ESTALE, "'%s' is not the model that was loaded before",
		       s->configure.model);
}

/* The headers of a large model are tens of megabytes, and nobody reads them again. */
static void close_checkpoint(struct service *s)
{
	s->checkpoint = checkpoint_free(s->checkpoint);
	malloc_trim(0);
}

/* Rank 0, which would say it, may be waiting for this one. */
static void on_rank_lost(uint32_t rank)
{
	log_error("leaving: rank %u failed: %s", rank, dev_lost() ? dev_lost() : "it cannot go on");
	_exit(SERVICE_EXIT_FAULT);
}

static int prepare(struct service *s, struct err *err)
{
	const struct control_configure *c = &s->configure;
	const struct exec_limits limits = {
		.n_slots = c->n_slots,
		.max_context = c->max_context,
		.max_batch_tokens = c->max_batch_tokens,
		.pool_bytes = c->pool_bytes,
		.chooses = true,
		.cache_dir = getenv("CACHE_DIRECTORY"), /* as systemd made it */
	};
	enum isa isa;
	int r;

	if (isa_parse(c->isa, &isa) < 0)
		return err_set(err, -EINVAL, "there is no instruction set '%s'", c->isa);
	r = checkpoint_open(c->model, &s->checkpoint, err);
	if (r < 0)
		return r;
	team_on_loss(on_rank_lost);
	r = team_open(isa, c->n_threads, c->n_ranks, &s->team);
	if (r == -ENODEV)
		return err_set(err, r, "there is no GPU that can be used: %s", dev_why());
	if (r < 0)
		return err_set(err, r == -ENOTSUP ? -EINVAL : r, "cannot compute with %s: %s",
			       isa_name(isa), r == -ENOTSUP ? dev_why() : strerror(-r));
	r = map_arena(s, err);
	if (r < 0)
		return r;
	r = team_load(s->team, s->checkpoint, on_progress, s, err);
	if (r < 0)
		return r;
	r = check_fingerprint(s, err);
	if (r < 0)
		return r;
	close_checkpoint(s);
	r = exec_new(s->team, &s->kv, &limits, &s->exec, err);
	if (r == 0)
		atomic_store(&s->is_open, true);
	return r;
}

/*
 * What failed with @r, failed for the GPU's sake: then there is none that can be
 * used, which may pass, and is nothing to say of the model.
 */
static int blame_gpu(int r, struct err *err)
{
	if (r < 0 && r != -ENODEV && dev_lost())
		return err_set(err, -ENODEV, "the GPU failed: %s", dev_lost());
	return r;
}

/* Name of the processor, for people. */
static void read_device_name(char *ret, size_t size)
{
	_cleanup_(fclosep) FILE *f = fopen("/proc/cpuinfo", "re");
	char line[512], *value;

	snprintf(ret, size, "unknown processor");
	while (f && fgets(line, sizeof(line), f)) {
		if (strncmp(line, "model name", 10) != 0)
			continue;
		value = strchr(line, ':');
		if (!value)
			continue;
		value += strspn(value, ": \t");
		value[strcspn(value, "\n")] = '\0';
		snprintf(ret, size, "%.*s", (int)size - 1, value);
		return;
	}
}

/* The number behind @key in a file of /proc with lines in kB, in bytes. */
static uint64_t read_kib(const char *path, const char *key)
{
	_cleanup_(fclosep) FILE *f = fopen(path, "re");
	const size_t len = strlen(key);
	char line[512];

	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, key, len) == 0)
			return strtoull(line + len, NULL, 10) * 1024;
	return 0;
}

/* Weights, activations, scratch, the KV cache of devices; the arena is shared and the broker's. */
static uint64_t resident_bytes(const struct service *s)
{
	uint64_t bytes = 0;

	if (dev_is_host(team_dev(s->team, 0)))
		return read_kib("/proc/self/status", "RssAnon:");
	for (uint32_t i = 0; i < team_ranks(s->team); i++) {
		struct dev_memory memory;

		dev_look(team_dev(s->team, i), &memory, NULL, 0);
		bytes += memory.taken_bytes;
	}
	return bytes;
}

static struct control_pool describe_pool(const struct service *s)
{
	const struct team_pool pool = team_pool(s->team);

	return (struct control_pool){ .bytes = pool.bytes,
				      .least_bytes = pool.least_bytes,
				      .most_bytes = pool.most_bytes,
				      .group_bytes = pool.group_bytes };
}

/* Of one rank, all at once; into its place of an array. */
static int measure_rank(struct team *team, uint32_t rank, void *userdata)
{
	const struct weights *w = team_weights(team, rank);

	((uint64_t *)userdata)[rank] = readrate_measure(team_dev(team, rank), w->memory, w->bytes);
	return 0;
}

static int measure_read(struct service *s)
{
	uint64_t rates[SHARE_RANKS_MAX] = { 0 };
	const int r = team_run(s->team, measure_rank, rates);

	for (uint32_t i = 0; r == 0 && i < team_ranks(s->team); i++)
		s->read_bytes_per_second += rates[i];
	return r;
}

/* Sums over the ranks. */
static void describe_ranks(const struct team *team, struct control_ready *ret)
{
	for (uint32_t i = 0; i < team_ranks(team); i++) {
		ret->n_threads += dev_threads(team_dev(team, i));
		ret->weight_bytes += team_weights(team, i)->bytes;
		ret->decode_bytes += team_weights(team, i)->decode_bytes;
	}
}

static int tell_ready(struct service *s, struct err *err)
{
	const uint64_t load_us = clock_us() - s->load_began_us;
	const struct dev *dev = team_dev(s->team, 0);
	struct control_ready ready = {
		.kind = CONTROL_READY,
		.load_us = load_us,
		.huge_bytes = read_kib("/proc/self/smaps_rollup", "AnonHugePages:"),
		.resident_bytes = resident_bytes(s),
		.pool = describe_pool(s),
		.in_arena = dev_is_host(dev),
		.n_ranks = team_ranks(s->team),
	};
	int r = 0;

	if (s->read_bytes_per_second == 0 && dev_is_host(dev))
		r = measure_read(s);
	if (r < 0)
		return err_wrap(err, r, "cannot measure how fast the weights are read");
	describe_ranks(s->team, &ready);
	ready.read_bytes_per_second = s->read_bytes_per_second;
	memcpy(ready.fingerprint, fingerprint_whole(team_weights(s->team, 0)->fingerprint),
	       sizeof(ready.fingerprint));
	snprintf(ready.isa, sizeof(ready.isa), "%s", dev_name(dev));
	if (dev_product(dev))
		snprintf(ready.device, sizeof(ready.device), "%.*s", (int)sizeof(ready.device) - 1,
			 dev_product(dev));
	else
		read_device_name(ready.device, sizeof(ready.device));
	snprintf(ready.products, sizeof(ready.products), "%s", exec_products(s->exec));
	r = send_packet(s, &ready, sizeof(ready));
	return r < 0 ? err_wrap(err, r, "cannot tell the broker that the model is ready") : 0;
}

static void tell_refused(const struct service *s, const struct err *err, int error)
{
	struct control_refused refused = { .kind = CONTROL_REFUSED, .error = error };

	snprintf(refused.text, sizeof(refused.text), "%s", err->text);
	send_packet(s, &refused, sizeof(refused)); /* leaving anyway */
}

static int exit_code(int r)
{
	switch (-r) {
	case EBADMSG:
	case ENOTSUP:
	case ENOENT:
	case ENOTDIR:
	case EACCES:
	case EIO:
	case ESTALE:
		return SERVICE_EXIT_MODEL;
	case ENODEV:
		return SERVICE_EXIT_NO_GPU;
	case EPROTO:
	case EINVAL:
		return SERVICE_EXIT_PROTOCOL;
	case EPIPE:
	case ECONNRESET:
		return SERVICE_EXIT_FAULT;
	default:
		return SERVICE_EXIT_SYSTEM;
	}
}

static void begin_load(struct service *s)
{
	s->load_began_us = clock_us();
	s->percent_told = UINT32_MAX;
}

/* Where the device lacks memory to grow it has what there is. */
static int resize(struct service *s, struct err *err)
{
	const uint64_t bytes = atomic_load(&s->pool_bytes);

	return exec_resize(s->exec, bytes ? bytes : UINT64_MAX, err);
}

static int wake(struct service *s, struct err *err)
{
	int r;

	begin_load(s);
	r = checkpoint_open(s->configure.model, &s->checkpoint, err);
	if (r < 0)
		return r;
	r = team_reload(s->team, s->checkpoint, on_progress, s, err);
	if (r == 0)
		r = resize(s, err);
	if (r == -ESTALE)
		err_wrap(err, r, "'%s' is not the model that was loaded before",
			 s->configure.model);
	close_checkpoint(s);
	return r;
}

static int tell_parked(const struct service *s, uint64_t before_bytes, struct err *err)
{
	struct control_parked parked = {
		.kind = CONTROL_PARKED,
		.resident_bytes = resident_bytes(s),
	};
	int r;

	parked.freed_bytes = before_bytes -
			     MIN(before_bytes, parked.resident_bytes); /* 0 if it came twice */
	r = send_packet(s, &parked, sizeof(parked));
	return r < 0 ? err_wrap(err, r, "cannot tell the broker that the weights are gone") : 0;
}

static int tell_pooled(const struct service *s, struct err *err)
{
	const struct control_pooled pooled = {
		.kind = CONTROL_POOLED,
		.resident_bytes = resident_bytes(s),
		.pool = describe_pool(s),
	};
	const int r = send_packet(s, &pooled, sizeof(pooled));

	return r < 0 ? err_wrap(err, r, "cannot tell the broker how large the KV cache is") : 0;
}

/* Between steps. */
static int obey_pool(struct service *s, struct err *err)
{
	const int r = resize(s, err);

	return r < 0 ? r : tell_pooled(s, err);
}

/* Without weights, until the order to wake. */
static int stay_parked(struct service *s, struct err *err)
{
	uint64_t rung, before_bytes = resident_bytes(s);
	uint32_t order = CONTROL_PARK;
	int r;

	r = exec_resize(s->exec, 0, err); /* what only the devices have goes to the arena */
	if (r < 0)
		return r;
	team_drop(s->team);
	malloc_trim(0);
	while (order != CONTROL_WAKE) {
		if (order == CONTROL_PARK) {
			r = tell_parked(s, before_bytes, err);
			if (r < 0)
				return r;
			before_bytes = 0;
		}
		if (order == CONTROL_POOL) { /* counts when it wakes */
			r = tell_pooled(s, err);
			if (r < 0)
				return r;
		}
		if (read(s->ring.down_fd, &rung, sizeof(rung)) < 0 && errno != EINTR &&
		    errno != EAGAIN)
			return err_wrap(err, -errno, "cannot wait for the step ring's bell");
		order = atomic_exchange(&s->order, 0);
	}
	return wake(s, err);
}

/* Steps and orders, until one fails. Returns the exit code. */
static int run(struct service *s, struct err *err)
{
	bool told = false; /* that it is ready */
	uint32_t order;
	int r;

	for (;;) {
		r = told ? 0 : tell_ready(s, err);
		if (r < 0)
			return exit_code(r);
		told = true;
		do {
			r = exec_run(s->exec, &s->ring, &s->order, err);
			if (r < 0) {
				blame_gpu(
					r,
					err); /* the next one finds out whether it is still there */
				return SERVICE_EXIT_FAULT;
			}
		} while (atomic_load(&s->order) == 0);
		order = atomic_exchange(&s->order, 0);
		told = order == CONTROL_POOL;
		if (order == CONTROL_WAKE)
			continue; /* to wake up what is awake: it is told so */
		r = blame_gpu(order == CONTROL_POOL ? obey_pool(s, err) : stay_parked(s, err), err);
		if (r < 0) {
			tell_refused(s, err, r);
			return exit_code(r);
		}
	}
}

static int serve(struct service *s, struct err *err)
{
	int r;

	r = receive(s, err);
	if (r < 0)
		return exit_code(r);
	begin_load(s);
	r = map_ring(s, err);
	if (r == 0)
		r = start_watching(s, err);
	if (r == 0)
		r = blame_gpu(prepare(s, err), err);
	if (r < 0) {
		tell_refused(s, err, r);
		return exit_code(r);
	}
	return run(s, err);
}

int service_run(int control_fd, struct err *err)
{
	/* static: the watching thread reads it for as long as the process lives */
	static struct service s;
	struct err own = { 0 };
	int code;

	s = (struct service){ .control_fd = control_fd, .fds = { -1, -1, -1, -1 } };
	code = serve(&s, &own);
	deinit(&s);
	if (err)
		*err = own;
	return code;
}
