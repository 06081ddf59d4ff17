/*
 * The step ring: layout of the shared memory, and both sides' moves on it.
 * Every count is written by one side; the other copies it, checks the copy
 * against what it knows and uses the copy alone.
 */
#include "client/wire/step.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "client/wire/sealed.h"

_Static_assert((STEP_RING_SLOTS & (STEP_RING_SLOTS - 1)) == 0, "positions wrap by masking");
_Static_assert(STEP_DEPTH_MAX <= STEP_RING_SLOTS, "a step never overwrites one in flight");

struct ring_down {
	struct step step;
	uint8_t pad[64 - sizeof(struct step)];
	uint8_t payload[STEP_PAYLOAD_BYTES];
};

struct ring_up {
	struct step_result result;
	uint8_t pad[64 - sizeof(struct step_result)];
	uint8_t payload[STEP_RESULT_BYTES];
};

/* Counts since the beginning: taken <= done <= pushed <= taken + STEP_DEPTH_MAX. */
struct ring_shared {
	uint64_t magic;
	uint32_t version, n_slots;
	uint64_t bytes;
	uint32_t down_id, up_id; /* bell_id() of its doorbells */
	uint8_t pad0[32];
	_Atomic uint64_t pushed; /* written by the broker */
	_Atomic uint64_t taken;	 /* written by the broker */
	uint8_t pad1[48];
	_Atomic uint64_t done; /* written by the executor */
	uint8_t pad2[56];
	struct ring_down down[STEP_RING_SLOTS];
	struct ring_up up[STEP_RING_SLOTS];
};
_Static_assert(offsetof(struct ring_shared, pushed) == 64, "the layout is shared");
_Static_assert(offsetof(struct ring_shared, done) == 128, "the layout is shared");
_Static_assert(offsetof(struct ring_shared, down) == 192, "the layout is shared");
_Static_assert(sizeof(struct step) == 16, "struct step is shared");
_Static_assert(sizeof(struct step_result) == 24, "struct step_result is shared");
_Static_assert(sizeof(struct ring_shared) ==
		       192 + STEP_RING_SLOTS * (128 + STEP_PAYLOAD_BYTES + STEP_RESULT_BYTES),
	       "the layout is shared");

static struct ring_shared *map(int memfd)
{
	void *at = mmap(NULL, sizeof(struct ring_shared), PROT_READ | PROT_WRITE, MAP_SHARED, memfd,
			0);

	return at == MAP_FAILED ? NULL : at;
}

/*
 * What tells an eventfd from all others, or 0 where this cannot be had: the
 * kernel is older than 5.2, or there is no /proc. Returns 0, -EBADMSG if it is
 * no eventfd, or -EBADF.
 */
static int bell_id(int fd, uint32_t *ret)
{
	_cleanup_(closep) int info_fd = -1;
	char path[64], text[512];
	const char *at;
	ssize_t n;

	if (fcntl(fd, F_GETFD) < 0)
		return -errno;
	*ret = 0;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info_fd = open(path, O_RDONLY | O_CLOEXEC);
	n = info_fd < 0 ? -1 : read(info_fd, text, sizeof(text) - 1);
	if (n < 0)
		return 0;
	text[n] = '\0';
	if (!strstr(text, "eventfd-count:"))
		return -EBADMSG;
	at = strstr(text, "eventfd-id:");
	if (at)
		*ret = (uint32_t)strtoul(at + strlen("eventfd-id:"), NULL, 10) + 1;
	return 0;
}

/* Who rings another's bell wakes nobody, and waits for ever. */
static int check_bell(int fd, uint32_t id, struct err *err)
{
	uint32_t is = 0;
	const int r = bell_id(fd, &is);

	if (r < 0)
		return err_set(err, -EBADMSG, "a doorbell of the step ring is no eventfd");
	if (id && is && id != is)
		return err_set(err, -EBADMSG,
			       "a doorbell of the step ring is not the one it was made with");
	return 0;
}

int ring_new(struct ring *ret, struct err *err)
{
	_cleanup_(closep) int memfd = -1, down_fd = -1, up_fd = -1;
	struct ring_shared *shared;

	memfd = sealed_memfd("steamd-steps", sizeof(*shared));
	if (memfd < 0)
		return err_wrap(err, memfd, "cannot make the step ring's memory");

	down_fd = eventfd(0, EFD_CLOEXEC); /* the executor's thread sleeps in read() */
	up_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (down_fd < 0 || up_fd < 0)
		return err_wrap(err, -errno, "cannot make the step ring's doorbells");

	shared = map(memfd);
	if (!shared)
		return err_wrap(err, -errno, "cannot map the step ring");
	shared->magic = STEP_MAGIC;
	shared->version = STEP_VERSION;
	shared->n_slots = STEP_RING_SLOTS;
	shared->bytes = sizeof(*shared);
	bell_id(down_fd, &shared->down_id);
	bell_id(up_fd, &shared->up_id);

	*ret = (struct ring){
		.shared = shared,
		.bytes = sizeof(*shared),
		.memfd = steal_fd(&memfd),
		.down_fd = steal_fd(&down_fd),
		.up_fd = steal_fd(&up_fd),
	};
	return 0;
}

/* The positions that a well-behaved pair of processes can have left behind. */
static bool positions_hold(const struct ring_shared *s)
{
	const uint64_t taken = atomic_load(&s->taken), done = atomic_load(&s->done);
	const uint64_t pushed = atomic_load(&s->pushed);

	return taken <= done && done <= pushed && pushed - taken <= STEP_DEPTH_MAX;
}

