/* Headers that say who asks and from where, the route, the key. */
#include "client/gateway/entry.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <strings.h>

#include "client/gateway/keys.h"
#include "client/gateway/routes.h"

const char *entry_header(const struct exchange *x, const char *name)
{
	return MHD_lookup_connection_value(x->http, MHD_HEADER_KIND, name);
}

struct count {
	const char *name;
	unsigned n;
};

static enum MHD_Result count_name(void *userdata, enum MHD_ValueKind kind, const char *name,
				  const char *value)
{
	struct count *count = userdata;

	(void)kind, (void)value;
	count->n += strcasecmp(name, count->name) == 0;
	return MHD_YES;
}

static bool has_control(const char *value)
{
	for (; *value; value++)
		if (((unsigned char)*value < 0x20 && *value != '\t') || *value == 0x7f)
			return true;
	return false;
}

static enum MHD_Result look_at_field(void *userdata, enum MHD_ValueKind kind, const char *name,
				     const char *value)
{
	bool *found = userdata;

	(void)kind;
	*found = *found || strpbrk(name, " \t") || (value && has_control(value));
	return MHD_YES;
}

/*
 * Of a later request, which nobody looked at before it was parsed: where its body
 * ends has to be beyond doubt, or what is in it is the next request.
 */
static int check_framing(struct exchange *x)
{
	const char *encoding = entry_header(x, "Transfer-Encoding");
	bool found = false;

	MHD_get_connection_values(x->http, MHD_HEADER_KIND, look_at_field, &found);
	if (found)
		return refusal_set(&x->no, 400, REFUSAL_BAD, NULL, "a header is no 'NAME: VALUE'");
	if (encoding && x->is_old)
		return refusal_set(&x->no, 400, REFUSAL_BAD, NULL,
				   "Transfer-Encoding does not go with HTTP/1.0");
	if (encoding && entry_header(x, "Content-Length"))
		return refusal_set(&x->no, 400, REFUSAL_BAD, NULL,
				   "Content-Length and Transfer-Encoding do not go together");
	if (encoding && strcasecmp(encoding, "chunked") != 0)
		return refusal_set(&x->no, 501, REFUSAL_BAD, NULL,
				   "the Transfer-Encoding header is '%.64s'; chunked is possible",
				   encoding);
	return 0;
}

/* Of two that differ somebody else may have believed the other one. */
static int check_single(struct exchange *x)
{
	static const char *const names[] = {
		"Host",		"Origin",	  "Authorization",
		"Content-Type", "Content-Length", "Transfer-Encoding"
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		struct count count = { names[i], 0 };

		MHD_get_connection_values(x->http, MHD_HEADER_KIND, count_name, &count);
		if (count.n > 1)
			return refusal_set(&x->no, 400, REFUSAL_BAD, NULL,
					   "there are %u %s headers; one at most is possible",
					   count.n, names[i]);
	}
	return 0;
}

static bool is_loopback(const char *host)
{
	struct in_addr v4;

	return setup_has_word("localhost [::1]", host) ||
	       (inet_pton(AF_INET, host, &v4) == 1 && ntohl(v4.s_addr) >> 24 == 127);
}

/* Whether "name", "name:port" or "[address]:port" is one that we go by. */
static bool is_ours(const struct exchange *x, const char *authority)
{
	const char *colon = strrchr(authority, ':'), *bracket = strrchr(authority, ']');
	const bool has_port = colon && (!bracket || bracket < colon);
	const size_t n = has_port ? (size_t)(colon - authority) : strlen(authority);
	char host[256];

	if (n >= sizeof(host) || (has_port && strspn(colon + 1, "0123456789") != strlen(colon + 1)))
		return false;
	for (size_t i = 0; i < n; i++)
		host[i] = authority[i] >= 'A' && authority[i] <= 'Z' ? authority[i] - 'A' + 'a'
								     : authority[i];
	host[n] = '\0';
	return is_loopback(host) || setup_has_word(x->g->setup->allow_hosts, host);
}

/* A page of another site may have its name point here: it cannot make the browser lie about the name. */
static int check_host(struct exchange *x, const char *authority)
{
	if (x->visitor->is_unix || is_ours(x, authority))
		return 0;
	return refusal_set(&x->no, 403, REFUSAL_DENIED, NULL,
			   "the Host header is '%.64s'; localhost, a loopback address or one of "
			   "AllowHosts= is wanted",
			   authority);
}

