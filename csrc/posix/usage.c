/* What processes have used, as struct rusage tells it. */
#define _GNU_SOURCE
#include <sys/resource.h>
#include <sys/time.h>

#include "internal.h"

/* The parent's own peak, as ru_maxrss, to be taken after the exec. exec carries the old
 * memory's high-water mark over into the new program's ru_maxrss
 * (setmax_mm_hiwater_rss in fs/exec.c), and the old memory was the parent's: a
 * peak up to the parent's own says nothing about the child. */
int64_t own_peak_rss(void) {
  struct rusage usage;
  return getrusage(RUSAGE_SELF, &usage) < 0 ? 0 : usage.ru_maxrss;
}

static int64_t microseconds(const struct timeval *time) {
  return (int64_t)time->tv_sec * 1000000 + time->tv_usec;
}

void note_usage(ap_completion *out, const struct rusage *usage) {
  out->has_usage = 1;
  out->user_time = microseconds(&usage->ru_utime);
  out->system_time = microseconds(&usage->ru_stime);
  out->max_rss = usage->ru_maxrss;
  out->minor_faults = usage->ru_minflt;
  out->major_faults = usage->ru_majflt;
  out->blocks_in = usage->ru_inblock;
  out->blocks_out = usage->ru_oublock;
  out->switches_voluntary = usage->ru_nvcsw;
  out->switches_involuntary = usage->ru_nivcsw;
}
