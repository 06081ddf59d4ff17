/* Words, merges and markers of the made-up tokenizer, and their JSON. */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "client/wire/ownership.h"
#include "tests/bench/model-text.h"

#define WORDS_MAX 2048
#define TOKEN_MAX 64

/* Written with a space in front, which is how they stand in text. */
static const char words[] =
	"the of and to in a is that it was for on are as with his they be at one have this from or "
	"had by hot but some what there we can out other were all your when up use word how said "
	"an "
	"each she which do their time if will way about many then them would write like so these "
	"her "
	"long make thing see him two has look more day could go come did my sound no most number "
	"who "
	"over know water than call first people may down side been now find any new work part take "
	"get place made live where after back little only round man year came show every good me "
	"give our under name very through just form great think say help low line before turn "
	"cause "
	"same mean differ move right boy old too does tell sentence set three want air well also "
	"play "
	"small end put home read hand port large spell add even land here must big high such "
	"follow "
	"act why ask men change went light kind off need house picture try us again animal point "
	"mother world near build self earth father head stand own page should country found answer "
	"school grow study still learn plant cover food sun four thought let keep eye never last "
	"door "
	"between city tree cross since hard start might story saw far sea draw left late run while "
	"press close night real life few stop open seem together next white children begin got "
	"walk "
	"example ease paper often always music those both mark book letter until mile river car "
	"feet "
	"care second group carry took rain eat room friend began idea fish mountain north once "
	"base "
	"hear horse cut sure watch color face wood main enough plain girl usual young ready above "
	"ever "
	"red list though feel talk bird soon body dog family direct pose leave song measure state "
	"product black short numeral class wind question happen complete ship area half rock order "
	"fire south problem piece told knew pass farm top whole king size heard best hour better "
	"true "
	"during hundred remember step early hold west ground interest reach fast five sing listen "
	"six "
	"table travel less morning ten simple several vowel toward war lay against pattern slow "
	"center "
	"love person money serve appear road map science rule govern pull cold notice voice fall "
	"power "
	"town fine certain fly unit lead cry dark machine note wait plan figure star box noun "
	"field "
	"rest correct able pound done beauty drive stood contain front teach week final gave green "
	"quick "
	"develop sleep warm free minute strong special mind behind clear tail produce fact street "
	"inch "
	"lot nothing course stay wheel full force blue object decide surface deep moon island foot "
	"yet "
	"busy test record boat common gold possible plane age dry wonder laugh thousand ago ran "
	"check "
	"game shape yes miss heat snow bed bring sit perhaps fill east weight language among";

static const struct {
	const char *content;
	bool special;
} markers[] = {
	{ "<|endoftext|>", true },
	{ "[MASK]", true },
	{ "[gMASK]", true },
	{ "[sMASK]", true },
	{ "<sop>", true },
	{ "<eop>", true },
	{ "<|system|>", true },
	{ "<|user|>", true },
	{ "<|assistant|>", true },
	{ "<|observation|>", true },
	{ "<|begin_of_image|>", true },
	{ "<|end_of_image|>", true },
	{ "<|begin_of_video|>", true },
	{ "<|end_of_video|>", true },
	{ "<|begin_of_audio|>", true },
	{ "<|end_of_audio|>", true },
	{ "<|begin_of_transcription|>", true },
	{ "<|end_of_transcription|>", true },
	{ "<|code_prefix|>", true },
	{ "<|code_middle|>", true },
	{ "<|code_suffix|>", true },
	{ "<think>", false },
	{ "</think>", false },
	{ "<tool_call>", false },
	{ "</tool_call>", false },
	{ "<tool_response>", false },
	{ "</tool_response>", false },
	{ "<arg_key>", false },
	{ "</arg_key>", false },
	{ "<arg_value>", false },
	{ "</arg_value>", false },
	{ "/nothink", true },
	{ "<|begin_of_box|>", false },
	{ "<|end_of_box|>", false },
	{ "<|image|>", false },
	{ "<|video|>", false },
};

