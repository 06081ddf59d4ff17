/*
 * How much of the prompts a step takes while others wait for their next token.
 *
 * A step with prompts may take twice the time of one without, or what the
 * setting TokenGap allows, whichever is more. The time of decoding is taken
 * off, and the rest spent on tokens of prompts. What things cost is learnt from
 * the executor's own measurements (step_result.device_us):
 *
 *	step_us		a step of decoding rows alone, whatever their number
 *	rows_us		what PACE_ROWS such rows add to it. Where prompts keep coming,
 *			every PACE_LOOK_STEPS'th step with decoding rows goes without
 *			them, so that both stay known
 *	token_us	what a token of a prompt adds to a step
 *	context_us	what it adds more for every PACE_CONTEXT tokens before it
 *
 * All move half of the way to what the newest step says, by the least change
 * that does so (normalised least mean squares). A price holds near
 * the number of tokens it was learnt at: the first tokens of a step are dearer
 * than those that follow, because they bring experts in. So a price learnt at a
 * small step errs to the safe side for a greater one, and a step has at most
 * twice the tokens of one whose result is known, whatever is in flight.
 *
 * At least PACE_TOKENS_LEAST are taken, whatever they cost: a prompt must come
 * on. A pause between tokens is hence at most the greatest of TokenGap, twice
 * the undisturbed pause, and the undisturbed pause with PACE_TOKENS_LEAST
 * tokens of a prompt.
 *
 * Where nothing decodes, a prompt has the whole step. Such steps teach nothing
 * but what a token takes in them (whole_us), which is less; a step counts the
 * more the more tokens it has.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define PACE_TOKENS_LEAST 4
#define PACE_CONTEXT 4096
#define PACE_ROWS 8
#define PACE_LOOK_STEPS 32

/* What is in a step. */
struct pace_load {
	uint32_t n_decoding; /* rows that go on with answers */
	uint32_t n_tokens;   /* of prompts */
	double contexts;     /* sum over those tokens of the tokens before their piece, / PACE_CONTEXT */
};

/* Zeroed, it knows nothing and begins with PACE_TOKENS_LEAST. */
struct pace {
	double step_us, rows_us; /* both 0: no step of decoding rows alone was seen yet */
	double token_us, context_us;
	double whole_us; /* of a token in a step without decoding rows; 0: not seen yet */
	double n_whole;	 /* tokens of the steps that it was learnt at, on average */
	uint32_t n_learnt; /* tokens of a step that the prices hold for */
	uint32_t n_mixed;  /* steps pushed since the last of decoding rows alone */
};

/* What is left of one step's time. */
struct pace_budget {
	const struct pace *pace;
	double left_us, token_us; /* token_us: of a token without context */
	uint32_t n_taken, n_most; /* tokens */
};

/* A piece of a prompt, its first token at position @at, is in the step. */
void pace_add(struct pace_load *load, uint32_t at, uint32_t n_tokens);
/* The step was pushed. */
void pace_pushed(struct pace *p, const struct pace_load *load);
/* It took @device_us. */
void pace_learn(struct pace *p, const struct pace_load *load, uint32_t device_us);

/* Whether the next step is to go without prompts if anything decodes. */
bool pace_wants_look(const struct pace *p);
/* What a step of @n_decoding rows alone takes; 0: not known. */
double pace_decode_us(const struct pace *p, uint32_t n_decoding);
/* What @n_tokens of a prompt take where nothing decodes, the first at position @at; 0: not known. */
double pace_prompt_us(const struct pace *p, uint32_t at, uint32_t n_tokens);
/* What a step with @load takes at most, by what is known; 0: nothing is. */
double pace_step_us(const struct pace *p, const struct pace_load *load);
/* For a step with @n_decoding such rows, which others wait for. @gap_us: TokenGap */
struct pace_budget pace_budget(const struct pace *p, uint32_t n_decoding, uint64_t gap_us);
/* How many of @n_tokens of a prompt, the first at position @at, the step takes; 0: it is full. */
uint32_t pace_take(struct pace_budget *b, uint32_t at, uint32_t n_tokens);
