/*
 * SharedPrompts=: the system prompts, and other beginnings of conversations,
 * that an administrator marked, read from a directory into token ids.
 */
#pragma once

#include "daemon/kv/kvcache.h"
#include "daemon/text/chat.h"

#define SHAREDPROMPTS_MAX 64
#define SHAREDPROMPTS_BYTES_MAX (1u << 20) /* of one */

struct sharedprompts {
	struct kvcache_shared *at; /* by name; names and ids are its own */
	uint32_t n;
	char **refused; /* a sentence for each file that was not taken */
	uint32_t n_refused;
};

/*
 * Reads what is in @dir ("": nothing):
 *
 *	NAME.txt	a system prompt; a last newline is not part of it
 *	NAME.json	a request's {"messages":[…], "tools":[…], …}, of which
 *			prompts are the continuation
 *
 * Only regular files are taken, and no symbolic links; they and the directory
 * must be of root or of this process's user, and nobody else may write to them.
 * Blocks. Returns 0, or -ENOMEM; what is wrong with a file is in ret->refused.
 */
int sharedprompts_read(const char *dir, const struct tokenizer *tokenizer, enum chat_layout layout,
		       struct sharedprompts **ret);
struct sharedprompts *sharedprompts_free(struct sharedprompts *s);

static inline void sharedprompts_freep(struct sharedprompts **s)
{
	*s = sharedprompts_free(*s);
}
