/* sysctl(3) of FreeBSD on Linux, as far as csrc/posix/tree_kinfo.c needs it: the list of
 * processes, one process, the environment of one, all by /proc.
 *
 * Like the real thing: ENOMEM, with what there is room for, where a list is too long, and
 * ESRCH for a process that is not there. For one file to include. */
#ifndef SHIM_SYS_SYSCTL_H
#define SHIM_SYS_SYSCTL_H

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/types.h>

#include "proc.h"

enum { CTL_KERN = 1, KERN_PROC = 14, KERN_PROC_PID = 1, KERN_PROC_PROC = 8, KERN_PROC_ENV = 35 };

struct kinfo_proc {
  pid_t ki_pid, ki_ppid, ki_pgid, ki_sid;
  struct timeval ki_start;
  char ki_stat;
};

static int shim_read(pid_t pid, const char *file, char *bytes, size_t *size) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, file);
  FILE *stream = fopen(path, "re");
  if (!stream) {
    if (errno == ENOENT) errno = ESRCH;
    return -1;
  }
  *size = fread(bytes, 1, *size, stream);
  int error = ferror(stream);
  fclose(stream);
  if (error) errno = ESRCH;
  return error ? -1 : 0;
}

static int shim_process(pid_t pid, struct kinfo_proc *one) {
  char text[1024];
  size_t size = sizeof text - 1;
  if (shim_read(pid, "stat", text, &size) < 0) return -1;
  text[size] = '\0';
  char *at = strrchr(text, ')'), state = 0;
  int threads = 0;
  unsigned long long ticks = 0;
  int found = at ? sscanf(at,
                          ") %c %d %d %d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %d"
                          " %*d %llu",
                          &state, &one->ki_ppid, &one->ki_pgid, &one->ki_sid, &threads, &ticks)
                 : 0;
  if (found != 6) {
    errno = ESRCH;
    return -1;
  }
  one->ki_pid = pid;
  one->ki_start.tv_sec = (time_t)(ticks / 100);
  one->ki_start.tv_usec = (suseconds_t)(ticks % 100 * 10000);
  one->ki_stat = strchr("ZXx", state) && threads < 2 ? SZOMB : state == 'T' ? SSTOP : SRUN;
  return 0;
}

static int shim_list(struct kinfo_proc *list, size_t *size) {
  size_t room = list ? *size / sizeof *list : 0, count = 0;
  DIR *directory = opendir("/proc");
  if (!directory) return -1;
  for (struct dirent *entry; (entry = readdir(directory));) {
    pid_t pid = atoi(entry->d_name);
    if (pid <= 0) continue;
    if (count < room && shim_process(pid, &list[count]) < 0) continue;
    count++;
  }
  closedir(directory);
  *size = (list && count > room ? room : count) * sizeof *list;
  if (list && count > room) errno = ENOMEM;
  return list && count > room ? -1 : 0;
}

static int sysctl(const int *name, unsigned length, void *old, size_t *size, const void *new,
                  size_t new_size) {
  (void)length, (void)new, (void)new_size;
  switch (name[2]) {
    case KERN_PROC_PROC: return shim_list(old, size);
    case KERN_PROC_PID: *size = sizeof(struct kinfo_proc); return shim_process(name[3], old);
    case KERN_PROC_ENV: return shim_read(name[3], "environ", old, size);
  }
  errno = EOPNOTSUPP;
  return -1;
}

#endif