int ring_map(int memfd, int down_fd, int up_fd, struct ring *ret, struct err *err)
{
	struct ring_shared *shared;
	struct stat st;
	int r;

	if (fstat(memfd, &st) < 0)
		return err_wrap(err, -errno, "cannot stat the step ring");
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != sizeof(*shared))
		return err_set(err, -EBADMSG, "the step ring has %lld bytes; %zu are wanted",
			       (long long)st.st_size, sizeof(*shared));
	if (!sealed_is(memfd))
		return err_set(err, -EBADMSG, "the step ring is not sealed against resizing");

	shared = map(memfd);
	if (!shared)
		return err_wrap(err, -errno, "cannot map the step ring");
	if (shared->magic != STEP_MAGIC || shared->version != STEP_VERSION ||
	    shared->n_slots != STEP_RING_SLOTS || shared->bytes != sizeof(*shared)) {
		munmap(shared, sizeof(*shared));
		return err_set(err, -EBADMSG, "the step ring is not of this version of steamd");
	}
	if (!positions_hold(shared)) {
		munmap(shared, sizeof(*shared));
		return err_set(err, -EBADMSG, "the step ring's positions contradict each other");
	}
	r = check_bell(down_fd, shared->down_id, err);
	if (r >= 0)
		r = check_bell(up_fd, shared->up_id, err);
	if (r < 0) {
		munmap(shared, sizeof(*shared));
		return r;
	}

	*ret = (struct ring){
		.shared = shared,
		.bytes = sizeof(*shared),
		.memfd = memfd,
		.down_fd = down_fd,
		.up_fd = up_fd,
	};
	return 0;
}

void ring_deinit(struct ring *ring)
{
	if (!ring || !ring->shared)
		return;
	munmap(ring->shared, ring->bytes);
	close(ring->memfd);
	close(ring->down_fd);
	close(ring->up_fd);
	*ring = (struct ring){ .memfd = -1, .down_fd = -1, .up_fd = -1 };
}

/* A doorbell's count saturates long after anybody stopped listening: nothing to report. */
static void bell(int fd)
{
	const uint64_t one = 1;

	while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void ring_wake(struct ring *ring)
{
	bell(ring->down_fd);
}

uint32_t ring_in_flight(const struct ring *ring)
{
	const uint64_t n = atomic_load_explicit(&ring->shared->pushed, memory_order_relaxed) -
			   atomic_load_explicit(&ring->shared->taken, memory_order_relaxed);

	return MIN(n, STEP_DEPTH_MAX);
}

void *ring_stage(struct ring *ring)
{
	const uint64_t at = atomic_load_explicit(&ring->shared->pushed, memory_order_relaxed);

	if (ring_in_flight(ring) >= STEP_DEPTH_MAX)
		return NULL;
	return ring->shared->down[at & (STEP_RING_SLOTS - 1)].payload;
}

uint64_t ring_push(struct ring *ring, const struct step *step)
{
	const uint64_t at = atomic_load_explicit(&ring->shared->pushed, memory_order_relaxed);
	struct step *to = &ring->shared->down[at & (STEP_RING_SLOTS - 1)].step;

	*to = *step;
	to->id = at + 1;
	atomic_store_explicit(&ring->shared->pushed, at + 1, memory_order_release);
	bell(ring->down_fd);
	return at + 1;
}

const struct step_result *ring_result(struct ring *ring, const void **ret_payload)
{
	const uint64_t done = atomic_load_explicit(&ring->shared->done, memory_order_acquire);
	const uint64_t taken = atomic_load_explicit(&ring->shared->taken, memory_order_relaxed);
	const struct ring_up *up = &ring->shared->up[taken & (STEP_RING_SLOTS - 1)];

	/* a count beyond what was pushed is no result */
	if (done - taken == 0 || done - taken > ring_in_flight(ring))
		return NULL;
	*ret_payload = up->payload;
	return &up->result;
}

void ring_take(struct ring *ring)
{
	const uint64_t taken = atomic_load_explicit(&ring->shared->taken, memory_order_relaxed);

	atomic_store_explicit(&ring->shared->taken, taken + 1, memory_order_release);
}

const struct step *ring_next(struct ring *ring, const void **ret_payload)
{
	const uint64_t pushed = atomic_load_explicit(&ring->shared->pushed, memory_order_acquire);
	const uint64_t done = atomic_load_explicit(&ring->shared->done, memory_order_relaxed);
	const struct ring_down *down = &ring->shared->down[done & (STEP_RING_SLOTS - 1)];

	if (pushed - done == 0 || pushed - done > STEP_DEPTH_MAX)
		return NULL;
	*ret_payload = down->payload;
	return &down->step;
}

void *ring_result_room(struct ring *ring)
{
	const uint64_t done = atomic_load_explicit(&ring->shared->done, memory_order_relaxed);

	return ring->shared->up[done & (STEP_RING_SLOTS - 1)].payload;
}

void ring_done(struct ring *ring, const struct step_result *result)
{
	const uint64_t done = atomic_load_explicit(&ring->shared->done, memory_order_relaxed);

	ring->shared->up[done & (STEP_RING_SLOTS - 1)].result = *result;
	atomic_store_explicit(&ring->shared->done, done + 1, memory_order_release);
	bell(ring->up_fd);
}
