"""A program that says, before anything else, what it may use and do: static, so that no loader
comes before it. Each line is a name and a value.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static void show(const char *name, const char *file) {
  char text[200];
  int fd = open(file, O_RDONLY);
  long size = fd < 0 ? 0 : read(fd, text, sizeof text);
  while (size > 0 && text[size - 1] == '\n') size--;
  if (fd >= 0) close(fd);
  printf("%s %.*s\n", name, (int)(size > 0 ? size : 0), text);
}

int main(int argc, char **argv) {
  printf("death %d\n", ({ int signal = 0; prctl(PR_GET_PDEATHSIG, &signal); signal; }));
  for (int i = 0; i < 16; i++) {
    struct rlimit limit;
    getrlimit(i, &limit);
    printf("rlimit%d %llu %llu\n", i, (unsigned long long)limit.rlim_cur,
           (unsigned long long)limit.rlim_max);
  }
  printf("nice %d\n", getpriority(PRIO_PROCESS, 0));
  cpu_set_t cpus;
  sched_getaffinity(0, sizeof cpus, &cpus);
  printf("cpus");
  for (int i = 0; i < CPU_SETSIZE; i++) if (CPU_ISSET(i, &cpus)) printf(" %d", i);
  printf("\nno_new_privs %d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
  printf("umask %d\n", umask(0));
  printf("uid %d %d\n", getuid(), geteuid());
  show("oom", "/proc/self/oom_score_adj");
  show("autogroup", "/proc/self/autogroup");
  fflush(stdout);
  if (argc > 1) pause();
  return 0;
}
"""

#: Waits for the end of its stdin; then it burns so many seconds of CPU time, or does not end.
BURN = r"""
#include <stdlib.h>
#include <unistd.h>
#include <time.h>

int main(int argc, char **argv) {
  char byte;
  double most = argc > 1 ? atof(argv[1]) : 0;
  while (read(0, &byte, 1) > 0) continue;
  do for (volatile int i = 0; i < 1000000; i++) continue;
  while (!most || clock() < most * CLOCKS_PER_SEC);
  return 0;
}
"""


@functools.cache
def _folder() -> Path:
    """For others too: programs of it run as other users."""
    import atexit

    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def built(source: str = SOURCE) -> str:
    """The program; skips where there is no compiler, or no static C library."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    program = _folder() / f"program{len(os.listdir(_folder()))}"
    command = [compiler, "-static", "-O1", "-x", "c", "-", "-o", str(program)]
    done = subprocess.run(command, input=source.encode(), capture_output=True)
    if done.returncode:
        pytest.skip(f"no static programs here: {done.stderr.decode()[-200:]}")
    return str(program)


def parsed(output: bytes) -> dict[str, list[str]]:
    lines = (line.split(" ") for line in output.decode().splitlines())
    return {name: values for name, *values in lines}