/* "http://host/path", as a proxy is asked: the host counts like a header, the path is what is left. */
static int check_url(struct exchange *x, const char **url)
{
	const char *at, *header = entry_header(x, "Host");
	char authority[256];

	if (check_host(x, header ? header : "") < 0)
		return -EINVAL;
	if (strncasecmp(*url, "http://", 7) != 0)
		return 0;
	at = *url + 7;
	snprintf(authority, sizeof(authority), "%.*s", (int)MIN(strcspn(at, "/"), 255u), at);
	*url = at[strcspn(at, "/")] ? at + strcspn(at, "/") : "/";
	return check_host(x, authority);
}

static int check_origin(struct exchange *x)
{
	const char *origin = entry_header(x, "Origin"), *site = entry_header(x, "Sec-Fetch-Site");

	if (origin && setup_has_word(x->g->setup->allow_origins, origin)) {
		x->origin = strdup(origin);
		return x->origin ? 0 : refusal_set(&x->no, 503, "no-memory", NULL, "out of memory");
	}
	if (origin)
		return refusal_set(&x->no, 403, REFUSAL_DENIED, NULL,
				   "web pages of '%.128s' may not use this gateway; AllowOrigins= "
				   "would let them",
				   origin);
	if (site && strcasecmp(site, "none") != 0 && strcasecmp(site, "same-origin") != 0)
		return refusal_set(&x->no, 403, REFUSAL_DENIED, NULL,
				   "a web page of another site may not use this gateway");
	return 0;
}

/* Without keys the visitor's uid was enough, whatever key an application is set to send. */
static int check_key(struct exchange *x)
{
	const char *header = entry_header(x, "Authorization");
	const char *key = header && strncasecmp(header, "Bearer ", 7) == 0 ? header + 7 : "";

	if (!x->g->keys || x->route->is_open)
		return 0;
	x->label = keys_label(x->g->keys, key);
	if (x->label)
		return 0;
	return refusal_set(&x->no, 401, REFUSAL_KEY, NULL,
			   *key ? "the key in the Authorization header is none that is known here"
				: "an Authorization header 'Bearer KEY' is wanted");
}

static int check_body(struct exchange *x)
{
	const char *length = entry_header(x, "Content-Length"),
		   *type = entry_header(x, "Content-Type"),
		   *encoding = entry_header(x, "Content-Encoding");
	const unsigned long long n = length ? strtoull(length, NULL, 10) : 0;

	if (n > x->g->setup->max_body)
		return refusal_set(&x->no, 413, "too-long", NULL,
				   "the body has %llu bytes; at most %llu are allowed", n,
				   (unsigned long long)x->g->setup->max_body);
	if (encoding && strcasecmp(encoding, "identity") != 0)
		return refusal_set(&x->no, 415, REFUSAL_BAD, NULL,
				   "Content-Encoding is '%.64s'; a body that is not compressed is "
				   "wanted",
				   encoding);
	if (x->route->has_body && type &&
	    (strncasecmp(type, "application/json", 16) != 0 || !strchr("; \t", type[16])))
		return refusal_set(&x->no, 415, REFUSAL_BAD, NULL,
				   "Content-Type is '%.64s'; application/json is wanted", type);
	return 0;
}

static int find_route(struct exchange *x, const char *method, const char *url)
{
	x->route = routes_find(method, url, x->id, sizeof(x->id), x->allowed);
	if (x->route)
		return 0;
	if (x->allowed[0])
		return refusal_set(&x->no, 405, REFUSAL_NOT_FOUND, NULL,
				   "'%.128s' is for %s, not for %.16s", url, x->allowed, method);
	return refusal_set(&x->no, 404, REFUSAL_NOT_FOUND, NULL, "there is nothing at '%.128s'",
			   url);
}

int entry_check(struct exchange *x, const char *method, const char *url)
{
	if (check_framing(x) < 0 || check_single(x) < 0) {
		x->close = true;
		return -EINVAL;
	}
	if (check_url(x, &url) < 0 || check_origin(x) < 0)
		return -EINVAL;
	if (x->origin && strcmp(method, "OPTIONS") == 0)
		return 0;
	if (find_route(x, method, url) < 0 || check_key(x) < 0)
		return -EINVAL;
	return check_body(x);
}
