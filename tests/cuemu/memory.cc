/* Device memory, what a kernel may touch, and what is said of it when it touches something else. */
#include <algorithm>
#include <link.h>
#include <map>
#include <mutex>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <unordered_map>
#include <vector>

#include "tests/cuemu/parts.h"

#define ARENA_BYTES ((size_t)1 << 38) /* addresses; they are never used twice */
#define DEVICE_GIB 8		      /* what is said to be there; more is refused */
#define GRANULE 64		      /* bytes of which one remembers who wrote them */
#define PAGE 4096
#define SECTOR 32

static std::recursive_mutex lock; /* guards what follows, but for the thread_locals */
static char *arena;
static size_t arena_used;
static uint32_t *written;	 /* of each granule: the number of the last kernel that did */
static uint32_t kernels, ended; /* launched so far; and up to which the host has seen the end */
static struct {
	uint32_t early; /* all up to this one had ended when the latest kernel began */
	bool released;	/* and it let its successor begin before it had waited itself */
} latest;
struct range {
	size_t bytes;
	bool writable;
};
static std::map<uintptr_t, struct range> allocations, pinned;
static size_t used;
static std::string fault;
static bool happened, loud = true;

static thread_local struct {
	uintptr_t from, to;
	bool writable;
} last, closure_range;

/* This program's own code and data: constants, variables of the device. */
extern "C" char __executable_start, _end;

static bool counting;
static struct cuemu_counts counts;
struct request {
	uint64_t warp;
	const void *pc;
	uint32_t nth;
	bool operator==(const struct request &o) const
	{
		return warp == o.warp && pc == o.pc && nth == o.nth;
	}
};
struct request_hash {
	size_t operator()(const struct request &r) const
	{
		return ((size_t)r.pc * 31 + r.warp) * 0x9e3779b97f4a7c15u + r.nth * 0x85ebca6b;
	}
};
struct sectors {
	bool write;
	std::vector<uintptr_t> list;
};
static std::unordered_map<struct request, struct sectors, struct request_hash> requests;
static std::unordered_map<uint64_t, uint32_t> nth_of; /* by (thread, pc) */

static size_t device_bytes(void)
{
	const char *gib = getenv("CUEMU_GIB");

	return (size_t)(gib ? atoi(gib) : DEVICE_GIB) << 30;
}

