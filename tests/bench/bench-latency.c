/* bench-latency SOCKET [ANSWERS [PROMPT_TOKENS [SECONDS]]]: prints what latency.h measures. */
#include <stdio.h>
#include <stdlib.h>

#include "client/wire/ownership.h"
#include "tests/bench/latency.h"

#define QUIET_S 10

int main(int argc, char **argv)
{
	struct latency_options o = {
		.n_streams = 4, .n_prompt_tokens = 16384, .quiet_s = QUIET_S, .disturbed_s = 60
	};
	struct latency l;
	struct err err = { 0 };

	if (argc < 2 || argc > 5) {
		fprintf(stderr,
			"usage: bench-latency SOCKET [ANSWERS [PROMPT_TOKENS [SECONDS]]]\n");
		return 64;
	}
	o.socket = argv[1];
	if (argc > 2)
		o.n_streams = (uint32_t)strtoul(argv[2], NULL, 10);
	if (argc > 3)
		o.n_prompt_tokens = (uint32_t)strtoul(argv[3], NULL, 10);
	if (argc > 4)
		o.disturbed_s = strtod(argv[4], NULL);
	if (latency_measure(&o, &l, &err) < 0) {
		fprintf(stderr, "bench-latency: %s\n", err.text);
		return 1;
	}
	printf("%u answers, pauses between tokens: p50 %.1f ms, p99 %.1f ms (of %u)\n", o.n_streams,
	       l.quiet_p50_ms, l.quiet_p99_ms, l.n_quiet);
	printf("while a prompt of %u tokens comes in: p50 %.1f ms, p99 %.1f ms (of %u), %.2f of "
	       "the "
	       "undisturbed p99\n",
	       o.n_prompt_tokens, l.disturbed_p50_ms, l.disturbed_p99_ms, l.n_disturbed,
	       l.disturbed_p99_ms / l.quiet_p99_ms);
	printf("the prompt: %u tokens in %.1f s, %.1f tokens/s\n", l.n_read, l.read_s,
	       l.n_read / l.read_s);
	return 0;
}
