/* The portable strategy: posix_spawn on the calling thread. It waits until the child
 * has exec'ed; what posix_spawn cannot say is refused with -ENOTSUP, and the layer
 * above decides. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"

/* Looked up at run time: wheels are built against older systems than they run on.
 * chdir: macOS 10.15, glibc 2.29, musl 1.1.24, FreeBSD 13.1; without _np, as POSIX has
 * it since 2024: macOS 26, NetBSD 10. closefrom: glibc 2.34, FreeBSD 13.1. */
typedef int add_chdir(posix_spawn_file_actions_t *, const char *);
typedef int add_closefrom(posix_spawn_file_actions_t *, int);

static struct {
  add_chdir *chdir;
  add_closefrom *closefrom;
} found;
static pthread_once_t looked_up = PTHREAD_ONCE_INIT;

static void look_up(void) {
  void *chdir = dlsym(RTLD_DEFAULT, "posix_spawn_file_actions_addchdir_np");
  if (!chdir) chdir = dlsym(RTLD_DEFAULT, "posix_spawn_file_actions_addchdir");
  found.chdir = (add_chdir *)chdir;
  found.closefrom = (add_closefrom *)dlsym(
      RTLD_DEFAULT, "posix_spawn_file_actions_addclosefrom_np");
}

/* macOS: the child has only the descriptors that an action names (posix_spawn(2),
 * POSIX_SPAWN_CLOEXEC_DEFAULT). */
#ifdef POSIX_SPAWN_CLOEXEC_DEFAULT
enum { NAMED_ONLY = POSIX_SPAWN_CLOEXEC_DEFAULT };
#else
enum { NAMED_ONLY = 0 };
#define posix_spawn_file_actions_addinherit_np(actions, fd) ((void)(actions), ENOTSUP)
#endif

#ifndef POSIX_SPAWN_SETSID
#define POSIX_SPAWN_SETSID 0
#endif

/* On macOS the flag and chdir came together, in 10.15. */
static bool has_setsid(void) {
  return POSIX_SPAWN_SETSID != 0 && (NAMED_ONLY == 0 || found.chdir);
}

int portable_features(void) {
  int features = 0;
  pthread_once(&looked_up, look_up);
  if (found.chdir) features |= AP_HAS_ADDCHDIR;
  if (found.closefrom) features |= AP_HAS_ADDCLOSEFROM;
  if (NAMED_ONLY != 0) features |= AP_HAS_CLOEXEC_DEFAULT;
  if (has_setsid()) features |= AP_HAS_SETSID;
  return features;
}

static bool any_relative(const char *programs, int count) {
  for (; count-- > 0; programs += strlen(programs) + 1)
    if (programs[0] != '/') return true;
  return false;
}

/* What only Popen, or the other strategy, can do. */
static bool expressible(const ap_request *request, const char *programs,
                        const int32_t *pass_fds) {
  const int never =
      AP_UMASK | AP_SETGROUPS | AP_SETGID | AP_SETUID | AP_DIE_WITH_PARENT;
  if (request->flags & never || request->limits) return false;
  if (request->flags & AP_SETSID && !has_setsid()) return false;
  if (request->has_cwd) {
    if (!found.chdir) return false;
    /* macOS: nothing says from where these are looked for. */
    if (NAMED_ONLY != 0 && any_relative(programs, request->program_count))
      return false;
  }
  if (NAMED_ONLY != 0) return true;
  if (request->flags & AP_CLOSE_FDS) {
    if (!found.closefrom) return false;
    return !request->pass_count || pass_fds[request->pass_count - 1] <= 2;
  }
  return !request->pass_count;
}

/* Linux: who leads a session and opens a terminal is controlled by it (tty_open_proc_set_tty
 * in drivers/tty/tty_jobctrl.c). That wants a name, which may be mounted elsewhere or be
 * another's. The BSDs have TIOCSCTTY alone. */
static bool find_terminal(const ap_request *request, char *name, size_t size) {
  return AP_LINUX && ttyname_r(request->fds[0], name, size) == 0 &&
         faccessat(AT_FDCWD, name, R_OK | W_OK, AT_EACCESS) == 0;
}