static const char pattern[] =
	"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "
	"?[^\\\\s"
	"\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+";

static const char chat_template[] =
	"{#- Prompt layout of the 4.5 / 4.6 generation; independent wording. -#}\n"
	"{%- macro flat(x) -%}\n"
	"  {%- if x is string or x is mapping or x is not iterable -%}\n"
	"    {{- x -}}\n"
	"  {%- else -%}\n"
	"    {%- for part in x -%}\n"
	"      {%- if part is string -%}{{- part -}}\n"
	"      {%- elif part is mapping and part.type == 'text' -%}{{- part.text -}}\n"
	"      {%- endif -%}\n"
	"    {%- endfor -%}\n"
	"  {%- endif -%}\n"
	"{%- endmacro -%}\n"
	"{%- set quiet = enable_thinking is defined and not enable_thinking -%}\n"
	"{%- set mark = namespace(user=-1) -%}\n"
	"{%- for msg in messages if msg.role == 'user' -%}{%- set mark.user = -2 -%}{%- end"
	"for -%}\n"
	"{%- if mark.user == -2 -%}\n"
	"  {%- for msg in messages -%}{%- if msg.role == 'user' -%}{%- set mark.user = loop"
	".index0 -%}{%- endif -%}{%- endfor -%}\n"
	"{%- endif -%}\n"
	"{{- '[gMASK]<sop>' -}}\n"
	"{%- if tools -%}\n"
	"  {{- '<|system|>\\n# Tools\\n\\nYou may call one or more functions to assist with"
	" the user query.\\n\\nYou are provided with function signatures within <tools></to"
	"ols> XML tags:\\n<tools>\\n' -}}\n"
	"  {%- for t in tools -%}{{- (t | tojson(ensure_ascii=False)) ~ '\\n' -}}{%- endfor"
	" -%}\n"
	"  {{- '</tools>\\n\\nFor each function call, output the function name and argument"
	"s within the following XML format:\\n<tool_call>{function-name}\\n' -}}\n"
	"  {%- for n in [1, 2] -%}{{- '<arg_key>{arg-key-' ~ n ~ '}</arg_key>\\n<arg_value>"
	"{arg-value-' ~ n ~ '}</arg_value>\\n' -}}{%- endfor -%}\n"
	"  {{- '...\\n</tool_call>' -}}\n"
	"{%- endif -%}\n"
	"{%- for msg in messages -%}\n"
	"  {%- set role = msg.role -%}\n"
	"  {%- if role == 'system' -%}\n"
	"    {{- '<|system|>\\n' ~ flat(msg.content) -}}\n"
	"  {%- elif role == 'user' -%}\n"
	"    {%- set body = flat(msg.content) -%}\n"
	"    {{- '<|user|>\\n' ~ body -}}\n"
	"    {%- if quiet and not body.endswith('/nothink') -%}{{- '/nothink' -}}{%- endif "
	"-%}\n"
	"  {%- elif role == 'assistant' -%}\n"
	"    {%- set body = flat(msg.content) -%}\n"
	"    {%- set thought = '' -%}\n"
	"    {%- if msg.reasoning_content is string -%}\n"
	"      {%- set thought = msg.reasoning_content -%}\n"
	"    {%- elif '</think>' in body -%}\n"
	"      {%- set pieces = body.split('</think>') -%}\n"
	"      {%- set thought = pieces[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n')"
	" -%}\n"
	"      {%- set body = pieces[-1].lstrip('\\n') -%}\n"
	"    {%- endif -%}\n"
	"    {{- '<|assistant|>\\n<think>' -}}\n"
	"    {%- if thought and loop.index0 > mark.user -%}{{- thought.strip() -}}{%- endif"
	" -%}\n"
	"    {{- '</think>' -}}\n"
	"    {%- if body.strip() -%}{{- '\\n' ~ body.strip() -}}{%- endif -%}\n"
	"    {%- for call in (msg.tool_calls or []) -%}\n"
	"      {%- set fn = call.function if call.function else call -%}\n"
	"      {{- '\\n<tool_call>' ~ fn.name ~ '\\n' -}}\n"
	"      {%- for pair in (fn.arguments or {}).items() -%}\n"
	"        {{- '<arg_key>' ~ pair[0] ~ '</arg_key>\\n<arg_value>' -}}\n"
	"        {%- if pair[1] is string -%}{{- pair[1] -}}{%- else -%}{{- pair[1] | tojso"
	"n(ensure_ascii=False) -}}{%- endif -%}\n"
	"        {{- '</arg_value>\\n' -}}\n"
	"      {%- endfor -%}\n"
	"      {{- '</tool_call>' -}}\n"
	"    {%- endfor -%}\n"
	"  {%- elif role == 'tool' -%}\n"
	"    {%- if msg.content is string -%}\n"
	"      {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|obse"
	"rvation|>' -}}{%- endif -%}\n"
	"      {{- '\\n<tool_response>\\n' ~ msg.content ~ '\\n</tool_response>' -}}\n"
	"    {%- else -%}\n"
	"      {{- '<|observation|>' -}}\n"
	"      {%- for item in msg.content -%}\n"
	"        {{- '\\n<tool_response>\\n' ~ (item.output if item.output is defined else "
	"item) ~ '\\n</tool_response>' -}}\n"
	"      {%- endfor -%}\n"
	"    {%- endif -%}\n"
	"  {%- endif -%}\n"
	"{%- endfor -%}\n"
	"{%- if add_generation_prompt -%}\n"
	"  {{- '<|assistant|>' -}}\n"
	"  {%- if quiet -%}{{- '\\n<think></think>' -}}{%- endif -%}\n"
	"{%- endif -%}\n";

