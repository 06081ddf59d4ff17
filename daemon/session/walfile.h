/*
 * SQLite's write-ahead log, read before SQLite reads it. SQLite believes a log
 * up to the first frame that does not match its sum, and says nothing of what
 * comes after: after a power cut that is the torn end, but a bit that flipped in
 * the middle takes all later commits with it. One wrong bit in a frame can mostly
 * be found by its sum; and a frame's sum goes on from the sum that is stored in
 * the frame before, so that those after a damaged one can be told to be whole.
 *
 * The form: https://sqlite.org/fileformat2.html, section 4.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/wire/err.h"

struct walfile_found {
	uint32_t n_mended; /* frames, the header among them, in which one bit was wrong: it is put right */
	uint32_t n_lost;   /* frames in which one bit is wrong, and it is not known which */
	uint32_t n_torn;   /* other frames that are damaged: a power cut leaves such, a kill does not */
};

/*
 * Reads the log of the database at @path. One wrong bit of a frame is put right
 * in the file if the sum says which it is: it does for most. Damage of more than
 * a bit is counted and left to SQLite, which takes it for a torn end: a power cut
 * looks like that, also in the midst of frames that nobody waited for.
 *
 * drop	of a copy: leaves the frames that are lost out, so that SQLite reads
 *	those after them. The database is then not to be trusted beyond the
 *	sums of its rows.
 *
 * Nothing is looked at while another process has the database open. Returns 0,
 * -ENOMEM or -EIO.
 */
int walfile_mend(const char *path, bool drop, struct walfile_found *ret, struct err *err);
