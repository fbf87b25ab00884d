/* The portable strategy: posix_spawn on the calling thread, then pidfd_open. It
 * waits until the child has exec'ed; what posix_spawn cannot say is refused with
 * -ENOTSUP, and the layer above decides. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"

/* Looked up at run time: wheels are built against older C libraries than they
 * run on. glibc 2.29, musl 1.1.24; glibc 2.34. */
extern int posix_spawn_file_actions_addchdir_np(
    posix_spawn_file_actions_t *restrict, const char *restrict)
    __attribute__((weak));
extern int posix_spawn_file_actions_addclosefrom_np(posix_spawn_file_actions_t *,
                                                    int) __attribute__((weak));

#ifndef POSIX_SPAWN_SETSID
#define POSIX_SPAWN_SETSID 0
#endif

int portable_features(void) {
  int features = 0;
  if (posix_spawn_file_actions_addchdir_np) features |= AP_HAS_ADDCHDIR;
  if (posix_spawn_file_actions_addclosefrom_np) features |= AP_HAS_ADDCLOSEFROM;
  return features;
}

int portable_probe(const char **what) {
  ap_completion out;
  *what = "pidfd_open";
  int pidfd = sys_pidfd_open(getpid());
  if (pidfd < 0) return pidfd;
  *what = "pidfd_send_signal";
  int error = sys_pidfd_signal(pidfd, 0);
  if (error == 0) {
    *what = "waitid(P_PIDFD)";
    /* We are not our own child: ECHILD is the right answer. */
    int waited = sys_waitid_pidfd(pidfd, WEXITED | WNOHANG, &out);
    error = waited == -ECHILD ? 0 : waited < 0 ? waited : -EINVAL;
  }
  close(pidfd);
  return error;
}

/* What only the other strategy can do. */
static bool expressible(const ap_request *request, const int32_t *pass_fds) {
  const int never = AP_UMASK | AP_SETGROUPS | AP_SETGID | AP_SETUID;
  if (request->flags & never) return false;
  if (request->flags & AP_SETSID && !POSIX_SPAWN_SETSID) return false;
  if (request->has_cwd && !posix_spawn_file_actions_addchdir_np) return false;
  if (request->flags & AP_CLOSE_FDS) {
    if (!posix_spawn_file_actions_addclosefrom_np) return false;
    if (request->pass_count && pass_fds[request->pass_count - 1] > 2) return false;
  } else if (request->pass_count) {
    return false;
  }
  return true;
}

static int make_attributes(posix_spawnattr_t *attributes,
                           const ap_request *request) {
  short flags = 0;
  int error = 0;
  if (request->flags & AP_RESTORE_SIGNALS) {
    sigset_t defaults;
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGPIPE);
    sigaddset(&defaults, SIGXFSZ);
    error = posix_spawnattr_setsigdefault(attributes, &defaults);
    flags |= POSIX_SPAWN_SETSIGDEF;
  }
  if (request->flags & AP_SETSID) flags |= POSIX_SPAWN_SETSID;
  if (request->flags & AP_SETPGID) {
    if (!error) error = posix_spawnattr_setpgroup(attributes, request->process_group);
    flags |= POSIX_SPAWN_SETPGROUP;
  }
  return error ? error : posix_spawnattr_setflags(attributes, flags);
}

/* The sources are all above 2 (see raise_sources). */
static int make_actions(posix_spawn_file_actions_t *actions,
                        const ap_request *request, const int *sources,
                        const char *cwd) {
  int error = 0;
  for (int i = 0; i < 3 && !error; i++)
    if (sources[i] >= 0)
      error = posix_spawn_file_actions_adddup2(actions, sources[i], i);
  if (!error && cwd) error = posix_spawn_file_actions_addchdir_np(actions, cwd);
  if (!error && request->flags & AP_CLOSE_FDS)
    error = posix_spawn_file_actions_addclosefrom_np(actions, 3);
  return error;
}

/* Targets 0..2 may be sources themselves, and a source that equals its target
 * must lose CLOEXEC: duplicates above 2 make all of them alike. 0 or -errno;
 * `raised` says which are ours to close. */
static int raise_sources(const ap_request *request, const int32_t *pass_fds,
                         int *sources, int *raised) {
  int keep[3];
  for (int i = 0; i < 3; i++) keep[i] = request->fds[i];
  for (int i = 0; i < request->pass_count; i++) {
    /* A passed 0..2 that nothing else goes to: it is inherited as it is. */
    int fd = pass_fds[i];
    if (fd >= 0 && fd < 3 && keep[fd] < 0) keep[fd] = fd;
  }
  for (int i = 0; i < 3; i++) {
    sources[i] = keep[i];
    if (keep[i] < 0 || keep[i] > 2) continue;
    raised[i] = fcntl(keep[i], F_DUPFD_CLOEXEC, 3);
    if (raised[i] < 0) return -errno;
    sources[i] = raised[i];
  }
  return 0;
}