static void arena_open(void)
{
	if (arena)
		return;
	arena = (char *)mmap(NULL, ARENA_BYTES, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	written = (uint32_t *)mmap(NULL, ARENA_BYTES / GRANULE * sizeof(*written),
				   PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (arena == MAP_FAILED || written == MAP_FAILED)
		abort();
}

void *memory_reserve(size_t bytes, size_t alignment)
{
	std::lock_guard<std::recursive_mutex> hold(lock);
	const size_t pages = (bytes + PAGE - 1) / PAGE * PAGE;
	size_t from;

	arena_open();
	from = (arena_used + PAGE + alignment - 1) / alignment * alignment;
	if (from > ARENA_BYTES || pages + PAGE > ARENA_BYTES - from)
		return NULL;
	arena_used = from + pages + PAGE;
	return arena + from;
}

void memory_map(void *at, size_t bytes)
{
	std::lock_guard<std::recursive_mutex> hold(lock);

	if (mprotect(at, (bytes + PAGE - 1) / PAGE * PAGE, PROT_READ | PROT_WRITE) < 0)
		abort();
	allocations[(uintptr_t)at] = { bytes, true };
	last = {};
}

bool memory_give(void *at)
{
	std::lock_guard<std::recursive_mutex> hold(lock);
	auto it = allocations.find((uintptr_t)at);

	if (it == allocations.end())
		return false;
	mmap(at, (it->second.bytes + PAGE - 1) / PAGE * PAGE, PROT_NONE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	allocations.erase(it);
	last = {};
	return true;
}

void memory_zero(void *at, size_t bytes)
{
	char *from = (char *)(((uintptr_t)at + PAGE - 1) / PAGE * PAGE);
	char *to = (char *)(((uintptr_t)at + bytes) / PAGE * PAGE);

	if (from >= to || madvise(from, (size_t)(to - from), MADV_DONTNEED) < 0) {
		memset(at, 0, bytes);
		return;
	}
	memset(at, 0, (size_t)(from - (char *)at));
	memset(to, 0, (size_t)((char *)at + bytes - to));
}

bool memory_protect(void *at, size_t bytes, bool writable)
{
	std::lock_guard<std::recursive_mutex> hold(lock);
	const uintptr_t from = (uintptr_t)at;
	bool any = false;

	for (auto &a : allocations) {
		if (a.first >= from && a.first + a.second.bytes <= from + bytes) {
			a.second.writable = writable;
			any = true;
		}
	}
	last = {};
	return any;
}

bool memory_charge(size_t bytes)
{
	std::lock_guard<std::recursive_mutex> hold(lock);

	if (bytes > device_bytes() - used)
		return false;
	used += bytes;
	return true;
}

void memory_discharge(size_t bytes)
{
	std::lock_guard<std::recursive_mutex> hold(lock);

	used -= bytes;
}

size_t memory_left(void)
{
	std::lock_guard<std::recursive_mutex> hold(lock);

	return device_bytes() - used;
}

size_t memory_bytes(void)
{
	return device_bytes();
}

void memory_pin(void *at, size_t bytes)
{
	std::lock_guard<std::recursive_mutex> hold(lock);

	pinned[(uintptr_t)at] = { bytes, true };
}

bool memory_unpin(void *at)
{
	std::lock_guard<std::recursive_mutex> hold(lock);

	return pinned.erase((uintptr_t)at) > 0;
}

/* Allocations that touch each other, as pieces of a reservation do, are one to a kernel. */
static bool within(const std::map<uintptr_t, struct range> &ranges, uintptr_t at, size_t bytes, bool write)
{
	auto it = ranges.upper_bound(at);
	uintptr_t end;

	if (it == ranges.begin())
		return false;
	--it;
	if (write && !it->second.writable)
		return false;
	last = { it->first, it->first + it->second.bytes, it->second.writable };
	end = last.to;
	while (at < end && at + bytes > end) {
		if (++it == ranges.end() || it->first != end || (write && !it->second.writable))
			return false;
		end += it->second.bytes;
	}
	return at + bytes <= end;
}

bool memory_is_device(const void *at, size_t bytes)
{
	std::lock_guard<std::recursive_mutex> hold(lock);

	return bytes == 0 || within(allocations, (uintptr_t)at, bytes, false);
}

void memory_host_waited(void)
{
	ended = kernels;
}

/*
 * A kernel that may begin early begins when all blocks of the one before have
 * released it: if they had waited by then, everything before that one has ended.
 */
void memory_launch(bool pdl, const void *closure, size_t closure_bytes)
{
	last = {};
	closure_range = { (uintptr_t)closure, (uintptr_t)closure + closure_bytes, false };
	kernels++;
	if (!pdl)
		latest.early = kernels - 1;
	else if (!latest.released && kernels >= 2)
		latest.early = std::max(latest.early, kernels - 2);
	latest.early = std::max(latest.early, ended);
	latest.released = false;
}

void memory_released_early(void)
{
	latest.released = true;
}

/* Function and line that a return address belongs to. */
static std::string line_of(const void *pc)
{
	char command[256], text[512] = "", program[256] = "";
	const ssize_t n = readlink("/proc/self/exe", program, sizeof(program) - 1);
	const uintptr_t base = (uintptr_t)&__executable_start;
	std::string all;
	FILE *f;

	if (!pc || n <= 0)
		return "";
	snprintf(command, sizeof(command), "addr2line -spfCi -e %.160s 0x%lx 2>/dev/null", program,
		 (unsigned long)((uintptr_t)pc - 1 - base));
	f = popen(command, "r");
	if (!f)
		return "";
	while (fgets(text, sizeof(text), f))
		all += std::string("\n\tat ") + std::string(text).substr(0, strcspn(text, "\n"));
	pclose(f);
	return all;
}

void fault_note(const char *format, ...)
{
	std::lock_guard<std::recursive_mutex> hold(lock);
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (!happened)
		fault = text;
	if (!happened && loud)
		fprintf(stderr, "cuemu: %s\n", text);
	happened = true;
}

void fault_in_kernel(const void *pc, const char *format, ...)
{
	const struct block *b = cuemu_block;
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	fault_note("%s (block %u,%u,%u thread %u)%s", text, b->idx.x, b->idx.y, b->idx.z,
		   b->self->number, loud ? line_of(pc).c_str() : "");
	block_fail();
}

bool fault_happened(void)
{
	return happened;
}

const char *cuemu_fault(void)
{
	return happened ? fault.c_str() : NULL;
}

void cuemu_forget(void)
{
	happened = false;
}

void cuemu_set_loud(bool to)
{
	loud = to;
}

void cuemu_trap(const char *why)
{
	fault_in_kernel(__builtin_return_address(0), "%s", why);
}

void cuemu_count(bool on)
{
	counting = on;
	if (on)
		counts = {};
}

struct cuemu_counts cuemu_counted(void)
{
	return counts;
}

/* A load or store of a warp is one request: the nth time that its lanes come by this instruction. */
static void count(uintptr_t at, size_t bytes, bool write, const void *pc)
{
	const struct thread *t = cuemu_block->self;
	const uint32_t nth = nth_of[(uint64_t)pc * THREADS_MAX + t->number]++;
	struct sectors &s = requests[{ t->number / WARP, pc, nth }];

	(write ? counts.written_bytes : counts.read_bytes) += bytes;
	s.write = write;
	for (uintptr_t sector = at / SECTOR; sector <= (at + bytes - 1) / SECTOR; sector++)
		if (std::find(s.list.begin(), s.list.end(), sector) == s.list.end())
			s.list.push_back(sector);
}

void memory_warp_ended(void)
{
	for (const auto &r : requests) {
		(r.second.write ? counts.written_requests : counts.read_requests)++;
		(r.second.write ? counts.written_sectors : counts.read_sectors) +=
			r.second.list.size();
	}
	requests.clear();
	nth_of.clear();
}

static void check_pdl(uintptr_t at, size_t bytes, bool write, const void *pc)
{
	const size_t from = (at - (uintptr_t)arena) / GRANULE;
	const size_t to = (at + bytes - 1 - (uintptr_t)arena) / GRANULE;
	const struct block *b = cuemu_block;

	if (b->pdl && !b->self->waited_pdl) {
		if (write)
			fault_in_kernel(pc, "writes %zu bytes at %p before pdl_wait()", bytes,
					(void *)at);
		for (size_t i = from; i <= to; i++)
			if (written[i] > latest.early)
				fault_in_kernel(pc,
						"reads %zu bytes at %p, which an earlier kernel "
						"wrote, before pdl_wait()",
						bytes, (void *)at);
	}
	if (write)
		for (size_t i = from; i <= to; i++)
			written[i] = kernels;
}

static void access_device(uintptr_t at, size_t bytes, bool write, const void *pc)
{
	if (!(at >= last.from && at + bytes <= last.to && (!write || last.writable))) {
		std::lock_guard<std::recursive_mutex> hold(lock);

		if (!within(allocations, at, bytes, write)) {
			auto it = allocations.upper_bound(at);

			if (it == allocations.begin())
				fault_in_kernel(pc, "%s %zu bytes at %p, before all memory that there is",
						write ? "writes" : "reads", bytes, (void *)at);
			--it;
			fault_in_kernel(pc, "%s %zu bytes at byte %zu of an allocation of %zu",
					write ? "writes" : "reads", bytes, (size_t)(at - it->first),
					it->second.bytes);
		}
	}
	check_pdl(at, bytes, write, pc);
	if (counting)
		count(at, bytes, write, pc);
}

/* Of what is neither of the device nor on a thread's stack. */
static void access_other(uintptr_t at, size_t bytes, enum access access, const void *pc)
{
	bool is_pinned;

	if (at >= (uintptr_t)&__executable_start && at < (uintptr_t)&_end)
		return;
	if (at >= closure_range.from && at + bytes <= closure_range.to)
		return;
	{
		std::lock_guard<std::recursive_mutex> hold(lock);

		is_pinned = within(pinned, at, bytes, access != ACCESS_READ);
		last = {};
	}
	if (!is_pinned)
		fault_in_kernel(pc, "%s %zu bytes at %p, which is not memory of the device",
				access == ACCESS_READ ? "reads" : "writes", bytes, (void *)at);
}

static inline void access_in_kernel(const struct block *b, const void *p, size_t bytes,
				    enum access access, const void *pc)
{
	const uintptr_t at = (uintptr_t)p;

	if (at - b->stacks < b->stacks_bytes)
		return;
	if (at - (uintptr_t)arena < ARENA_BYTES)
		access_device(at, bytes, access != ACCESS_READ, pc);
	else if (shadow_covers(p))
		shadow_access(p, bytes, access, pc);
	else
		access_other(at, bytes, access, pc);
}

void memory_access(const void *at, size_t bytes, enum access access, const void *pc)
{
	const struct block *b = cuemu_block;

	if (b && bytes > 0)
		access_in_kernel(b, at, bytes, access, pc);
}

void cuemu_read(const void *at, size_t bytes)
{
	memory_access(at, bytes, ACCESS_READ, __builtin_return_address(0));
}

void cuemu_write(void *at, size_t bytes)
{
	memory_access(at, bytes, ACCESS_WRITE, __builtin_return_address(0));
}

void cuemu_atomic(void *at, size_t bytes)
{
	memory_access(at, bytes, ACCESS_ATOMIC, __builtin_return_address(0));
}

void cuemu_constant(const void *at, size_t bytes)
{
	const size_t from = (uintptr_t)at - (uintptr_t)arena;

	if ((uintptr_t)at < (uintptr_t)arena || from >= arena_used)
		return;
	for (size_t i = from / GRANULE; i <= (from + bytes - 1) / GRANULE; i++)
		if (written[i] > latest.early)
			fault_in_kernel(__builtin_return_address(0),
					"loads %zu bytes at %p by __ldg(), which a kernel wrote "
					"that need not have ended when this one began",
					bytes, at);
}

void cuemu_pdl_wait(void)
{
	block_self()->waited_pdl = true;
}

void cuemu_pdl_release(void)
{
	if (cuemu_block->pdl && !block_self()->waited_pdl)
		memory_released_early();
}

/* The calls that -fsanitize=thread makes; also of launchers, which no block runs. */
static inline void hook(const void *at, size_t bytes, bool aligned, enum access access, const void *pc)
{
	const struct block *b = cuemu_block;

	if (!b)
		return;
	if (aligned && (uintptr_t)at % bytes)
		fault_in_kernel(pc, "%zu bytes at %p are not aligned", bytes, at);
	access_in_kernel(b, at, bytes, access, pc);
}

#define HOOK(name, n, aligned, access)                                                             \
	extern "C" void name##n(void *at)                                                          \
	{                                                                                          \
		hook(at, n, aligned, access, __builtin_return_address(0));                         \
	}
#define HOOKS(n)                                                                                   \
	HOOK(__tsan_read, n, true, ACCESS_READ)                                                    \
	HOOK(__tsan_write, n, true, ACCESS_WRITE)                                                  \
	HOOK(__tsan_unaligned_read, n, false, ACCESS_READ)                                         \
	HOOK(__tsan_unaligned_write, n, false, ACCESS_WRITE)

HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

extern "C" void __tsan_read_range(void *at, long bytes)
{
	memory_access(at, bytes, ACCESS_READ, __builtin_return_address(0));
}

extern "C" void __tsan_write_range(void *at, long bytes)
{
	memory_access(at, bytes, ACCESS_WRITE, __builtin_return_address(0));
}

extern "C" void __tsan_vptr_update(void **, void *)
{
}

extern "C" void __tsan_init(void)
{
}

extern "C" void __tsan_func_entry(void *)
{
}

extern "C" void __tsan_func_exit(void)
{
}

/* Of the launchers' own atomic words; kernels have CUDA's functions. */
#define ATOMICS(bits)                                                                              \
	extern "C" uint##bits##_t __tsan_atomic##bits##_load(const uint##bits##_t *at, int)        \
	{                                                                                          \
		return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                      \
	}                                                                                          \
	extern "C" void __tsan_atomic##bits##_store(uint##bits##_t *at, uint##bits##_t v, int)     \
	{                                                                                          \
		__atomic_store_n(at, v, __ATOMIC_SEQ_CST);                                         \
	}                                                                                          \
	extern "C" uint##bits##_t __tsan_atomic##bits##_fetch_add(uint##bits##_t *at,              \
								  uint##bits##_t v, int)           \
	{                                                                                          \
		return __atomic_fetch_add(at, v, __ATOMIC_SEQ_CST);                                \
	}

ATOMICS(32)
ATOMICS(64)
