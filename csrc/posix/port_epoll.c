/* The port on Linux: an epoll descriptor that holds, per child, first the
 * exec-result pipe and then the pidfd. It is itself pollable, so that any event
 * loop can watch it (epoll(7), "Can an epoll instance monitor another?"). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "internal.h"

struct ap_port {
  int epoll;
  int timer; /* fires for the children in `retry` */
  pid_t owner;
  int live;
  ap_child *children;
  ap_child *retry;
  ap_port *next, *prev;
};

enum { TIMER_EVENT = 0 }; /* no token is 0 */

static ap_port *ports;

/* After a fork the child shares the parent's epoll instance, so that a DEL there
 * would take away the parent's registration. ap_after_fork_in_child makes this
 * true by forgetting all ports; a fork that ran no hooks is noticed here. */
static bool foreign(const ap_port *port) { return port->owner != getpid(); }

static int watch(ap_port *port, ap_child *child, int fd, uint32_t events) {
  struct epoll_event event = {.events = events,
                              .data.u64 = (uint64_t)child->token};
  return epoll_ctl(port->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* Always before close(): while a child before its exec holds a copy of the
 * descriptor, closing ours leaves the registration in place (epoll(7), Q6). */
static void unwatch(ap_port *port, int fd) {
  epoll_ctl(port->epoll, EPOLL_CTL_DEL, fd, NULL);
}

static void unwatch_exec(ap_child *child) {
  if (child->port) unwatch(child->port, child->exec_fd);
}

static void arm_timer(ap_port *port, long nanoseconds) {
  struct itimerspec when = {.it_value.tv_nsec = nanoseconds};
  timerfd_settime(port->timer, 0, &when, NULL);
}

enum { SOON = 1, AFTER_10_MS = 10 * 1000 * 1000 };

/* One look is owed to this child, though no event will ask for it. */
static void retry_later(ap_port *port, ap_child *child, long nanoseconds) {
  /* Where others wait the timer is running: put off again and again by a row of
   * newcomers it would never fire. */
  if (!port->retry || nanoseconds == SOON) arm_timer(port, nanoseconds);
  if (!child->retrying) {
    child->retrying = true;
    child->retry_next = port->retry;
    port->retry = child;
  }
}

static void watch_exit(ap_port *port, ap_child *child) {
  /* ONESHOT: a child under a debugger leaves its pidfd readable with nothing to
   * reap, which would spin (see child_advance). */
  if (child->pidfd < 0)
    retry_later(port, child, SOON);
  else if (watch(port, child, child->pidfd, EPOLLIN | EPOLLONESHOT) < 0)
    retry_later(port, child, AFTER_10_MS); /* ENOMEM: look by timer */
}

static void forget(ap_port *port, ap_child *child) {
  if (child->exec_fd >= 0) unwatch(port, child->exec_fd);
  if (child->pidfd >= 0) unwatch(port, child->pidfd);
  if (child->retrying) {
    ap_child **link = &port->retry;
    while (*link != child) link = &(*link)->retry_next;
    *link = child->retry_next;
    child->retrying = false;
  }
  child_unlink(&port->children, child);
  port->live--;
}

/* fork() waits for whoever holds the lock. Then the tables are whole in the child,
 * and it has no copy of the writing end of an exec-result pipe, which would keep
 * the end of file from us for as long as it lives. */
static void before_fork(void) { pthread_mutex_lock(&ap_lock); }
static void after_fork(void) { pthread_mutex_unlock(&ap_lock); }

static pthread_once_t fork_hooks = PTHREAD_ONCE_INIT;
static int fork_hooks_error;

static void install_fork_hooks(void) {
  fork_hooks_error = pthread_atfork(before_fork, after_fork, after_fork);
}

int ap_port_open(ap_port **result) {
  int error = 0;
  pthread_once(&fork_hooks, install_fork_hooks);
  if (fork_hooks_error) return -fork_hooks_error;
  ap_port *port = calloc(1, sizeof *port);
  if (!port) return -ENOMEM;
  port->timer = -1;
  port->owner = getpid();
  port->epoll = epoll_create1(EPOLL_CLOEXEC);
  if (port->epoll < 0) {
    error = -errno;
    goto finish;
  }
  port->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  if (port->timer < 0) {
    error = -errno;
    goto finish;
  }
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = TIMER_EVENT};
  if (epoll_ctl(port->epoll, EPOLL_CTL_ADD, port->timer, &event) < 0) {
    error = -errno;
    goto finish;
  }
  pthread_mutex_lock(&ap_lock);
  port->next = ports;
  if (ports) ports->prev = port;
  ports = port;
  pthread_mutex_unlock(&ap_lock);
  *result = port;
  port = NULL;

finish:
  if (port) {
    if (port->timer >= 0) close(port->timer);
    if (port->epoll >= 0) close(port->epoll);
    free(port);
  }
  return error;
}

int ap_port_fd(const ap_port *port) { return port->epoll; }

int ap_port_live(const ap_port *port) { return port->live; }

static int64_t port_take(ap_port *port, ap_child *child) {
  child->port = port;
  child_link(&port->children, child);
  port->live++;
  return child->token;
}

/* Asked before anything is opened: a number that is closed now could become that
 * of the exec-result pipe, which would then be handed to the program. */
static int all_open(const ap_request *request, const int32_t *pass_fds) {
  for (int i = 0; i < 3; i++)
    if (request->fds[i] >= 0 && fcntl(request->fds[i], F_GETFD) < 0) return -errno;
  for (int i = 0; i < request->pass_count; i++)
    if (fcntl(pass_fds[i], F_GETFD) < 0) return -errno;
  return 0;
}

static int64_t start_clone(ap_port *port, ap_request *request,
                           const char *strings, const int32_t *pass_fds,
                           const uint32_t *groups) {
  int64_t result;
  ap_plan *plan;
  ap_child *child = NULL;
  request->step = AP_STEP_SETUP;
  result = all_open(request, pass_fds);
  if (result < 0) return result;
  void *memory = plan_new(clone_stack_size(), request, strings, pass_fds, groups,
                          &plan);
  if (!memory) return -ENOMEM;

  pthread_mutex_lock(&ap_lock);
  child = child_new();
  if (!child) {
    free(memory);
    result = -ENOMEM;
    goto finish;
  }
  child->state = CHILD_STARTING;
  child->memory = memory;
  result = clone_pipe(child, plan);
  if (result < 0) goto finish;
  result = watch(port, child, child->exec_fd, EPOLLIN);
  if (result < 0) {
    close(plan->result_fd);
    goto finish;
  }
  result = clone_start(child, plan);
  if (result < 0) {
    unwatch(port, child->exec_fd);
    goto finish;
  }
  request->pid = child->pid;
  result = port_take(port, child);

finish:
  if (result < 0 && child) child_free(child);
  pthread_mutex_unlock(&ap_lock);
  return result;
}

static int64_t start_portable(ap_port *port, ap_request *request,
                              const char *strings, const int32_t *pass_fds) {
  ap_child made = {.pidfd = -1, .exec_fd = -1};
  ap_child *child;

  /* The record first: once there is a child, nothing may fail any more. */
  pthread_mutex_lock(&ap_lock);
  child = child_new();
  pthread_mutex_unlock(&ap_lock);
  request->step = AP_STEP_SETUP;
  if (!child) return -ENOMEM;

  int64_t result = spawn_posix(&made, request, strings, pass_fds);

  pthread_mutex_lock(&ap_lock);
  if (result < 0) {
    child_free(child);
  } else {
    child->state = CHILD_RUNNING;
    child->pid = made.pid;
    child->pidfd = made.pidfd;
    child->rss_floor = made.rss_floor;
    request->pid = child->pid;
    request->started = 1;
    result = port_take(port, child);
    watch_exit(port, child);
  }
  pthread_mutex_unlock(&ap_lock);
  return result;
}

int64_t ap_port_spawn(ap_port *port, ap_request *request, const char *strings,
                      const int32_t *pass_fds, const uint32_t *groups) {
  if (foreign(port)) return -ECHILD;
  request->started = 0;
  request->step = AP_STEP_NONE;
  if (request->strategy == AP_CLONE)
    return start_clone(port, request, strings, pass_fds, groups);
  return start_portable(port, request, strings, pass_fds);
}

int64_t ap_port_adopt(ap_port *port, int32_t pid) {
  if (foreign(port)) return -ECHILD;
  int pidfd = sys_pidfd_open(pid);
  /* ESRCH: another wait, or an ignored SIGCHLD, has taken the child already. */
  if (pidfd < 0 && pidfd != -ESRCH) return pidfd;

  pthread_mutex_lock(&ap_lock);
  int64_t result = -ENOMEM;
  ap_child *child = child_new();
  if (child) {
    child->state = CHILD_RUNNING;
    child->pid = pid;
    child->pidfd = pidfd < 0 ? -1 : pidfd;
    child->rss_floor = own_peak_rss();
    result = port_take(port, child);
    watch_exit(port, child);
  } else if (pidfd >= 0) {
    close(pidfd);
  }
  pthread_mutex_unlock(&ap_lock);
  return result;
}

/* Fills in *out and returns 1 where the caller is to be told something. */
static int advance(ap_port *port, ap_child *child, ap_completion *out) {
  switch (child_advance(child, unwatch_exec, out)) {
    case ADVANCE_STARTED:
      memset(out, 0, sizeof *out);
      out->token = child->token;
      out->kind = AP_STARTED;
      watch_exit(port, child);
      return !child->abandoned;
    case ADVANCE_FAILED:
      watch_exit(port, child);
      return 0;
    case ADVANCE_LATER:
      retry_later(port, child, AFTER_10_MS);
      return 0;
    case ADVANCE_ENDED: {
      bool tell = !child->abandoned;
      forget(port, child);
      child_free(child);
      return tell;
    }
    default:
      return 0;
  }
}

/* Looks again at the children whose exit was announced, but had no status. */
static int retry(ap_port *port, ap_completion *completions, int n) {
  int count = 0;
  uint64_t expirations;
  ssize_t ignored = read(port->timer, &expirations, sizeof expirations);
  (void)ignored;
  ap_child *list = port->retry;
  port->retry = NULL;
  while (list && count < n) {
    ap_child *child = list;
    list = child->retry_next;
    child->retrying = false;
    if (child->pidfd >= 0) {
      /* In place of a look: the event comes at once if there is one. */
      struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT,
                                  .data.u64 = (uint64_t)child->token};
      if (epoll_ctl(port->epoll, EPOLL_CTL_MOD, child->pidfd, &event) == 0)
        continue;
      if (watch(port, child, child->pidfd, EPOLLIN | EPOLLONESHOT) == 0) continue;
    }
    count += advance(port, child, &completions[count]);
  }
  if (list) { /* no room: they are still in the old list */
    ap_child *last = list;
    while (last->retry_next) last = last->retry_next;
    last->retry_next = port->retry;
    port->retry = list;
    arm_timer(port, SOON);
  }
  return count;
}

