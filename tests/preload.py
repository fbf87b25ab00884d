"""A C library for LD_PRELOAD, which stands before the C library in a helper process: it
refuses calls as the kernel does where no filter can, and notes what was called.

Its variables are read and set by ctypes: `c_int.in_dll(CDLL(None), "victim")`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* Set: clone() fails as it does in a pids cgroup that is full, after the kernel has
 * written a pidfd's number, and taken that back. */
int victim = -1;
int last_flags; /* of the last clone() */
int bad_closes; /* of numbers that were not open */

int clone(int (*entry)(void *), void *stack, int flags, void *argument, ...) {
  REAL(clone);
  va_list more;
  va_start(more, argument);
  int *number = va_arg(more, int *);
  va_end(more);
  last_flags = flags;
  if (victim < 0) return real(entry, stack, flags, argument, number);
  *number = victim;
  errno = EAGAIN;
  return -1;
}

int close(int fd) {
  REAL(close);
  int result = real(fd);
  if (result < 0 && errno == EBADF) bad_closes++;
  return result;
}

/* As termux-exec and fakechroot do it: programs are elsewhere. */
int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                const posix_spawnattr_t *attributes, char *const argv[],
                char *const envp[]) {
  REAL(posix_spawn);
  if (strncmp(path, "/elsewhere/", 11) == 0) path += 10;
  int result = real(pid, path, actions, attributes, argv, envp);
  /* The caller is not scheduled again before the child has said something there. */
  const char *fifo = getenv("WAIT_AFTER_SPAWN");
  if (fifo) {
    char byte;
    int fd = open(fifo, O_RDONLY);
    while (read(fd, &byte, 1) < 0 && errno == EINTR) continue;
    close(fd);
  }
  return result;
}
"""


def preload(directory: Path, name: str = "preload.so") -> str:
    """Builds it; returns the value of LD_PRELOAD."""
    pytest.importorskip("ctypes")
    if sys.platform != "linux":
        pytest.skip("Linux: LD_PRELOAD")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = directory / "preload.c", directory / name
    source.write_text(SOURCE)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    # A sanitizer's has to come first.
    return f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()
