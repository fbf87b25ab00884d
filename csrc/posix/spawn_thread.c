/* The thread that makes children for others.
 *
 * The kernel takes a thread that has made a child for its parent: with PR_SET_PDEATHSIG the
 * child is ended when that thread has, be it that the process lives on (prctl(2)). This one
 * lasts as long as the process does. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "internal.h"

enum { STACK_SIZE = 128 * 1024, NICE_ZERO = 20 /* of getpriority's raw call */ };

static struct {
  pid_t owner; /* the process it runs in; 0: there is none */
  pid_t number;
  sem_t wanted, done;
  void (*function)(void *);
  void *argument;
} thread;

static void wait_for(sem_t *semaphore) {
  while (sem_wait(semaphore) < 0) continue; /* EINTR */
}

static void *serve(void *unused) {
  (void)unused;
  prctl(PR_SET_NAME, "aioproc-spawn");
  thread.number = (pid_t)syscall(SYS_gettid);
  for (;;) {
    sem_post(&thread.done);
    wait_for(&thread.wanted);
    thread.function(thread.argument);
  }
  return NULL;
}

int spawn_thread_start(void) {
  pthread_attr_t attributes;
  pthread_t made;
  sigset_t all, mask;
  if (thread.owner == getpid()) return thread.number;
  int error = pthread_attr_init(&attributes);
  if (error) return -error;
  sem_init(&thread.wanted, 0, 0);
  sem_init(&thread.done, 0, 0);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, STACK_SIZE);
  /* Signals are for the others; but not libc's own, by which setuid() reaches each thread. */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &mask);
  error = pthread_create(&made, &attributes, serve, NULL);
  pthread_sigmask(SIG_SETMASK, &mask, NULL);
  pthread_attr_destroy(&attributes);
  if (error) return -error;
  wait_for(&thread.done);
  thread.owner = getpid();
  return thread.number;
}

void spawn_thread_run(void (*function)(void *), void *argument) {
  thread.function = function;
  thread.argument = argument;
  sem_post(&thread.wanted);
  wait_for(&thread.done);
}

void spawn_thread_forget(void) { thread.owner = 0; }

int spawn_thread_imitate(plan_limits *limits) {
  /* The raw calls: libc's getpriority() may return -1 for a nice value, and
   * sched_setaffinity() knows of 1024 CPUs. */
  long mine = syscall(SYS_getpriority, PRIO_PROCESS, 0);
  long its = syscall(SYS_getpriority, PRIO_PROCESS, thread.number);
  if (mine < 0 || its < 0) return -errno;
  if (mine != its && !(limits->wanted.set & AP_SET_NICE)) {
    limits->wanted.set |= AP_SET_NICE;
    limits->wanted.nice = NICE_ZERO - (int32_t)mine;
    limits->nice_step = AP_STEP_DIE;
    limits->autogroup_file = NULL;
  }
  if (limits->wanted.set & AP_SET_CPUS) return 0;
  size_t size = sizeof limits->cpus;
  if (syscall(SYS_sched_getaffinity, 0, size, limits->cpus) < 0 ||
      syscall(SYS_sched_getaffinity, thread.number, size, limits->have) < 0)
    return -errno;
  if (memcmp(limits->cpus, limits->have, size) != 0) {
    limits->wanted.set |= AP_SET_CPUS;
    limits->cpus_step = AP_STEP_DIE;
  }
  return 0;
}

int ap_spawn_thread(void) {
  pthread_mutex_lock(&ap_lock);
  int result = spawn_thread_start();
  pthread_mutex_unlock(&ap_lock);
  return result;
}