int ap_port_next(ap_port *port, ap_completion *completions, int n) {
  struct epoll_event events[64];
  int count = 0;
  if (foreign(port)) return -ECHILD;

  pthread_mutex_lock(&ap_lock);
  int ready = epoll_wait(port->epoll, events, n < 64 ? n : 64, 0);
  if (ready < 0) {
    count = errno == EINTR ? 0 : -errno;
    goto finish;
  }
  bool timer = false;
  for (int i = 0; i < ready; i++) {
    if (events[i].data.u64 == TIMER_EVENT) {
      timer = true;
      continue;
    }
    ap_child *child = child_find((int64_t)events[i].data.u64);
    if (child && child->port == port)
      count += advance(port, child, &completions[count]);
  }
  if (timer) count += retry(port, completions + count, n - count);

finish:
  pthread_mutex_unlock(&ap_lock);
  return count;
}

int ap_port_abandon(ap_port *port, int64_t token) {
  if (foreign(port)) return -ECHILD;
  pthread_mutex_lock(&ap_lock);
  ap_child *child = child_find(token);
  int result = -ESRCH;
  if (child && child->port == port) {
    child->abandoned = true;
    result = 0;
    if (child->pidfd >= 0) result = sys_pidfd_signal(child->pidfd, SIGKILL);
  }
  pthread_mutex_unlock(&ap_lock);
  return result;
}

