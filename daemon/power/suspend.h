/*
 * The system bus: logind says that the machine is about to be suspended, and
 * waits for us (a delay inhibitor; by its default 5 s). Without a bus or a
 * logind there is nothing, and it costs nothing; nothing here blocks.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-event.h>

#include "client/wire/err.h"

struct suspend;

/*
 * @on_sleep	true: the machine waits for suspend_release(); false: it is back,
 *		and the inhibitor is being taken again
 *
 * Returns 0, or a negative errno with a sentence: there is no bus.
 */
int suspend_new(sd_event *loop, void (*on_sleep)(bool asleep, void *userdata), void *userdata,
		struct suspend **ret, struct err *err);
struct suspend *suspend_free(struct suspend *s);

/* How long it waits for us: what it said, or its default. */
uint64_t suspend_delay_us(const struct suspend *s);

void suspend_release(struct suspend *s);
/* "inhibitor held", or why there is none. */
const char *suspend_text(const struct suspend *s);
