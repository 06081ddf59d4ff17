/*
 * SQLite's write-ahead log, read before SQLite reads it. SQLite believes a log
 * up to the first frame that does not match its sum, and says nothing of what
 * comes after: after a crash that is the torn end, but a bit that flipped in
 * the middle takes all later commits with it. A frame's sum goes on from the
 * sum that is stored in the frame before, so those after a damaged one can be
 * told to be whole; and one wrong bit in a frame can mostly be found by its sum.
 *
 * The form: https://sqlite.org/fileformat2.html, section 4.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/wire/err.h"

struct walfile_found {
	uint32_t n_mended; /* frames, the header among them, in which one bit was wrong: it is put right */
	uint32_t n_lost;   /* frames that are damaged, and are no torn end */
	uint32_t n_torn;   /* frames at the end that may be: a power cut leaves such, a kill does not */
};

/*
 * Reads the log of the database at @path. One wrong bit of a frame is put right
 * in the file if the sum says which it is: it does for most. Damage is told from
 * a torn end by that one bit would explain it, or by a transaction after it that
 * is whole; what is wrong in the last transaction and is more than a bit is left
 * to SQLite, which takes it for a torn end, and is counted. Where a power cut left
 * a transaction torn and a later one whole, neither of which was waited for, it
 * looks like damage, too: that costs a new file, and no row.
 *
 * drop	makes a log without the frames that are lost, so that SQLite reads
 *	those after them: the database is then not to be trusted beyond the
 *	sums of its rows. The log as it was becomes PATH-wal.as-found.
 *
 * Nothing is looked at while another process has the database open. Returns 0,
 * -ENOMEM or -EIO.
 */
int walfile_mend(const char *path, bool drop, struct walfile_found *ret, struct err *err);
