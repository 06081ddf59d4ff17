/* What steps cost, and what one may still take. */
#include "daemon/sched/pace.h"

#include "client/wire/ownership.h"

/* A single step counts at most so many times what is known: the machine was busy or asleep. */
#define OUTLIER 4

void pace_add(struct pace_load *load, uint32_t at, uint32_t n_tokens)
{
	load->n_tokens += n_tokens;
	load->contexts += (double)n_tokens * at / PACE_CONTEXT;
}

void pace_pushed(struct pace *p, const struct pace_load *load)
{
	if (load->n_decoding == 0)
		return;
	p->n_mixed = load->n_tokens > 0 ? p->n_mixed + 1 : 0;
}

double pace_decode_us(const struct pace *p, uint32_t n_decoding)
{
	return n_decoding > 0 ? p->step_us + p->rows_us * n_decoding / PACE_ROWS : 0;
}

double pace_prompt_us(const struct pace *p, uint32_t at, uint32_t n_tokens)
{
	const double middle = at + n_tokens / 2.0;

	if (p->whole_us > 0)
		return n_tokens * p->whole_us;
	return n_tokens * (p->token_us + p->context_us * middle / PACE_CONTEXT);
}

double pace_step_us(const struct pace *p, const struct pace_load *load)
{
	return pace_decode_us(p, load->n_decoding) +
	       load->n_tokens * MAX(p->whole_us, p->token_us) + load->contexts * p->context_us;
}

static void learn_decoding(struct pace *p, uint32_t n_decoding, double us)
{
	const double n = (double)n_decoding / PACE_ROWS;
	const double known_us = pace_decode_us(p, n_decoding);
	double error_us = MAX(us, 1.0);

	if (known_us > 0)
		error_us = (MIN(error_us, OUTLIER * known_us) - known_us) / 2;
	p->step_us = MAX(p->step_us + error_us / (1 + n * n), 0.0);
	p->rows_us = MAX(p->rows_us + error_us * n / (1 + n * n), 0.0);
}

static void learn_prompts(struct pace *p, const struct pace_load *load, double us)
{
	const double n = load->n_tokens, c = load->contexts;
	const double known_us = n * p->token_us + c * p->context_us;
	double error_us;

	if (known_us <= 0) {
		p->token_us = us / n;
		return;
	}
	error_us = (MIN(us, OUTLIER * known_us) - known_us) / 2;
	p->token_us = MAX(p->token_us + error_us * n / (n * n + c * c), 0.0);
	p->context_us = MAX(p->context_us + error_us * c / (n * n + c * c), 0.0);
}

/* A step of few tokens says little: each of them is dearer there than among many. */
static void learn_whole(struct pace *p, uint32_t n_tokens, double us)
{
	const double part = n_tokens / (n_tokens + p->n_whole);

	if (p->whole_us > 0)
		us = MIN(us, OUTLIER * p->whole_us);
	p->whole_us += (us - p->whole_us) * part;
	p->n_whole += (n_tokens - p->n_whole) * part;
}

void pace_learn(struct pace *p, const struct pace_load *load, uint32_t device_us)
{
	if (load->n_decoding == 0) {
		/* nobody waited: a step of any size, whose prices say nothing of small ones */
		if (load->n_tokens > 0)
			learn_whole(p, load->n_tokens, (double)device_us / load->n_tokens);
		return;
	}
	if (load->n_tokens == 0) {
		learn_decoding(p, load->n_decoding, device_us);
		return;
	}
	learn_prompts(p, load, MAX(device_us - pace_decode_us(p, load->n_decoding), 0.0));
	/* a prompt's last tokens may be few: that is no reason to begin again */
	p->n_learnt = MAX(load->n_tokens, p->n_learnt / 2);
}

bool pace_wants_look(const struct pace *p)
{
	return p->n_mixed >= PACE_LOOK_STEPS || (pace_decode_us(p, 1) <= 0 && p->n_mixed > 0);
}

struct pace_budget pace_budget(const struct pace *p, uint32_t n_decoding, uint64_t gap_us)
{
	const double decode_us = pace_decode_us(p, n_decoding);

	/* where others only wait for the next step, and none was shared yet, it is like those without them */
	const bool whole = n_decoding == 0 && p->token_us <= 0;

	return (struct pace_budget){
		.pace = p,
		.left_us = MAX(decode_us, (double)gap_us - decode_us),
		.token_us = whole ? p->whole_us : p->token_us,
		.n_most = MAX(2 * (whole ? (uint32_t)p->n_whole : p->n_learnt),
			      (uint32_t)PACE_TOKENS_LEAST),
	};
}

uint32_t pace_take(struct pace_budget *b, uint32_t at, uint32_t n_tokens)
{
	const double price_us = b->token_us + b->pace->context_us * at / PACE_CONTEXT;
	const uint32_t least = b->n_taken < PACE_TOKENS_LEAST ? PACE_TOKENS_LEAST - b->n_taken : 0;
	uint32_t n = b->n_most - b->n_taken;

	if (price_us * n > b->left_us)
		n = b->left_us > 0 ? (uint32_t)(b->left_us / price_us) : 0;
	n = MIN(MAX(n, least), n_tokens);
	b->n_taken += n;
	b->left_us -= n * price_us;
	return n;
}
