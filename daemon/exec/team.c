/*
 * A call is two barriers of the ranks' own (kernels/comm.h): before the first
 * rank 0 has said what is to be done, behind the second all have done it.
 */
#include "daemon/exec/team.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "daemon/exec/weights/memplan.h"

struct member {
	struct team *team;
	struct comm *comm;
	struct dev *dev;
	struct weights *weights;
	struct model *model;
	struct mirror *mirror; /* of its heads in the arena; NULL: it computes there */
	pthread_t thread;      /* not of rank 0 */
	bool is_started;
	_Atomic int
		r; /* of the last call; read by rank 0, who may not have waited if another failed */
};

struct team {
	uint32_t n_ranks;
	enum isa isa;
	uint32_t n_threads;
	uint32_t least_pages; /* of a mirror */
	/* written by rank 0 before the first barrier */
	bool leaving, is_joined;
	int (*run)(struct team *team, uint32_t rank, void *userdata);
	void *userdata;
	struct member members[SHARE_RANKS_MAX];
};

static void (*on_loss)(uint32_t rank);

void team_on_loss(void (*lost)(uint32_t rank))
{
	on_loss = lost;
}

static uint32_t rank_of(const struct member *m)
{
	return (uint32_t)(m - m->team->members);
}

static void *serve(void *userdata)
{
	struct member *m = userdata;
	struct team *team = m->team;

	while (comm_barrier(m->comm) == 0 && !team->leaving) {
		m->r = team->run(team, rank_of(m), team->userdata);
		if (comm_barrier(m->comm) < 0)
			break;
	}
	return NULL;
}

int team_run(struct team *team, int (*run)(struct team *team, uint32_t rank, void *userdata),
	     void *userdata)
{
	struct member *own = &team->members[0];
	int r;

	team->run = run;
	team->userdata = userdata;
	for (uint32_t i = 0; i < team->n_ranks; i++)
		team->members[i].r = 0;
	r = comm_barrier(own->comm);
	if (r < 0)
		return r;
	own->r = run(team, 0, userdata);
	r = comm_barrier(own->comm);
	/* -EIO may be what the failure of another looks like */
	for (uint32_t i = team->n_ranks; i-- > 0;) {
		const int of_rank = team->members[i].r;

		if (of_rank < 0 && (of_rank != -EIO || r == 0))
			r = of_rank;
	}
	return r;
}

static int open_dev(struct team *team, uint32_t rank, void *userdata)
{
	const uint32_t first = rank * team->n_threads / team->n_ranks;
	const uint32_t n = (rank + 1) * team->n_threads / team->n_ranks - first;

	(void)userdata;
	return dev_open_rank(team->isa, team->n_threads ? MAX(n, 1) : 0, rank, team->n_ranks,
			     &team->members[rank].dev);
}

static int start(struct member *m)
{
	char name[16];
	int r;

	r = pthread_create(&m->thread, NULL, serve, m);
	if (r)
		return -r;
	m->is_started = true;
	snprintf(name, sizeof(name), "rank %u", rank_of(m));
	pthread_setname_np(m->thread, name);
	return 0;
}

int team_open(enum isa isa, uint32_t n_threads, uint32_t n_ranks, struct team **ret)
{
	_cleanup_(team_closep) struct team *team = NULL;
	struct comm *comms[COMM_RANKS_MAX];
	int r;

	r = comm_open(n_ranks, comms);
	if (r < 0)
		return r;
	team = calloc(1, sizeof(*team));
	if (!team) {
		comm_close(comms[0]);
		return -ENOMEM;
	}
	team->n_ranks = n_ranks;
	team->isa = isa;
	team->n_threads = n_threads;
	for (uint32_t i = 0; i < n_ranks; i++) {
		team->members[i].team = team;
		team->members[i].comm = comms[i];
	}
	/* before the first device is opened, which moves this thread to its node */
	for (uint32_t i = 1; r == 0 && i < n_ranks; i++)
		r = start(&team->members[i]);
	if (r < 0) {
		comm_fail(comms[0]);
		return r;
	}
	r = team_run(team, open_dev, NULL);
	if (r < 0)
		return r;
	*ret = steal(team);
	return 0;
}

struct team *team_close(struct team *team)
{
	if (!team)
		return NULL;
	team->leaving = true;
	comm_barrier(team->members[0].comm); /* those who failed have left already */
	for (uint32_t i = 1; i < team->n_ranks; i++)
		if (team->members[i].is_started)
			pthread_join(team->members[i].thread, NULL);
	for (uint32_t i = team->n_ranks; i-- > 0;) {
		model_free(team->members[i].model);
		mirror_free(team->members[i].mirror);
		weights_free(team->members[i].weights);
		dev_close(team->members[i].dev);
	}
	comm_close(team->members[0].comm);
	free(team);
	return NULL;
}

static void list_weights(const struct team *team, struct weights **ret)
{
	for (uint32_t i = 0; i < team->n_ranks; i++)
		ret[i] = team->members[i].weights;
}

