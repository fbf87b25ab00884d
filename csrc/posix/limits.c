/* What a child may use and do: the limits of a request, as its plan has them; and what a
 * process can do about itself. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "internal.h"

void limits_fill(plan_limits *limits, const ap_request *request) {
  memset(limits, 0, sizeof *limits);
  limits->nice_step = AP_STEP_NICE;
  limits->cpus_step = AP_STEP_CPUS;
  if (!request->limits) return;
  const ap_limits *wanted = request->limits;
  limits->wanted = *wanted;
  limits->wanted.cpus = NULL; /* the caller's */
  const int bits = 8 * (int)sizeof(unsigned long);
  for (int i = 0; i < wanted->cpu_count; i++)
    limits->cpus[wanted->cpus[i] / bits] |= 1ul << wanted->cpus[i] % bits;
  limits->oom_file = "/proc/self/oom_score_adj";
  /* The session's, and so not ours to change but for a session of its own. */
  if (request->flags & AP_SETSID) limits->autogroup_file = "/proc/self/autogroup";
  snprintf(limits->oom_text, sizeof limits->oom_text, "%d", (int)wanted->oom_score_adj);
  snprintf(limits->nice_text, sizeof limits->nice_text, "%d", (int)wanted->nice);
}

int ap_no_new_privs(void) {
#ifdef __linux__
  return prctl(PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L) < 0 ? -errno : 0;
#else
  return -ENOTSUP;
#endif
}

int ap_die_with(int32_t parent) {
#ifdef __linux__
  if (prctl(PR_SET_PDEATHSIG, (long)SIGKILL) < 0) return -errno;
  pid_t now = getppid(); /* see ap_child_die_with */
  if (now != parent && now != 0) _exit(127);
  return 0;
#else
  (void)parent;
  return -ENOTSUP;
#endif
}
