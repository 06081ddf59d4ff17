/*
 * Conversations to prompts: the layouts of the GLM-4.5, 4.6 and 4.7 chat
 * templates, written in C. A rendering is a list of pieces: markers, each
 * exactly one added token that the renderer wrote, and text between them, in
 * which no added token is recognised, so that no user can forge a turn.
 */
#pragma once

#include <jansson.h>

#include "daemon/text/tokenizer.h"

enum chat_layout { CHAT_NONE, CHAT_GLM45, CHAT_GLM46, CHAT_GLM47 };

/* "none", "glm45", "glm46", "glm47" */
const char *chat_layout_name(enum chat_layout layout);
int chat_layout_parse(const char *name, enum chat_layout *ret); /* 0 or -EINVAL */

/*
 * Chooses the layout from the text of a model's template (chat_template.jinja,
 * or "chat_template" of tokenizer_config.json; NULL: there is none) by its
 * features. *@ret_warning gets a static sentence if it is only the nearest
 * one, or says why chat is not possible; NULL if it is known for certain.
 */
enum chat_layout chat_detect(const char *template_text, const char **ret_warning);

/* Reads the template of a model directory: malloc'd text, or NULL in *@ret if there is none. */
int chat_template_read(const char *dir, char **ret, struct err *err);

struct chat_piece {
	size_t begin, len; /* in the rendering's text */
	bool marker;	   /* an added token; never two in one piece, never text of a client */
};

struct chat_rendering {
	char *text; /* UTF-8 with embedded NULs possible; terminated */
	size_t len;
	struct chat_piece *pieces; /* in order, without gaps */
	size_t n_pieces;
	bool thinking;	 /* the prompt leaves thinking to the model, or has opened it */
	bool in_reasoning; /* the prompt ends inside <think> (4.7) */
	/*
	 * Arguments that the tools declare to be strings, each as function and
	 * argument, both ended by NUL: what tells "5" from 5 in a call.
	 */
	char *string_args;
	size_t string_args_len;
};
void chat_rendering_deinit(struct chat_rendering *r);

/*
 * Renders {"messages":[…], "tools":[…], "enable_thinking":bool,
 * "add_generation_prompt":bool, "clear_thinking":bool, …}. A missing
 * add_generation_prompt is undefined, as in the template. Null members of
 * messages are removed from @conversation.
 *
 * Returns 0; -EBADMSG: not a conversation, or one the template rejects, with
 * a sentence such as "messages[2].role is 7; a string is wanted"; -ENOTSUP for
 * CHAT_NONE; -ENOMEM.
 */
int chat_render(enum chat_layout layout, json_t *conversation, struct chat_rendering *ret,
		struct err *err);

/* The same from JSON text; large integers and floats are kept as written. */
int chat_render_text(enum chat_layout layout, struct span conversation, struct chat_rendering *ret,
		     struct err *err);

/* The added token that a piece is; UINT32_MAX: it is text, or the tokenizer lacks it. */
uint32_t chat_marker_id(const struct chat_rendering *r, const struct chat_piece *piece,
			const struct tokenizer *t);

/*
 * Appends the ids: a marker is the added token's id (or text like the rest, if
 * the tokenizer lacks it); text between two markers is encoded as a whole, with no added token.
 */
int chat_encode(const struct chat_rendering *r, const struct tokenizer *t, struct ids *ids);
