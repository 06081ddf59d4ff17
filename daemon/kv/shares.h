/*
 * How many pages of the arena are one user's by right, and how many it may
 * have: settings in percent, how many users there are to share it, and the room
 * that one request of the whole context takes.
 *
 * kept_pages are left to each other user where there is any other way: of what
 * its turns left to be found again nobody takes so much that less stays, and
 * while those that run hold no more, none of them is put back for another
 * user's. Beyond that, the user that has the most by its weight loses first, but
 * its only turn after those of users that have several.
 *
 * A turn that could not be computed so is computed when nobody else's runs, and
 * takes then what it lacks and no more: what it does not need is divided between
 * the others, as min_pages is for a request of @room_pages. So each one that was
 * accepted comes to its end, and none is refused for the others' sake. What they
 * lose to it is brought to the disk first, and comes back from there: with a disk
 * tier nobody has to compute again what is within kept_pages. Without one, or where
 * it takes nothing (quota, a full disk), min_pages with the whole context for room
 * is all that is sure; where the arena holds no more than one context that is 0.
 *
 * A user that has less keeps what it has. Memory that the machine wants back is
 * everybody's.
 */
#pragma once

#include <stdint.h>

struct kv_shares {
	uint32_t kept_pages; /* of all users together at most the arena */
	uint32_t min_pages;  /* at most kept_pages */
	uint32_t max_pages;  /* at least 1 */
};

/*
 * @n_users that want pages now; 0 counts as 1. @room_pages: of one request, at
 * most the arena. Percents are from 0 to 100.
 */
static inline struct kv_shares shares_of(uint32_t n_pages, uint32_t n_users, uint32_t room_pages,
					 uint32_t min_percent, uint32_t max_percent)
{
	const uint32_t equal = n_pages / (n_users > 0 ? n_users : 1);
	const uint32_t least = (uint32_t)((uint64_t)n_pages * min_percent / 100);
	const uint32_t most = (uint32_t)((uint64_t)n_pages * max_percent / 100);
	const uint32_t kept = least < equal ? least : equal;
	const uint32_t spare = n_users > 1 ? (n_pages - room_pages) / (n_users - 1) : n_pages;

	return (struct kv_shares){
		.kept_pages = kept,
		.min_pages = kept < spare ? kept : spare,
		.max_pages = most > 0 ? most : 1,
	};
}
