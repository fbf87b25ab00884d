/* What spawn_clone.c knows of the child's code: where it begins. */
#ifndef AIOPROC_CHILD_CODE_H
#define AIOPROC_CHILD_CODE_H

#include "inline_syscalls.h"
#include "internal.h"

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

enum { KERNEL_SIGSET_SIZE = 8 };

typedef struct {
  volatile int seen;
} probe_mark;

/* For clone() alone: nothing else runs them. Carries out an ap_plan; does not return,
 * but for the exec's result in plan->result_fd. */
int ap_child_main(void *plan);
/* Sets a probe_mark and ends with exit code 7. */
int ap_child_probe(void *mark);

#endif
