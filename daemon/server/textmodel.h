/*
 * The text side of a model directory: what its config says, tokenizer, chat
 * layout, names, stop ids and sampler defaults. Immutable once open: the
 * worker and the loop may use it at once.
 */
#pragma once

#include "client/wire/span.h"
#include "client/wire/step.h"
#include "daemon/base/settings.h"
#include "daemon/exec/weights/config.h"
#include "daemon/text/chat.h"

/* SAMPLER(member, "Key" of the setting, value if nobody says anything) */
#define TEXTMODEL_SAMPLERS(SAMPLER)                                                                \
	SAMPLER(temperature, "Temperature", 1)                                                     \
	SAMPLER(top_k, "TopK", 0)                                                                  \
	SAMPLER(top_p, "TopP", 1)                                                                  \
	SAMPLER(min_p, "MinP", 0)                                                                  \
	SAMPLER(repetition_penalty, "RepetitionPenalty", 1)                                        \
	SAMPLER(frequency_penalty, "FrequencyPenalty", 0)                                          \
	SAMPLER(presence_penalty, "PresencePenalty", 0)

/* A value and where it came from: "steamd", "generation_config.json", or a setting's origin. */
struct textmodel_default {
	double value;
	const char *origin; /* valid while the settings are */
};

struct textmodel_defaults {
#define TEXTMODEL_DEFAULT(member, key, builtin) struct textmodel_default member;
	TEXTMODEL_SAMPLERS(TEXTMODEL_DEFAULT)
#undef TEXTMODEL_DEFAULT
};

struct textmodel {
	char *dir, *base; /* base: the directory's last part */
	uint64_t stamp;	  /* textmodel_stamp() when it was opened */
	struct config config;
	struct generation_config generation;
	uint64_t file_bytes, parameters, active_parameters;
	struct tokenizer *tokenizer;
	uint32_t vocab_real;		    /* ids from here on are padding */
	uint64_t vocab_sum;		    /* of all tokens' bytes: ids mean the same where it is the same; not 0 */
	enum chat_layout detected;
	const char *template_warning;	    /* static; NULL: the template is known */
	uint32_t stop_ids[STEP_STOP_IDS_MAX], n_stop_ids; /* of raw completion; the chat's follow */
	uint32_t n_chat_stop_ids;	    /* all of them */
};

/*
 * Opens @dir: checks every header of the checkpoint, reads the tokenizer and
 * the template. Blocks, for seconds where the tokenizer is large.
 *
 * Returns 0; or the error of what was wrong with one sentence: file, found,
 * wanted (-EBADMSG, -ENOTSUP, -ENOENT, -ENOMEM or errno of reading).
 */
int textmodel_open(const char *dir, struct textmodel **ret, struct err *err);
struct textmodel *textmodel_free(struct textmodel *m);

/* Changes when a file in @dir is written, replaced, added or removed; from names, sizes and times alone. */
uint64_t textmodel_stamp(const char *dir);

/* The layout in force: setting ChatTemplate, or the one detected. *@ret_warning: NULL or a sentence. */
enum chat_layout textmodel_layout(const struct textmodel *m, const struct settings *s,
				  const char **ret_warning);

/* generation_config.json overlaid by the settings. */
void textmodel_defaults(const struct textmodel *m, const struct settings *s,
			struct textmodel_defaults *ret);

/* What clients call it; a name or alias compares exactly. */
const char *textmodel_name(const struct textmodel *m, const struct settings *s);
bool textmodel_is_named(const struct textmodel *m, const struct settings *s, struct span name);

static inline void textmodel_freep(struct textmodel **m)
{
	*m = textmodel_free(*m);
}
