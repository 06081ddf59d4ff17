/* The backend's calls made to fail, one after the other. */
#pragma once

/*
 * Opens a device, queues operations, records and replays a step and closes it
 * again, with the first call to the card failing, then the second, and so on
 * until all have succeeded; once for want of memory, once for good.
 *
 * Returns 0, -EIO if a failure was not told or a success was none (printed),
 * or -ENOTSUP: this backend has no such calls.
 */
int faults_check(void);