static int make_attributes(posix_spawnattr_t *attributes,
                           const ap_request *request) {
  int flags = 0, error = 0;
  sigset_t defaults;
  sigemptyset(&defaults);
  if (request->flags & AP_RESTORE_SIGNALS) {
    sigaddset(&defaults, SIGPIPE);
    sigaddset(&defaults, SIGXFSZ);
  }
  if (request->flags & AP_TERMINAL) {
    const int keys[] = {SIGHUP, SIGINT, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) sigaddset(&defaults, keys[i]);
  }
  if (request->flags & (AP_RESTORE_SIGNALS | AP_TERMINAL)) {
    error = posix_spawnattr_setsigdefault(attributes, &defaults);
    flags |= POSIX_SPAWN_SETSIGDEF;
  }
  if (request->flags & AP_SETSID) flags |= POSIX_SPAWN_SETSID;
  if (request->flags & AP_SETPGID) {
    if (!error) error = posix_spawnattr_setpgroup(attributes, request->process_group);
    flags |= POSIX_SPAWN_SETPGROUP;
  }
  if (request->flags & AP_CLOSE_FDS) flags |= NAMED_ONLY;
  return error ? error : posix_spawnattr_setflags(attributes, (short)flags);
}

/* Names what the child is to have besides what goes to 0..2. */
static int name_inherited(posix_spawn_file_actions_t *actions,
                          const ap_request *request, const int *sources,
                          const int32_t *pass_fds) {
  int error = 0;
  for (int fd = 0; fd < 3 && !error; fd++) {
    if (sources[fd] >= 0 || !(request->flags & AP_CLOSE_FDS)) continue;
    int flags = fcntl(fd, F_GETFD);
    if (flags >= 0 && !(flags & FD_CLOEXEC))
      error = posix_spawn_file_actions_addinherit_np(actions, fd);
  }
  for (int i = 0; i < request->pass_count && !error; i++)
    if (pass_fds[i] > 2)
      error = posix_spawn_file_actions_addinherit_np(actions, pass_fds[i]);
  return error;
}