/* Tries the candidates in order; misses are found by stat, which costs no
 * child. `error` as posix_spawn returns it. */
static int try_programs(pid_t *pid, const ap_plan *plan,
                        const posix_spawn_file_actions_t *actions,
                        const posix_spawnattr_t *attributes) {
  int refusal = 0, error = ENOENT;
  for (const char *const *program = plan->programs; *program; program++) {
    struct stat status;
    bool decides_here = (*program)[0] == '/' || !plan->cwd;
    if (decides_here && stat(*program, &status) < 0)
      error = errno;
    else
      error = posix_spawn(pid, *program, actions, attributes, plan->argv,
                          plan->envp);
    /* No process or no memory: it was not the program, and no other would do. */
    if (error == 0 || error == EAGAIN || error == ENOMEM) return error;
    if (error != ENOENT && error != ENOTDIR && !refusal) refusal = error;
  }
  return refusal ? refusal : error;
}

/* posix_spawn does not say what failed. The program's own candidates cannot give
 * these errors for a directory that can be entered. */
static int failed_step(const ap_plan *plan, const int *sources, int error) {
  if (error == EAGAIN || error == ENOMEM) return AP_STEP_SETUP;
  if (error == EBADF) {
    for (int i = 0; i < 3; i++)
      if (sources[i] >= 0 && fcntl(sources[i], F_GETFD) < 0) return AP_STEP_SETUP;
  }
  if (error == EPERM && plan->flags & (AP_SETSID | AP_SETPGID)) return AP_STEP_SETUP;
  if (plan->cwd) {
    int dir = open(plan->cwd, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) return AP_STEP_CHDIR;
    bool enters = faccessat(dir, ".", X_OK, AT_EACCESS) == 0;
    close(dir);
    if (!enters) return AP_STEP_CHDIR;
  }
  return AP_STEP_EXEC;
}

int spawn_posix(ap_child *child, ap_request *request, const char *strings,
                const int32_t *pass_fds) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  bool have_actions = false, have_attributes = false;
  int sources[3], raised[3] = {-1, -1, -1};
  int reserve = -1, result;
  ap_plan *plan;
  void *memory = NULL;

  request->step = AP_STEP_SETUP;
  if (!expressible(request, pass_fds)) return -ENOTSUP;
  memory = plan_new(0, request, strings, pass_fds, NULL, &plan);
  if (!memory) return -ENOMEM;
  result = raise_sources(request, pass_fds, sources, raised);
  if (result < 0) goto finish;
  /* Keeps a number free for the pidfd: EMFILE must come before the child. */
  reserve = open("/", O_PATH | O_CLOEXEC);
  if (reserve < 0) {
    result = -errno;
    goto finish;
  }
  result = -posix_spawnattr_init(&attributes);
  if (result < 0) goto finish;
  have_attributes = true;
  result = -posix_spawn_file_actions_init(&actions);
  if (result < 0) goto finish;
  have_actions = true;
  result = -make_attributes(&attributes, request);
  if (result < 0) goto finish;
  result = -make_actions(&actions, request, sources, plan->cwd);
  if (result < 0) goto finish;

  result = -try_programs(&child->pid, plan, &actions, &attributes);
  if (result < 0) {
    request->step = failed_step(plan, sources, -result);
    goto finish;
  }
  close(reserve);
  reserve = -1;
  child->rss_floor = own_peak_rss();
  child->pidfd = sys_pidfd_open(child->pid);
  if (child->pidfd == -ESRCH) {
    child->pidfd = -1; /* taken by another wait already: its status is lost */
  } else if (child->pidfd < 0) {
    result = child->pidfd;
    child->pidfd = -1;
    kill(child->pid, SIGKILL);
    while (waitpid(child->pid, NULL, 0) < 0 && errno == EINTR) continue;
  }

finish:
  if (have_actions) posix_spawn_file_actions_destroy(&actions);
  if (have_attributes) posix_spawnattr_destroy(&attributes);
  if (reserve >= 0) close(reserve);
  for (int i = 0; i < 3; i++)
    if (raised[i] >= 0) close(raised[i]);
  free(memory);
  return result;
}
