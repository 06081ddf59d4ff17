/* Accounts of executor time. */
#include "daemon/sched/fair.h"

#include <assert.h>
#include <math.h>

#include "client/wire/ownership.h"
#include "client/wire/step.h"
#include "daemon/base/peruser.h"
#include "daemon/session/turns.h"

_Static_assert(FAIR_USERS_MAX > TURNS_MAX, "there is an account for every user with a turn");

const struct fair_user *fair_find(const struct fair *f, uid_t uid)
{
	for (uint32_t i = 0; i < f->n_users; i++) {
		if (f->users[i].uid == uid)
			return &f->users[i];
	}
	return NULL;
}

/* A place for one more: of those without turns and rows, the account that is ahead of others the least. */
static struct fair_user *make_room(struct fair *f)
{
	struct fair_user *least = NULL;

	if (f->n_users < FAIR_USERS_MAX)
		return &f->users[f->n_users++];
	for (uint32_t i = 0; i < f->n_users; i++) {
		struct fair_user *u = &f->users[i];

		if (u->n_turns == 0 && u->pending <= 0 && (!least || u->vt < least->vt))
			least = u;
	}
	assert(least);
	f->forgotten_us += least->used_us;
	return least;
}

struct fair_user *fair_enter(struct fair *f, uid_t uid, const char *weights)
{
	struct fair_user *u = (struct fair_user *)fair_find(f, uid);

	if (!u) {
		u = make_room(f);
		*u = (struct fair_user){ .uid = uid };
	}
	u->weight = FAIR_WEIGHT;
	peruser_find(weights, "UserWeights", FAIR_WEIGHT_MAX, uid, &u->weight, NULL);
	u->n_turns++;
	return u;
}

void fair_leave(struct fair_user *u)
{
	u->n_turns--;
}

static double now(const struct fair_user *u)
{
	return u->vt + u->pending;
}

void fair_look(struct fair *f)
{
	for (uint32_t i = 0; i < f->n_users; i++)
		f->users[i].seen = false;
}

void fair_competes(struct fair_user *u)
{
	u->seen = true;
}

static double virtual(const struct fair_user *u, double us)
{
	return us * FAIR_WEIGHT / u->weight;
}

void fair_looked(struct fair *f)
{
	double least = INFINITY, most = 0;

	for (uint32_t i = 0; i < f->n_users; i++) {
		const struct fair_user *u = &f->users[i];

		if (!u->competes || !u->seen)
			continue;
		least = MIN(least, now(u));
		most = MAX(most, u->vt);
	}
	if (isfinite(least))
		f->floor = MAX(f->floor, least);
	for (uint32_t i = 0; i < f->n_users; i++) {
		struct fair_user *u = &f->users[i];

		if (u->seen && !u->competes)
			u->vt = MAX(u->vt, f->floor);
		if (u->seen)
			u->vt = MAX(u->vt, most - virtual(u, FAIR_OWED_US));
		u->competes = u->seen;
	}
}

/*
 * What each row takes, in us as far as pace knows and else in proportion.
 * Returns the sum. Never 0: who has a row has used something.
 */
static double price(const struct pace *pace, const struct fair_row *rows, uint32_t n, double *ret)
{
	const double context = pace->context_us / MAX(pace->token_us, 1.0) /
			       PACE_CONTEXT; /* b / a */
	double decoding = 0, decode_us, token_us, sum = 0;
	uint32_t n_decoding = 0;

	assert(n <= STEP_ROWS_MAX);
	for (uint32_t i = 0; i < n; i++) {
		ret[i] = rows[i].n_tokens * (1 + context * rows[i].at);
		decoding += rows[i].decodes ? ret[i] : 0;
		n_decoding += rows[i].decodes;
	}
	decode_us = MAX(pace_decode_us(pace, n_decoding), (double)n_decoding);
	token_us = MAX(n_decoding > 0 ? pace->token_us : pace->whole_us, 1.0);
	for (uint32_t i = 0; i < n; i++) {
		ret[i] *= rows[i].decodes ? decode_us / decoding : token_us;
		ret[i] = MAX(ret[i],
			     1.0); /* of tokens that were there already, only their telling */
		sum += ret[i];
	}
	return sum;
}

void fair_expect_nothing(struct fair *f)
{
	for (uint32_t i = 0; i < f->n_users; i++)
		f->users[i].pending = 0;
}

void fair_expect(const struct pace *pace, const struct fair_row *rows, uint32_t n_rows)
{
	double us[STEP_ROWS_MAX];

	price(pace, rows, n_rows, us);
	for (uint32_t i = 0; i < n_rows; i++)
		rows[i].user->pending += virtual(rows[i].user, us[i]);
}

void fair_charge(struct fair *f, const struct pace *pace, const struct fair_row *rows,
		 uint32_t n_rows, uint32_t device_us)
{
	double us[STEP_ROWS_MAX];
	const double measured_us = MAX(device_us, 1u);
	const double sum = price(pace, rows, n_rows, us);

	for (uint32_t i = 0; i < n_rows; i++) {
		const double share_us = us[i] / sum * measured_us;

		rows[i].user->used_us += share_us;
		rows[i].user->vt += virtual(rows[i].user, share_us);
	}
	f->measured_us += n_rows > 0 ? measured_us : 0;
}

bool fair_before(const struct fair_user *a, const struct fair_user *b)
{
	return now(a) < now(b);
}

double fair_lead_us(const struct fair_user *a, const struct fair_user *b)
{
	return (now(a) - now(b)) * a->weight / FAIR_WEIGHT;
}
