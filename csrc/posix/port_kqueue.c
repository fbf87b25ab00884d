/* What a port waits for on macOS and the BSDs: a kqueue with one EVFILT_PROC event per
 * child. It is itself pollable, so that any event loop can watch it (kqueue(2)). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/types.h>
/* After sys/types.h on some systems. */
#include <sys/event.h>
#include <sys/time.h>
#include <unistd.h>

#include "internal.h"

/* The status comes with the event. On macOS that has to be asked for. */
#ifndef NOTE_EXITSTATUS
#define NOTE_EXITSTATUS 0u
#endif
static const unsigned EXIT_NOTES = NOTE_EXIT | NOTE_EXITSTATUS;

static int change(ap_port *port, uintptr_t ident, int filter, int flags,
                  unsigned notes, intptr_t data, uint32_t number) {
  struct kevent event;
  EV_SET(&event, ident, (short)filter, (unsigned short)flags, notes, data,
         (void *)(uintptr_t)number);
  return kevent(port->fd, &event, 1, NULL, 0, NULL) < 0 ? -errno : 0;
}

int process_probe(const char **what) {
  *what = "kqueue";
  int fd = kqueue();
  if (fd < 0) return -errno;
  close(fd);
  return 0;
}

int poller_open(ap_port *port) {
  port->fd = kqueue();
  if (port->fd < 0) return -errno;
  /* For an exec in this process; children of fork() do not inherit a kqueue. */
  if (fcntl(port->fd, F_SETFD, FD_CLOEXEC) < 0) {
    int error = -errno;
    close(port->fd);
    return error;
  }
  return 0;
}

void poller_close(ap_port *port, bool ours) {
  /* A forked process has no kqueue: the number may be anything there. */
  if (ours) close(port->fd);
}

int watch_exec(ap_port *port, ap_child *child) {
  (void)port, (void)child;
  return -ENOTSUP; /* posix_spawn waits for it */
}

void unwatch_exec(ap_child *child) { (void)child; }

/* The event carries the slot of the token, which fits into a pointer everywhere; the
 * number of the process tells whether the slot is still that child's. */
int watch_exit(ap_port *port, ap_child *child) {
  /* The number may be another's by now. */
  if (child->ended) return -ESRCH;
  int result = change(port, (uintptr_t)child->pid, EVFILT_PROC, EV_ADD | EV_ONESHOT,
                      EXIT_NOTES, 0, (uint32_t)child->token);
  child->watched = result == 0;
  return result; /* ESRCH: a zombie already */
}

/* Some kernels tell of the exit a moment before the child can be waited for (libuv's
 * issue 3504: macOS, FreeBSD, OpenBSD), and only once: nothing but another look
 * helps. */
int watch_again(ap_port *port, ap_child *child) {
  (void)port, (void)child;
  return -ENOTSUP;
}

void unwatch(ap_port *port, ap_child *child) {
  if (!child->watched) return;
  change(port, (uintptr_t)child->pid, EVFILT_PROC, EV_DELETE, 0, 0, 0);
  child->watched = false;
}

void arm_timer(ap_port *port, long nanoseconds) {
  /* Milliseconds are what all systems have. ADD sets a timer anew. */
  intptr_t milliseconds = (nanoseconds + 999999) / 1000000;
  change(port, TIMER, EVFILT_TIMER, EV_ADD | EV_ONESHOT, 0, milliseconds, 0);
}

static int64_t ended_child(ap_port *port, const struct kevent *event) {
  ap_child *child = child_in_slot((uint32_t)(uintptr_t)event->udata);
  if (!child || child->port != port || child->pid != (pid_t)event->ident) return -1;
  child->watched = false;
  child->announced = true;
  child->status = (int)event->data;
  return child->token;
}

int poller_wait(ap_port *port, int64_t *tokens, int n) {
  struct kevent events[POLLER_BATCH];
  const struct timespec now = {0};
  int ready =
      kevent(port->fd, NULL, 0, events, n < POLLER_BATCH ? n : POLLER_BATCH, &now);
  if (ready < 0) return errno == EINTR ? 0 : -errno;
  for (int i = 0; i < ready; i++)
    tokens[i] = events[i].filter == EVFILT_TIMER ? TIMER : ended_child(port, &events[i]);
  return ready;
}
