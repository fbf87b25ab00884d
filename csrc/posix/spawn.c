/* Children of our own, by whatever strategy: the way of each to its port. */
#define _GNU_SOURCE
#include <errno.h>
#include <unistd.h>

#include "internal.h"

#if AP_LINUX
static int64_t start_clone(ap_port *port, ap_request *request,
                           const char *strings, const int32_t *pass_fds,
                           const uint32_t *groups) {
  int64_t result;
  ap_child *child = NULL;
  request->step = AP_STEP_SETUP;
  ap_plan *plan = plan_new(clone_stack_size(), request, strings, pass_fds, groups);
  if (!plan) return -ENOMEM;

  pthread_mutex_lock(&ap_lock);
  child = child_new();
  if (!child) {
    plan_free(plan);
    result = -ENOMEM;
    goto finish;
  }
  child->state = CHILD_STARTING;
  child->plan = plan;
  child->lazy = (request->flags & AP_LAZY) != 0;
  result = clone_parent(plan);
  if (result < 0) goto finish;
  if (child->lazy && clone_shares(plan, request->strategy)) {
    plan_keep(plan, -1);
  } else {
    result = clone_pipe(child, plan);
    if (result < 0) goto finish;
  }
  if (!child->lazy) {
    result = watch_exec(port, child);
    if (result < 0) {
      close(plan->result_fd);
      goto finish;
    }
  }
  child->port = port;
  result = clone_start(child, plan, request->strategy);
  if (result < 0) {
    unwatch_exec(child);
    goto finish;
  }
  request->pid = child->pid;
  result = port_take(port, child);
  if (child->lazy) expect_exit(port, child);

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
int ap_spawn_thread(void) { return -ENOTSUP; }
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

/* Its port cannot have told of its end yet, since that is done by the caller. */
static void collect(const ap_request *request) {
  pthread_mutex_lock(&ap_lock);
  ap_child *child = child_find(request->token);
  if (child) {
    child->collects = true;
    for (int i = 0; i < OUTPUT_COUNT; i++) child->output[i] = request->ours[i + 1];
  }
  pthread_mutex_unlock(&ap_lock);
}

int64_t ap_port_spawn(ap_port *port, ap_request *request, const char *strings,
                      const int32_t *pass_fds, const uint32_t *groups) {
  if (port_is_foreign(port)) return -ECHILD;
  int theirs[STDIO_COUNT];
  request->started = 0;
  request->orphans = ap_orphan_count();
  request->step = AP_STEP_SETUP;
  request->token = stdio_open(request, theirs);
  if (request->token < 0) return request->token;
  request->step = AP_STEP_NONE;
  if (request->text) strings = request->text;
  if (request->strategy == AP_PORTABLE)
    request->token = start_portable(port, request, strings, pass_fds);
  else
    request->token = start_clone(port, request, strings, pass_fds, groups);
  if (request->token > 0 && request->flags & AP_COLLECT) collect(request);
  stdio_close(request, theirs, request->token > 0);
  return request->token;
}
