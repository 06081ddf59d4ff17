/*
 * What the service manager hears: READY, STATUS, and the watchdog, which is
 * armed only while there is work. Without a manager all of it does nothing.
 */
#pragma once

#include <systemd/sd-event.h>

#include "daemon/server/server.h"

int health_new(struct server *s, struct health **ret);
struct health *health_free(struct health *h);

/* The socket answers. */
void health_ready(struct health *h);
/* A new STATUS= line, if it differs from the last. */
void health_status(struct health *h, const char *format, ...) _printf_(2, 3);
/* Work began: arms the watchdog, and pings until all is quiet. */
void health_busy(struct health *h);