int team_load(struct team *team, const struct checkpoint *c, weights_progress_fn progress,
	      void *userdata, struct err *err)
{
	struct weights *ranks[SHARE_RANKS_MAX];
	struct dev *devs[SHARE_RANKS_MAX];
	int r;

	for (uint32_t i = 0; i < team->n_ranks; i++)
		devs[i] = team->members[i].dev;
	r = weights_load_ranks(c, devs, team->n_ranks, progress, userdata, ranks, err);
	for (uint32_t i = 0; r == 0 && i < team->n_ranks; i++)
		team->members[i].weights = ranks[i];
	return r;
}

void team_drop(struct team *team)
{
	for (uint32_t i = 0; i < team->n_ranks; i++)
		weights_drop(team->members[i].weights);
}

int team_reload(struct team *team, const struct checkpoint *c, weights_progress_fn progress,
		void *userdata, struct err *err)
{
	struct weights *ranks[SHARE_RANKS_MAX];

	list_weights(team, ranks);
	return weights_reload_ranks(ranks, c, progress, userdata, err);
}

/* Arguments of team_make_models(). */
struct making {
	const struct kv_cache *kv;
	uint32_t max_tokens, max_context;
	struct err *err; /* of rank 0 */
};

/* Of a page's heads that are this rank's. */
static size_t own_page_bytes(const struct kv_cache *kv)
{
	struct kv_cache own = *kv;

	own.page_heads = 0;
	return kv_page_bytes(&own);
}

static int make_model(struct team *team, uint32_t rank, void *userdata)
{
	struct member *m = &team->members[rank];
	const struct making *making = userdata;
	const struct share *s = &m->weights->share;
	struct kv_cache kv = kv_heads_of(making->kv, s->first_kv_head, s->kv_heads);
	struct err *err = rank == 0 ? making->err : NULL;
	int r = 0;

	m->model = model_free(m->model);
	m->mirror = mirror_free(m->mirror);
	if (!dev_is_host(m->dev)) {
		const struct kv_cache arena = kv;
		const struct mirror_size size = {
			.group_pages = memplan_group_pages(own_page_bytes(&kv), kv.n_pages),
			.least_pages = team->least_pages,
		};

		r = mirror_new(m->dev, &arena, &size, &m->mirror, &kv, err);
	}
	return r < 0 ? r
		     : model_new_rank(m->dev, m->weights, m->comm, &kv, making->max_tokens,
				      making->max_context, &m->model, err);
}

static int join(struct team *team, uint32_t rank, void *userdata)
{
	(void)userdata;
	return comm_join(team->members[rank].comm, model_stream(team->members[rank].model));
}

int team_make_models(struct team *team, const struct kv_cache *kv, uint32_t max_tokens,
		     uint32_t max_context, struct err *err)
{
	struct making making = { kv, max_tokens, max_context, err };
	int r;

	/* a move has two */
	team->least_pages = MAX((max_context + kv->page_tokens - 1) / kv->page_tokens, 2);
	r = team_run(team, make_model, &making);
	if (r < 0)
		return err && err->text[0] ? r : err_set(err, r, "a rank cannot make its model");
	if (team->is_joined || (team->n_ranks == 1 && !dev_is_host(team->members[0].dev)))
		return 0;
	r = team_run(team, join, NULL);
	if (r < 0)
		return err_set(err, r, "the ranks cannot speak to one another: %s", comm_why());
	team->is_joined = true;
	return 0;
}

/* Arguments of team_choose(). */
struct choosing {
	const char *dir;
	char *text; /* of rank 0 */
	size_t text_bytes;
};

