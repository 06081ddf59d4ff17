/*
 * The KV cache of a device that is not the host: frames, each of which has a page
 * of the arena or none, with the heads of the device's rank. What the device
 * computed of a page goes down to the arena when the page is summed; what the
 * arena has comes up when a sequence needs it and the device has not got it. So
 * the arena holds all that is sealed, and the next executor finds it there.
 *
 * There may be fewer frames than pages: then those that were used longest ago
 * give way, and what only the device had of them goes down before. Memory comes
 * and goes by whole groups of frames; the addresses stay. A frame that had
 * another page is zeroed before it is computed into.
 *
 * Of one thread, but for mirror_look().
 */
#pragma once

#include "client/wire/err.h"
#include "client/wire/step.h"
#include "kernels/attention.h"

struct mirror;

/* What a device that has not memory for all is left: for recorded steps, and the driver's own. */
#define MIRROR_SPARE_BYTES ((uint64_t)256 << 20)

struct mirror_size {
	uint32_t group_pages; /* frames in a group */
	uint32_t least_pages; /* with fewer frames it is of no use; 0 counts as 1 */
};

/*
 * @arena	the pages in the host's memory, or the heads of a rank in them
 *		(kv_heads_of()); copied, its memory outlives the mirror
 * ret_kv	the same cache on the device, of those heads alone; page ids are frames'
 *
 * It begins with least_pages, in whole groups, see mirror_resize(). Returns 0;
 * -ENOMEM with the bytes wanted; -EIO.
 */
int mirror_new(struct dev *dev, const struct kv_cache *arena, const struct mirror_size *size,
	       struct mirror **ret, struct kv_cache *ret_kv, struct err *err);
struct mirror *mirror_free(struct mirror *m);

/*
 * Frames that have memory; mirror_use() takes batches of so many pages, a page
 * in two sequences counted twice.
 */
uint32_t mirror_frames(const struct mirror *m);

/*
 * Before a batch is computed: brings up what its pages hold before each
 * sequence's position, and counts all of them as the device's from then on. Queued on @st.
 *
 * ret		the same sequences with frames for pages; until the next call
 *
 * Returns 0, -ENOMEM (of the host), -ENOSPC: more pages than frames, or -EIO.
 */
int mirror_use(struct mirror *m, struct stream *st, const struct seq *seqs, uint32_t n_seqs,
	       const struct seq **ret);
/* Whether a frame may have to give way to another page. */
bool mirror_is_short(const struct mirror *m);

/*
 * Does moves in order: clears and copies in both memories, brings up what is
 * to be checked (STEP_MOVE_CHECK), brings down what is to be summed. Waits:
 * then the arena's bytes may be summed. 0, -ENOSPC or -EIO.
 */
int mirror_move(struct mirror *m, struct stream *st, const struct step_move *moves, uint32_t n);

/*
 * Makes it @most_bytes large, rounded down to whole groups, 0 too. Of groups
 * that go, those with the fewest pages, what the device used last is copied to
 * free frames of those that stay, lowest first; the rest gives way. Waits.
 *
 * Returns 0; -ENOMEM: it grew as far as the device has memory beside
 * MIRROR_SPARE_BYTES, see mirror_frames(); or -EIO.
 */
int mirror_resize(struct mirror *m, struct stream *st, uint64_t most_bytes);

struct mirror_figures {
	uint64_t page_bytes, group_bytes, bytes, most_bytes; /* bytes: backed; most: of all pages */
	uint32_t frames, live_frames;	/* backed; of those that have a page */
	uint32_t largest_free_run;	/* of free backed frames side by side */
	double fragmentation;		/* share of free frames in groups with live ones; 0: none */
	uint64_t n_up, n_down, n_moved; /* pages copied from and to the arena; within the device */
};
/*
 * From any thread. @map: NULL, or of room + 1 characters, one for as many frames each as
 * it takes: ' ' has no memory, '.' free, 'o' some free, '#' has pages.
 */
void mirror_look(struct mirror *m, struct mirror_figures *ret, char *map, uint32_t room);

static inline void mirror_freep(struct mirror **m)
{
	*m = mirror_free(*m);
}
