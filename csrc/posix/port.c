/* Ports, as far as they are the same everywhere: their children, and the way of each
 * to its completions. What a port waits for, and how, is in port_epoll.c and
 * port_kqueue.c. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

static ap_port *ports;

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

static void after_fork_in_child(void) {
#if AP_LINUX
  spawn_thread_forget();
#endif
  after_fork();
}

static pthread_once_t fork_hooks = PTHREAD_ONCE_INIT;
static int fork_hooks_error;

static void install_fork_hooks(void) {
  fork_hooks_error = pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

int ap_port_open(ap_port **result) {
  pthread_once(&fork_hooks, install_fork_hooks);
  if (fork_hooks_error) return -fork_hooks_error;
  ap_port *port = calloc(1, sizeof *port);
  if (!port) return -ENOMEM;
  port->owner = getpid();
  port->memory = malloc(OUTPUT_MEMORY);
  int error = port->memory ? poller_open(port) : -ENOMEM;
  if (error < 0) {
    free(port->memory);
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

int64_t ap_port_adopt(ap_port *port, int32_t pid) {
  if (port_is_foreign(port)) return -ECHILD;
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

/* Returns 1 with *out filled in when there is something to report. */
static int advance(ap_port *port, ap_child *child, ap_completion *out) {
  /* Before it is reaped: where it has left somebody behind, that is to be held who leads
   * their group. */
  bool ended = child->collects && output_has_ended(child);
  bool holds = child->collects && !child->held && !ended;
  if (holds) child->held = true;
  int result = child_advance(child, out);
  if (holds && result != ADVANCE_HELD) child->held = false;
  switch (result) {
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
    case ADVANCE_HELD:
      unwatch(port, child);
      child->told = true;
      child_keep_output(child);
      out->held = holds;
      return !child->abandoned;
    case ADVANCE_ENDED: {
      bool tell = !child->abandoned && !child->told;
      if (ended && tell) output_read(port, child, out);
      child_keep_output(child);
      forget(port, child);
      child_free(child);
      return tell;
    }
    default: /* told of too early: not known to happen */
      look_later(port, child, SOON);
      return 0;
  }
}

/* Looks at the children that are owed a look. */
static int retry(ap_port *port, ap_completion *completions, int n) {
  int count = 0;
  ap_child *list = looks_take(port);
  while (list && count < n) {
    ap_child *child = list;
    list = child->retry_next;
    child->retrying = false;
    /* An event will come instead. */
    if (watch_again(port, child) == 0) continue;
    count += advance(port, child, &completions[count]);
  }
  if (list) looks_put_back(port, list);
  return count;
}

int ap_port_next(ap_port *port, ap_completion *completions, int n) {
  int64_t tokens[POLLER_BATCH];
  int count = 0;
  if (port_is_foreign(port)) return -ECHILD;

  pthread_mutex_lock(&ap_lock);
  port->memory_used = 0;
  int ready = poller_wait(port, tokens, n);
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

int ap_port_rejoin(ap_port *port, int64_t token) {
  if (port_is_foreign(port)) return -ECHILD;
  pthread_mutex_lock(&ap_lock);
  ap_child *child = child_find(token);
  int result = -ESRCH;
  if (child && !child->port) {
    bool starting = child->state == CHILD_STARTING && !child->lazy;
    result = starting ? watch_exec(port, child) : 0;
    if (result == 0) {
      orphan_release(child);
      port_take(port, child);
      if (!starting) expect_exit(port, child);
      result = child->state == CHILD_RUNNING;
    }
  }
  pthread_mutex_unlock(&ap_lock);
  return result;
}

int ap_release(int64_t token, ap_completion *out) {
  pthread_mutex_lock(&ap_lock);
  ap_child *child = child_find(token);
  int result = -ESRCH;
  if (child) {
    child->held = false;
    result = 0;
    if (child->told) {
      if (child_advance(child, out) == ADVANCE_ENDED) {
        result = 1;
        if (child->port) forget(child->port, child);
        child_free(child);
      } else if (child->port) {
        /* Another wait takes it just now, and its status is about to appear. */
        look_later(child->port, child, patience(child));
      }
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
  poller_close(port, ours);
  free(port->memory);
  free(port);
}

void ap_port_close(ap_port *port) {
  bool ours = !port_is_foreign(port);
  pthread_mutex_lock(&ap_lock);
  while (port->children) {
    ap_child *child = port->children;
    if (ours) {
      ap_completion ignored;
      forget(port, child);
      child->held = false;
      if (child->told && child_advance(child, &ignored) == ADVANCE_ENDED)
        child_free(child);
      else
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
