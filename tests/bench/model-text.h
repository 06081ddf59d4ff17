/*
 * The small files of a made-up model: a byte-level tokenizer of common English
 * words with the markers of GLM behind them, and a chat template.
 */
#pragma once

#include <stdint.h>

/* Writes tokenizer.json, tokenizer_config.json and chat_template.jinja into @dir. */
int model_text_write(const char *dir);

/* Ids of the tokenizer: base tokens, then the markers. */
uint32_t model_text_tokens(void);
/* The id of a marker such as "<|user|>"; UINT32_MAX if there is none. */
uint32_t model_text_marker(const char *content);
