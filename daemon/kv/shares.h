/*
 * How many pages of the arena are one user's by right, and how many it may
 * have: settings in percent, and how many users there are to share it.
 *
 * While a user's turns hold no more than min_pages, none of them is put back for
 * those of another. Beyond that, the user that has the most by its weight loses
 * first, but its only one after those of users that have several. What turns left to be found again is in kvcache.h.
 */
#pragma once

#include <stdint.h>

struct kv_shares {
	uint32_t min_pages; /* of all users together at most the arena */
	uint32_t max_pages; /* at least 1 */
};

/* @n_users that want pages now; 0 counts as 1. Percents are from 0 to 100. */
static inline struct kv_shares shares_of(uint32_t n_pages, uint32_t n_users, uint32_t min_percent,
					 uint32_t max_percent)
{
	const uint32_t equal = n_pages / (n_users > 0 ? n_users : 1);
	const uint32_t least = (uint32_t)((uint64_t)n_pages * min_percent / 100);
	const uint32_t most = (uint32_t)((uint64_t)n_pages * max_percent / 100);

	return (struct kv_shares){
		.min_pages = least < equal ? least : equal,
		.max_pages = most > 0 ? most : 1,
	};
}