static int choose(struct team *team, uint32_t rank, void *userdata)
{
	const struct choosing *choosing = userdata;
	char path[PATH_MAX], text[512];
	int r;

	if (choosing->dir && snprintf(path, sizeof(path), "%s/products-%u-of-%u", choosing->dir,
				      rank, team->n_ranks) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	r = model_choose(team->members[rank].model, choosing->dir ? path : NULL, text,
			 sizeof(text));
	if (r == 0 && rank == 0)
		snprintf(choosing->text, choosing->text_bytes, "%s", text);
	return r;
}

int team_choose(struct team *team, const char *dir, char *ret_text, size_t text_bytes)
{
	struct choosing choosing = { dir, ret_text, text_bytes };

	return team_run(team, choose, &choosing);
}

/* Arguments of model_forward() and model_logits(). */
struct batch {
	const uint32_t *ids, *out;
	const struct seq *seqs;
	uint32_t n_tokens, n_seqs, first, n_out;
	float *logits;
};

/* A failure in a pass, for which the other ranks may be waiting. */
static int lose(const struct member *m, int r)
{
	comm_fail(m->comm);
	if (rank_of(m) > 0 && !dev_is_host(m->dev) && on_loss)
		on_loss(rank_of(m));
	return r;
}

static int forward(struct team *team, uint32_t rank, void *userdata)
{
	const struct member *m = &team->members[rank];
	const struct batch *b = userdata;
	const struct seq *seqs = b->seqs;
	int r = 0;

	if (m->mirror)
		r = mirror_use(m->mirror, model_stream(m->model), b->seqs, b->n_seqs, &seqs);
	if (r == 0)
		r = model_forward(m->model, b->ids, b->n_tokens, seqs, b->n_seqs, b->out, b->n_out,
				  b->logits);
	return r < 0 && r != -EINVAL ? lose(m, r) : r;
}

int team_forward(struct team *team, const uint32_t *ids, uint32_t n_tokens, const struct seq *seqs,
		 uint32_t n_seqs, const uint32_t *out, uint32_t n_out, float *logits)
{
	struct batch b = {
		.ids = ids,
		.out = out,
		.seqs = seqs,
		.n_tokens = n_tokens,
		.n_seqs = n_seqs,
		.n_out = n_out,
		.logits = logits,
	};

	return team_run(team, forward, &b);
}

static int speak(struct team *team, uint32_t rank, void *userdata)
{
	const struct batch *b = userdata;

	const struct member *m = &team->members[rank];
	const int r = model_logits(m->model, b->first, b->n_out, b->logits);

	return r < 0 && r != -EINVAL ? lose(m, r) : r;
}

int team_logits(struct team *team, uint32_t first, uint32_t n, float *logits)
{
	struct batch b = { .first = first, .n_out = n, .logits = logits };

	return team_run(team, speak, &b);
}

bool team_has_mirrors(const struct team *team)
{
	return team->members[0].mirror;
}

struct moving {
	const struct step_move *moves;
	uint32_t n;
};

static int move(struct team *team, uint32_t rank, void *userdata)
{
	const struct member *m = &team->members[rank];
	const struct moving *moving = userdata;

	return mirror_move(m->mirror, model_stream(m->model), moving->moves, moving->n);
}

int team_move(struct team *team, const struct step_move *moves, uint32_t n)
{
	struct moving moving = { moves, n };

	return team_run(team, move, &moving);
}

uint32_t team_pages(const struct team *team)
{
	uint32_t n = UINT32_MAX;

	for (uint32_t i = 0; i < team->n_ranks; i++) {
		const struct mirror *m = team->members[i].mirror;

		if (m && mirror_is_short(m))
			n = MIN(n, mirror_frames(m));
	}
	return n;
}

static uint64_t least_bytes(const struct team *team, uint32_t rank)
{
	struct mirror_figures f;

	mirror_look(team->members[rank].mirror, &f, NULL, 0);
	return (team->least_pages * f.page_bytes + f.group_bytes - 1) / f.group_bytes *
	       f.group_bytes;
}

static int resize(struct team *team, uint32_t rank, void *userdata)
{
	const uint64_t bytes = *(const uint64_t *)userdata; /* of each rank */
	const struct member *m = &team->members[rank];
	const uint64_t least = least_bytes(team, rank);
	int r;

	r = mirror_resize(m->mirror, model_stream(m->model), bytes ? MAX(bytes, least) : 0);
	/* what there is does, if it is enough for one sequence */
	return r == -ENOMEM && mirror_frames(m->mirror) >= team->least_pages ? 0 : r;
}

int team_resize(struct team *team, uint64_t pool_bytes, struct err *err)
{
	uint64_t bytes = pool_bytes ? MAX(pool_bytes / team->n_ranks, 1) : 0;
	int r;

	if (!team_has_mirrors(team))
		return 0;
	r = team_run(team, resize, &bytes);
	for (uint32_t i = 0; r == -ENOMEM && i < team->n_ranks; i++) {
		struct mirror_figures f;

		mirror_look(team->members[i].mirror, &f, NULL, 0);
		if (f.frames < team->least_pages)
			return err_set(err, r,
				       "no memory on device %u for the KV cache: one context needs "
				       "%llu bytes there, %llu could be had",
				       i, (unsigned long long)least_bytes(team, i),
				       (unsigned long long)f.bytes);
	}
	return r < 0 ? err_wrap(err, r, "cannot resize the KV cache on the device") : 0;
}

struct team_pool team_pool(const struct team *team)
{
	struct team_pool pool = { 0 };

	for (uint32_t i = 0; i < team->n_ranks && team->members[i].mirror; i++) {
		struct mirror_figures f;

		mirror_look(team->members[i].mirror, &f, NULL, 0);
		pool.bytes += f.bytes;
		pool.least_bytes += least_bytes(team, i);
		pool.most_bytes += f.most_bytes;
		pool.group_bytes += f.group_bytes;
	}
	return pool;
}

void team_set_serving(struct team *team, bool serving)
{
	for (uint32_t i = 0; i < team->n_ranks; i++)
		dev_set_serving(team->members[i].dev, serving);
}

struct mirror *team_mirror(const struct team *team, uint32_t rank)
{
	return team->members[rank].mirror;
}

uint32_t team_ranks(const struct team *team)
{
	return team->n_ranks;
}

struct dev *team_dev(const struct team *team, uint32_t rank)
{
	return team->members[rank].dev;
}

struct weights *team_weights(const struct team *team, uint32_t rank)
{
	return team->members[rank].weights;
}

struct model *team_model(const struct team *team, uint32_t rank)
{
	return team->members[rank].model;
}
