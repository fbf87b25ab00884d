/* What a port waits for on Linux: an epoll descriptor that holds, per child, first
 * the exec-result pipe and then the pidfd. It is itself pollable, so that any event
 * loop can watch it (epoll(7), "Can an epoll instance monitor another?"). */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "internal.h"

static int control(ap_port *port, int operation, int fd, uint32_t events,
                   int64_t token) {
  struct epoll_event event = {.events = events, .data.u64 = (uint64_t)token};
  return epoll_ctl(port->fd, operation, fd, &event) < 0 ? -errno : 0;
}

int poller_open(ap_port *port) {
  int error;
  port->timer = -1;
  port->fd = epoll_create1(EPOLL_CLOEXEC);
  if (port->fd < 0) return -errno;
  port->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  error = port->timer < 0 ? -errno
                          : control(port, EPOLL_CTL_ADD, port->timer, EPOLLIN, TIMER);
  if (error < 0) poller_close(port, true);
  return error;
}

void poller_close(ap_port *port, bool ours) {
  (void)ours; /* a forked process has numbers of its own for the same things */
  if (port->timer >= 0) close(port->timer);
  close(port->fd);
}

int watch_exec(ap_port *port, ap_child *child) {
  return control(port, EPOLL_CTL_ADD, child->exec_fd, EPOLLIN, child->token);
}

/* Always before close(): while a child before its exec holds a copy of the
 * descriptor, closing ours leaves the registration in place (epoll(7), Q6). */
void unwatch_exec(ap_child *child) {
  if (child->port) epoll_ctl(child->port->fd, EPOLL_CTL_DEL, child->exec_fd, NULL);
}

/* ONESHOT: a child under a debugger leaves its pidfd readable with nothing to reap,
 * which would spin (see child_advance). */
enum { ONCE = EPOLLIN | EPOLLONESHOT };

int watch_exit(ap_port *port, ap_child *child) {
  if (child->pidfd < 0) return -ESRCH;
  return control(port, EPOLL_CTL_ADD, child->pidfd, ONCE, child->token);
}

/* The event comes at once if there is one. */
int watch_exit_again(ap_port *port, ap_child *child) {
  if (child->pidfd < 0) return -ESRCH;
  if (control(port, EPOLL_CTL_MOD, child->pidfd, ONCE, child->token) == 0) return 0;
  return watch_exit(port, child);
}

void unwatch(ap_port *port, ap_child *child) {
  if (child->exec_fd >= 0) unwatch_exec(child);
  if (child->pidfd >= 0) epoll_ctl(port->fd, EPOLL_CTL_DEL, child->pidfd, NULL);
}

void arm_timer(ap_port *port, long nanoseconds) {
  struct itimerspec when = {.it_value.tv_nsec = nanoseconds};
  timerfd_settime(port->timer, 0, &when, NULL);
}

int poller_wait(ap_port *port, int64_t *tokens, int n) {
  struct epoll_event events[POLLER_BATCH];
  int ready = epoll_wait(port->fd, events, n < POLLER_BATCH ? n : POLLER_BATCH, 0);
  if (ready < 0) return errno == EINTR ? 0 : -errno;
  for (int i = 0; i < ready; i++) {
    tokens[i] = (int64_t)events[i].data.u64;
    if (tokens[i] == TIMER) {
      uint64_t expirations;
      ssize_t ignored = read(port->timer, &expirations, sizeof expirations);
      (void)ignored;
    }
  }
  return ready;
}
