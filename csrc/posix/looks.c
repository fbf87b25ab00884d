/* Children that have to be looked at though no event will say so: the port's timer
 * does. */
#define _GNU_SOURCE
#include <errno.h>

#include "internal.h"

void look_later(ap_port *port, ap_child *child, long nanoseconds) {
  /* The timer is running where others wait. Set anew by each of many newcomers, it would
   * never fire. */
  if (!port->retry || nanoseconds == SOON) arm_timer(port, nanoseconds);
  if (!child->retrying) {
    child->retrying = true;
    child->retry_next = port->retry;
    port->retry = child;
  }
}

/* An announced exit without a status appears within a moment, as a rule, but under a
 * debugger at any time: 1, 2, 4, 8, and then always 10 ms. */
long patience(ap_child *child) {
  long milliseconds = child->looks < 4 ? 1L << child->looks++ : 10;
  return milliseconds * 1000 * 1000;
}

void look_cancel(ap_port *port, ap_child *child) {
  if (!child->retrying) return;
  ap_child **link = &port->retry;
  while (*link != child) link = &(*link)->retry_next;
  *link = child->retry_next;
  child->retrying = false;
}

ap_child *looks_take(ap_port *port) {
  ap_child *list = port->retry;
  port->retry = NULL;
  return list;
}

void looks_put_back(ap_port *port, ap_child *list) {
  ap_child *last = list;
  while (last->retry_next) last = last->retry_next;
  last->retry_next = port->retry;
  port->retry = list;
  arm_timer(port, SOON);
}

void expect_exit(ap_port *port, ap_child *child) {
  int result = watch_exit(port, child);
  if (result == -ESRCH)
    look_later(port, child, SOON);
  else if (result < 0) /* ENOMEM: look by timer */
    look_later(port, child, patience(child));
}
