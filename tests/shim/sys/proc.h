/* States of a process, as FreeBSD has them: see sysctl.h beside this. */
#ifndef SHIM_SYS_PROC_H
#define SHIM_SYS_PROC_H

enum { SRUN = 2, SSTOP = 4, SZOMB = 5 };

#endif