/* The sources are all above 2 (see raise_sources). */
static int make_actions(posix_spawn_file_actions_t *actions,
                        const ap_request *request, const int *sources,
                        const int32_t *pass_fds, const char *cwd,
                        const char *terminal) {
  int error = 0;
  if (terminal) error = posix_spawn_file_actions_addopen(actions, 0, terminal, O_RDWR, 0);
  for (int i = 0; i < 3 && !error; i++)
    if (terminal && i > 0)
      error = posix_spawn_file_actions_adddup2(actions, 0, i);
    else if (!terminal && sources[i] >= 0)
      error = posix_spawn_file_actions_adddup2(actions, sources[i], i);
  if (!error && NAMED_ONLY != 0)
    error = name_inherited(actions, request, sources, pass_fds);
  if (!error && cwd) error = found.chdir(actions, cwd);
  if (!error && NAMED_ONLY == 0 && request->flags & AP_CLOSE_FDS)
    error = found.closefrom(actions, 3);
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
 * child. A single one is left to posix_spawn, since a library that was preloaded may
 * know another place for it (termux-exec, fakechroot). `error` as posix_spawn
 * returns it. */
static int try_programs(pid_t *pid, const ap_plan *plan,
                        const posix_spawn_file_actions_t *actions,
                        const posix_spawnattr_t *attributes) {
  int refusal = 0, error = ENOENT;
  bool several = plan->programs[0] && plan->programs[1];
  for (const char *const *program = plan->programs; *program; program++) {
    struct stat status;
    bool decides_here = (*program)[0] == '/' || !plan->cwd;
    if (several && decides_here && stat(*program, &status) < 0)
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

static bool can_enter(const char *directory) {
  struct stat status;
  return stat(directory, &status) == 0 && S_ISDIR(status.st_mode) &&
         faccessat(AT_FDCWD, directory, X_OK, AT_EACCESS) == 0;
}

/* posix_spawn does not say what failed. The program's own candidates cannot give
 * these errors for a directory that can be entered. */
static int failed_step(const ap_plan *plan, const int *sources, int error) {
  if (error == EAGAIN || error == ENOMEM) return AP_STEP_SETUP;
  if (error == EBADF) {
    for (int i = 0; i < 3; i++)
      if (sources[i] >= 0 && fcntl(sources[i], F_GETFD) < 0) return AP_STEP_SETUP;
    for (int i = 0; i < plan->pass_count; i++)
      if (fcntl(plan->pass_fds[i], F_GETFD) < 0) return AP_STEP_SETUP;
  }
  if (error == EPERM && plan->flags & (AP_SETSID | AP_SETPGID)) return AP_STEP_SETUP;
  if (plan->cwd && !can_enter(plan->cwd)) return AP_STEP_CHDIR;
  return AP_STEP_EXEC;
}

#ifndef O_PATH
#define O_PATH O_RDONLY
#endif

/* A number for the child's pidfd: EMFILE must come before there is a child. */
static int reserve_number(void) {
  int fd = open("/", O_PATH | O_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

/* Ends a child that nobody is going to hear of, with what it may have started by now. */
static void see_off(const ap_child *child, const ap_request *request) {
  bool leads = request->flags & AP_SETSID ||
               (request->flags & AP_SETPGID && request->process_group == 0);
  if (!leads || kill(-child->pid, SIGKILL) < 0) kill(child->pid, SIGKILL);
  while (waitpid(child->pid, NULL, 0) < 0 && errno == EINTR) continue;
}

int spawn_posix(ap_child *child, ap_request *request, const char *strings,
                const int32_t *pass_fds) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  bool have_actions = false, have_attributes = false;
  int sources[3], raised[3] = {-1, -1, -1};
  int reserve = -1, result;
  char terminal[64];
  bool has_terminal = (request->flags & AP_TERMINAL) != 0;
  ap_plan *plan;

  request->step = AP_STEP_SETUP;
  pthread_once(&looked_up, look_up);
  if (!expressible(request, strings, pass_fds)) return -ENOTSUP;
  if (has_terminal && !find_terminal(request, terminal, sizeof terminal)) return -ENOTSUP;
  plan = plan_new(0, request, strings, pass_fds, NULL);
  if (!plan) return -ENOMEM;
  result = raise_sources(request, pass_fds, sources, raised);
  if (result < 0) goto finish;
  if (AP_LINUX) {
    result = reserve = reserve_number();
    if (result < 0) goto finish;
  }
  result = -posix_spawnattr_init(&attributes);
  if (result < 0) goto finish;
  have_attributes = true;
  result = -posix_spawn_file_actions_init(&actions);
  if (result < 0) goto finish;
  have_actions = true;
  result = -make_attributes(&attributes, request);
  if (result < 0) goto finish;
  result = -make_actions(&actions, request, sources, pass_fds, plan->cwd,
                         has_terminal ? terminal : NULL);
  if (result < 0) goto finish;

  result = -try_programs(&child->pid, plan, &actions, &attributes);
  if (result < 0) {
    request->step = failed_step(plan, sources, -result);
    goto finish;
  }
  if (reserve >= 0) close(reserve);
  reserve = -1;
  child->rss_floor = own_peak_rss();
  result = process_open(child);
  if (result == -ESRCH) {
    result = 0; /* taken by another wait already: its status is lost */
  } else if (result < 0) {
    see_off(child, request);
    request->started = 1;
  }

finish:
  if (have_actions) posix_spawn_file_actions_destroy(&actions);
  if (have_attributes) posix_spawnattr_destroy(&attributes);
  if (reserve >= 0) close(reserve);
  for (int i = 0; i < 3; i++)
    if (raised[i] >= 0) close(raised[i]);
  pthread_mutex_lock(&ap_lock);
  plan_free(plan);
  pthread_mutex_unlock(&ap_lock);
  return result;
}
