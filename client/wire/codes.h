/*
 * The stable error codes of the wire, the exit code steamctl gives each, and
 * what a client may do about it. Codes are for ever.
 */
#pragma once

/* CODE(NAME, "string", steamctl's exit code, "meaning") */
#define CODES(CODE)                                                                                \
	CODE(BAD_FRAME, "bad-frame", 76, "the bytes were no valid message; the connection is closed") \
	CODE(BAD_REQUEST, "bad-request", 64, "a field has a value that makes no sense")            \
	CODE(BAD_STATE, "bad-state", 76, "the message is known but not possible now")              \
	CODE(NO_SUCH, "no-such", 66, "the model, turn, session or request named does not exist")   \
	CODE(DENIED, "denied", 77, "the caller's uid may not do that")                             \
	CODE(TOO_LONG, "too-long", 65, "prompt and answer do not fit the context")                 \
	CODE(NO_CHAT, "no-chat", 65, "the model has no chat template that steamd knows")           \
	CODE(BUSY, "busy", 75, "a limit is reached; try again later")                              \
	CODE(UNAVAILABLE, "unavailable", 75, "the model is not being served now")                  \
	CODE(MODEL_REFUSED, "model-refused", 78, "the model's files were refused")                 \
	CODE(MODEL_CHANGED, "model-changed", 78, "the model's files changed while it slept; reload takes them as they are") \
	CODE(EXEC_FAULT, "exec-fault", 70, "the executor died twice while computing this request") \
	CODE(DEADLINE, "deadline", 124, "the request's deadline passed before its first token")    \
	CODE(NO_MEMORY, "no-memory", 71, "the daemon is out of memory")                            \
	CODE(DAMAGED, "damaged", 65, "a part of a stored session does not match its sum")          \
	CODE(MOVED, "moved", 75, "the session went on from another turn than the request says")    \
	CODE(INTERNAL, "internal", 70, "a fault in steamd itself")

#define CODE_STRING(NAME, string, exit_code, meaning)                                              \
	static const char CODE_##NAME[] __attribute__((unused)) = string;
CODES(CODE_STRING)