int ap_port_rejoin(ap_port *port, int64_t token) {
  if (foreign(port)) return -ECHILD;
  pthread_mutex_lock(&ap_lock);
  ap_child *child = child_find(token);
  int result = -ESRCH;
  if (child && !child->port) {
    result = 0;
    if (child->state == CHILD_STARTING)
      result = watch(port, child, child->exec_fd, EPOLLIN);
    if (result == 0) {
      orphan_release(child);
      port_take(port, child);
      if (child->state != CHILD_STARTING) watch_exit(port, child);
      result = child->state == CHILD_RUNNING;
    }
  }
  pthread_mutex_unlock(&ap_lock);
  return result;
}

static void port_destroy(ap_port *port) {
  if (port->prev)
    port->prev->next = port->next;
  else
    ports = port->next;
  if (port->next) port->next->prev = port->prev;
  close(port->timer);
  close(port->epoll);
  free(port);
}

void ap_port_close(ap_port *port) {
  bool ours = !foreign(port);
  pthread_mutex_lock(&ap_lock);
  while (port->children) {
    ap_child *child = port->children;
    if (ours) {
      forget(port, child);
      orphan_adopt(child);
    } else { /* no DEL, no kill, no wait: they are the parent's */
      child_unlink(&port->children, child);
      child_free(child);
    }
  }
  port_destroy(port);
  pthread_mutex_unlock(&ap_lock);
}

void ports_forget(void) {
  while (ports) port_destroy(ports);
}
