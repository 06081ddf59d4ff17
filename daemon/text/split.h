/*
 * The split pattern of the GLM tokenizers, scanned in one pass without
 * backtracking: text is cut into pieces that byte-pair encoding never joins.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* The one pattern this scanner is equal to, as the file writes it. */
#define SPLIT_PATTERN                                                                              \
	"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"                  \
	" ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/*
 * Where the piece that begins at @at ends.
 *
 * classes	unicode_classes()
 * text		valid UTF-8; its end is an end for the pattern
 * at		less than @len; a piece's beginning
 *
 * Scanning all of @text is linear in its length.
 */
size_t split_next(const uint8_t *classes, const char *text, size_t len, size_t at);