/* A merge: its two halves, which joined are the token's text. A space is written as U+0120. */
struct merge {
	char left[TOKEN_MAX], right[8];
};

struct words {
	struct merge merges[WORDS_MAX];
	uint32_t n;
};

static bool has(const struct words *w, const char *left, const char *right)
{
	for (uint32_t i = 0; i < w->n; i++)
		if (strcmp(w->merges[i].left, left) == 0 && strcmp(w->merges[i].right, right) == 0)
			return true;
	return false;
}

/* The chain that builds " word" from its left: each prefix is a token. */
static void add_word(struct words *w, const char *word, size_t len)
{
	char left[TOKEN_MAX] = "Ġ", right[2] = { 0 };

	for (size_t i = 0; i < len && strlen(left) + 2 < TOKEN_MAX; i++) {
		right[0] = word[i];
		if (!has(w, left, right) && w->n < WORDS_MAX) {
			strcpy(w->merges[w->n].left, left);
			strcpy(w->merges[w->n++].right, right);
		}
		strcat(left, right);
	}
}

static const struct words *all_words(void)
{
	static struct words w;
	const char *at = words;

	if (w.n)
		return &w;
	while (*at) {
		const size_t len = strcspn(at, " ");

		add_word(&w, at, len);
		at += len + (at[len] == ' ');
	}
	return &w;
}

uint32_t model_text_tokens(void)
{
	return 256 + all_words()->n + ARRAY_SIZE(markers);
}

uint32_t model_text_marker(const char *content)
{
	for (uint32_t i = 0; i < ARRAY_SIZE(markers); i++)
		if (strcmp(markers[i].content, content) == 0)
			return 256 + all_words()->n + i;
	return UINT32_MAX;
}

