/* Ports, as far as they are the same everywhere: their children, and the way of each
 * from the spawn to its completions. What a port waits for, and how, is in
 * port_epoll.c and port_kqueue.c. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

static ap_port *ports;

/* After a fork the child shares the parent's epoll instance, so that a DEL there
 * would take away the parent's registration. ap_after_fork_in_child makes this
 * true by forgetting all ports; a fork that ran no hooks is noticed here. */
static bool foreign(const ap_port *port) { return port->owner != getpid(); }

static void forget(ap_port *port, ap_child *child) {
  unwatch(port, child);
  look_cancel(port, child);
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
  pthread_once(&fork_hooks, install_fork_hooks);
  if (fork_hooks_error) return -fork_hooks_error;
  ap_port *port = calloc(1, sizeof *port);
  if (!port) return -ENOMEM;
  port->owner = getpid();
  int error = watcher_open(port);
  if (error < 0) {
    free(port);
    return error;
  }
  pthread_mutex_lock(&ap_lock);
  port->next = ports;
  if (ports) ports->prev = port;
  ports = port;
  pthread_mutex_unlock(&ap_lock);
  *result = port;
  return 0;
}

int ap_port_fd(const ap_port *port) { return port->fd; }

int ap_port_live(const ap_port *port) { return port->live; }

int64_t port_take(ap_port *port, ap_child *child) {
  child->port = port;
  child_link(&port->children, child);
  port->live++;
  return child->token;
}

#if AP_LINUX
static int64_t start_clone(ap_port *port, ap_request *request,
                           const char *strings, const int32_t *pass_fds,
                           const uint32_t *groups) {
  int64_t result;
  ap_plan *plan;
  ap_child *child = NULL;
  request->step = AP_STEP_SETUP;
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
  result = watch_exec(port, child);
  if (result < 0) {
    close(plan->result_fd);
    goto finish;
  }
  child->port = port;
  result = clone_start(child, plan, request->strategy);
  if (result < 0) {
    unwatch_exec(child);
    goto finish;
  }
  request->pid = child->pid;
  result = port_take(port, child);

finish:
  if (result < 0 && child) child_free(child);
  pthread_mutex_unlock(&ap_lock);
  return result;
}
#else
static int64_t start_clone(ap_port *port, ap_request *request,
                           const char *strings, const int32_t *pass_fds,
                           const uint32_t *groups) {
  (void)port, (void)request, (void)strings, (void)pass_fds, (void)groups;
  return -ENOTSUP;
}
#endif

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
    expect_exit(port, child);
  }
  pthread_mutex_unlock(&ap_lock);
  return result;
}

int ap_strategies(void) {
  return AP_LINUX ? AP_CLONE | AP_COPY | AP_PORTABLE : AP_PORTABLE;
}

#if !AP_LINUX
int ap_tracer(void) { return 0; }
#endif

int ap_probe(int strategy, const char **what) {
#if AP_LINUX
  if (strategy == AP_CLONE || strategy == AP_COPY) return clone_probe(strategy, what);
#endif
  if (strategy == AP_PORTABLE) return process_probe(what);
  *what = "strategy";
  return -ENOTSUP;
}

int ap_features(void) {
  int features = portable_features();
#if AP_LINUX
  features |= linux_features();
#else
  features |= AP_HAS_KQUEUE;
#endif
#if defined(__GLIBC__) && !defined(__UCLIBC__)
  /* stdlib/setenv.c: what it has replaced may still be in somebody's hands. musl frees
   * it, the BSDs write over it. */
  features |= AP_KEEPS_ENVIRON;
#endif
  return features;
}

int64_t ap_port_spawn(ap_port *port, ap_request *request, const char *strings,
                      const int32_t *pass_fds, const uint32_t *groups) {
  if (foreign(port)) return -ECHILD;
  request->started = 0;
  request->step = AP_STEP_NONE;
  if (request->strategy == AP_PORTABLE)
    request->token = start_portable(port, request, strings, pass_fds);
  else
    request->token = start_clone(port, request, strings, pass_fds, groups);
  return request->token;
}

int64_t ap_port_adopt(ap_port *port, int32_t pid) {
  if (foreign(port)) return -ECHILD;
  pthread_mutex_lock(&ap_lock);
  int64_t result = -ENOMEM;
  ap_child *child = child_new();
  if (!child) goto finish;
  child->state = CHILD_RUNNING;
  child->pid = pid;
  result = process_open(child);
  /* ESRCH: another wait, or an ignored SIGCHLD, has taken the child already. */
  if (result < 0 && result != -ESRCH) {
    child_free(child);
    goto finish;
  }
  child->rss_floor = own_peak_rss();
  result = port_take(port, child);
  expect_exit(port, child);

finish:
  pthread_mutex_unlock(&ap_lock);
  return result;
}

/* Fills in *out and returns 1 where the caller is to be told something. */
static int advance(ap_port *port, ap_child *child, ap_completion *out) {
  switch (child_advance(child, out)) {
    case ADVANCE_STARTED:
      memset(out, 0, sizeof *out);
      out->token = child->token;
      out->kind = AP_STARTED;
      expect_exit(port, child);
      return !child->abandoned;
    case ADVANCE_FAILED:
      expect_exit(port, child);
      return 0;
    case ADVANCE_LATER:
      look_later(port, child, patience(child));
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

/* Looks at the children that are owed it. */
static int retry(ap_port *port, ap_completion *completions, int n) {
  int count = 0;
  ap_child *list = looks_take(port);
  while (list && count < n) {
    ap_child *child = list;
    list = child->retry_next;
    child->retrying = false;
    /* In place of a look. */
    if (watch_exit_again(port, child) == 0) continue;
    count += advance(port, child, &completions[count]);
  }
  if (list) looks_put_back(port, list);
  return count;
}

int ap_port_next(ap_port *port, ap_completion *completions, int n) {
  int64_t tokens[WATCHER_BATCH];
  int count = 0;
  if (foreign(port)) return -ECHILD;

  pthread_mutex_lock(&ap_lock);
  int ready = watcher_wait(port, tokens, n);
  bool timer = false;
  for (int i = 0; i < ready; i++) {
    if (tokens[i] == TIMER) {
      timer = true;
      continue;
    }
    ap_child *child = child_find(tokens[i]);
    if (child && child->port == port)
      count += advance(port, child, &completions[count]);
  }
  if (timer) count += retry(port, completions + count, n - count);
  pthread_mutex_unlock(&ap_lock);
  return ready < 0 ? ready : count;
}

int ap_abandon(int64_t token) {
  pthread_mutex_lock(&ap_lock);
  ap_child *child = child_find(token);
  int result = -ESRCH;
  if (child && child->port && foreign(child->port)) {
    result = -ECHILD;
  } else if (child) {
    child->abandoned = true;
    result = process_signal(child, SIGKILL);
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
    result = child->state == CHILD_STARTING ? watch_exec(port, child) : 0;
    if (result == 0) {
      orphan_release(child);
      port_take(port, child);
      if (child->state != CHILD_STARTING) expect_exit(port, child);
      result = child->state == CHILD_RUNNING;
    }
  }
  pthread_mutex_unlock(&ap_lock);
  return result;
}

static void port_destroy(ap_port *port, bool ours) {
  if (port->prev)
    port->prev->next = port->next;
  else
    ports = port->next;
  if (port->next) port->next->prev = port->prev;
  watcher_close(port, ours);
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
  port_destroy(port, ours);
  pthread_mutex_unlock(&ap_lock);
}

void ap_after_fork_in_child(void) {
  while (ports) port_destroy(ports, false);
  children_forget();
}
