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

/* ONESHOT: a child under a debugger leaves its pidfd readable with nothing to reap,
 * which would spin (see child_advance). And what has been told of once need not be taken
 * out before it is closed: it tells nothing any more. */
enum { ONCE = EPOLLIN | EPOLLONESHOT };

static int watch(ap_port *port, ap_child *child, int operation, int fd) {
  int result = control(port, operation, fd, ONCE, child->token);
  if (result == 0) child->watched = true;
  return result;
}

/* Always before close(), where it has not been told of: while a child before its exec holds
 * a copy of the descriptor, closing ours leaves the registration in place (epoll(7), Q6). */
static void forget_fd(ap_port *port, ap_child *child, int fd) {
  if (child->watched && fd >= 0) epoll_ctl(port->fd, EPOLL_CTL_DEL, fd, NULL);
  child->watched = false;
}

int watch_exec(ap_port *port, ap_child *child) {
  return watch(port, child, EPOLL_CTL_ADD, child->exec_fd);
}

void unwatch_exec(ap_child *child) {
  if (child->port && !child->lazy) forget_fd(child->port, child, child->exec_fd);
}

int watch_exit(ap_port *port, ap_child *child) {
  if (child->pidfd < 0) return -ESRCH;
  return watch(port, child, EPOLL_CTL_ADD, child->pidfd);
}

static bool waits_for_exec(const ap_child *child) {
  return child->state == CHILD_STARTING && !child->lazy;
}

/* The event comes at once if there is one. */
int watch_again(ap_port *port, ap_child *child) {
  int fd = waits_for_exec(child) ? child->exec_fd : child->pidfd;
  if (fd < 0) return -ESRCH;
  if (watch(port, child, EPOLL_CTL_MOD, fd) == 0) return 0;
  return watch(port, child, EPOLL_CTL_ADD, fd);
}

void unwatch(ap_port *port, ap_child *child) {
  forget_fd(port, child, waits_for_exec(child) ? child->exec_fd : child->pidfd);
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
    } else {
      ap_child *child = child_find(tokens[i]);
      if (child) child->watched = false;
    }
  }
  return ready;
}