static bool is_printed(int byte)
{
	return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

/* Bytes as byte-level tokenizers write them: printable ones as they are, the others from U+0100. */
static void write_bytes(FILE *f)
{
	uint32_t id = 0, moved = 0x100;

	for (int pass = 0; pass < 2; pass++)
		for (int byte = 0; byte < 256; byte++) {
			uint32_t c = (uint32_t)byte;

			if (is_printed(byte) != (pass == 0))
				continue;
			if (pass == 1)
				c = moved++;
			if (c < 0x80)
				fprintf(f, "%s\"%s%c\": %u", id ? ", " : "",
					c == '"' || c == '\\' ? "\\" : "", (int)c, id);
			else
				fprintf(f, ", \"%c%c\": %u", (int)(0xc0 | c >> 6),
					(int)(0x80 | (c & 0x3f)), id);
			id++;
		}
}

static void write_tokenizer(FILE *f)
{
	const struct words *w = all_words();

	fprintf(f, "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, "
		   "\"added_tokens\": [\n");
	for (uint32_t i = 0; i < ARRAY_SIZE(markers); i++)
		fprintf(f,
			"{\"id\": %u, \"content\": \"%s\", \"single_word\": false, \"lstrip\": "
			"false, "
			"\"rstrip\": false, \"normalized\": false, \"special\": %s}%s\n",
			256 + w->n + i, markers[i].content, markers[i].special ? "true" : "false",
			i + 1 < ARRAY_SIZE(markers) ? "," : "");
	fprintf(f,
		"], \"normalizer\": null,\n"
		"\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": "
		"\"Split\", "
		"\"pattern\": {\"Regex\": \"%s\"}, \"behavior\": \"Isolated\", \"invert\": false}, "
		"{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
		"\"use_regex\": false}]},\n",
		pattern);
	fprintf(f, "\"post_processor\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
		   "\"trim_offsets\": false, \"use_regex\": false},\n"
		   "\"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, "
		   "\"trim_offsets\": true, "
		   "\"use_regex\": true},\n"
		   "\"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, "
		   "\"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, "
		   "\"fuse_unk\": false, "
		   "\"byte_fallback\": false, \"ignore_merges\": true,\n\"vocab\": {");
	write_bytes(f);
	for (uint32_t i = 0; i < w->n; i++)
		fprintf(f, ",\n\"%s%s\": %u", w->merges[i].left, w->merges[i].right, 256 + i);
	fprintf(f, "},\n\"merges\": [");
	for (uint32_t i = 0; i < w->n; i++)
		fprintf(f, "%s[\"%s\", \"%s\"]", i ? ",\n" : "", w->merges[i].left,
			w->merges[i].right);
	fprintf(f, "]}}\n");
}

static void write_tokenizer_config(FILE *f)
{
	fprintf(f, "{\"added_tokens_decoder\": {\n");
	for (uint32_t i = 0; i < ARRAY_SIZE(markers); i++)
		fprintf(f,
			"\"%u\": {\"content\": \"%s\", \"lstrip\": false, \"normalized\": false, "
			"\"rstrip\": false, \"single_word\": false, \"special\": %s}%s\n",
			256 + all_words()->n + i, markers[i].content,
			markers[i].special ? "true" : "false",
			i + 1 < ARRAY_SIZE(markers) ? "," : "");
	fprintf(f, "}, \"eos_token\": \"<|endoftext|>\", \"pad_token\": \"<|endoftext|>\", "
		   "\"clean_up_tokenization_spaces\": false, \"do_lower_case\": false, "
		   "\"model_max_length\": 128000, \"padding_side\": \"left\", "
		   "\"tokenizer_class\": \"PreTrainedTokenizerFast\"}\n");
}

static void write_template(FILE *f)
{
	fputs(chat_template, f);
}

static int write_file(const char *dir, const char *name, void (*write_it)(FILE *f))
{
	_cleanup_(freep) char *path = NULL;
	FILE *f;
	bool failed;

	if (asprintf(&path, "%s/%s", dir, name) < 0)
		return path = NULL, -ENOMEM;
	f = fopen(path, "we");
	if (!f)
		return -errno;
	write_it(f);
	failed = ferror(f);
	return fclose(f) != 0 || failed ? -EIO : 0;
}

int model_text_write(const char *dir)
{
	int r;

	r = write_file(dir, "tokenizer.json", write_tokenizer);
	if (r == 0)
		r = write_file(dir, "tokenizer_config.json", write_tokenizer_config);
	return r < 0 ? r : write_file(dir, "chat_template.jinja", write_template);
}
