/* Heads and sums of a session's file, for who writes one and who reads it. */
#include "daemon/session/export.h"

#include <errno.h>
#include <string.h>
#define XXH_STATIC_LINKING_ONLY /* for states on the stack */
#include <xxhash.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are written as they lie");

struct export_head export_head_of(uint32_t n_sections)
{
	struct export_head head = {
		.magic = EXPORT_MAGIC,
		.version = EXPORT_VERSION,
		.n_sections = n_sections,
	};

	head.sum = XXH3_64bits(&head, 16);
	return head;
}

int export_head_check(const struct export_head *head, struct err *err)
{
	if (memcmp(head->magic, EXPORT_MAGIC, sizeof(head->magic)) != 0)
		return err_set(err, -EINVAL, "the file is no exported session");
	if (head->sum != XXH3_64bits(head, 16))
		return err_set(err, -EUCLEAN,
			       "the file is damaged: its first 24 bytes do not "
			       "match their sum");
	if (head->version != EXPORT_VERSION)
		return err_set(err, -EINVAL,
			       "the file has version %u; this steamd reads version "
			       "%d",
			       head->version, EXPORT_VERSION);
	if (head->n_sections == 0 || head->n_sections > EXPORT_SECTIONS_MAX)
		return err_set(err, -EINVAL, "the file has %u sections; 1 to %u are wanted",
			       head->n_sections, EXPORT_SECTIONS_MAX);
	return 0;
}

uint64_t export_section_sum(const struct export_section *head, struct span first,
			    struct span second)
{
	XXH3_state_t x;

	XXH3_64bits_reset(&x);
	XXH3_64bits_update(&x, head, 16);
	XXH3_64bits_update(&x, first.data ? first.data : "", first.len);
	XXH3_64bits_update(&x, second.data ? second.data : "", second.len);
	return XXH3_64bits_digest(&x);
}
