/* System calls without libc, by architecture, for child_code.c. */
#ifndef AIOPROC_INLINE_SYSCALLS_H
#define AIOPROC_INLINE_SYSCALLS_H

#if defined(__x86_64__) && defined(__LP64__)
#define INLINE_SYSCALLS 1
#define SYSCALL_DECL(n) register long number __asm__("rax") = (n)
#define ARG1 register long arg1 __asm__("rdi") = a
#define ARG2 register long arg2 __asm__("rsi") = b
#define ARG3 register long arg3 __asm__("rdx") = c
#define ARG4 register long arg4 __asm__("r10") = d
#define ARG5 register long arg5 __asm__("r8") = e
#define SYSCALL_ASM                                                      \
  __asm__ volatile("syscall"                                             \
                   : "+r"(number)                                        \
                   : "r"(arg1), "r"(arg2), "r"(arg3), "r"(arg4),         \
                     "r"(arg5)                                           \
                   : "rcx", "r11", "memory");                            \
  return number
#elif defined(__aarch64__)
#define INLINE_SYSCALLS 1
#define SYSCALL_DECL(n) register long number __asm__("x8") = (n)
#define ARG1 register long arg1 __asm__("x0") = a
#define ARG2 register long arg2 __asm__("x1") = b
#define ARG3 register long arg3 __asm__("x2") = c
#define ARG4 register long arg4 __asm__("x3") = d
#define ARG5 register long arg5 __asm__("x4") = e
#define SYSCALL_ASM                                                      \
  __asm__ volatile("svc #0"                                              \
                   : "+r"(arg1)                                          \
                   : "r"(number), "r"(arg2), "r"(arg3), "r"(arg4),       \
                     "r"(arg5)                                           \
                   : "memory");                                          \
  return arg1
#elif defined(__riscv) && __riscv_xlen == 64
#define INLINE_SYSCALLS 1
#define SYSCALL_DECL(n) register long number __asm__("a7") = (n)
#define ARG1 register long arg1 __asm__("a0") = a
#define ARG2 register long arg2 __asm__("a1") = b
#define ARG3 register long arg3 __asm__("a2") = c
#define ARG4 register long arg4 __asm__("a3") = d
#define ARG5 register long arg5 __asm__("a4") = e
#define SYSCALL_ASM                                                      \
  __asm__ volatile("ecall"                                               \
                   : "+r"(arg1)                                          \
                   : "r"(number), "r"(arg2), "r"(arg3), "r"(arg4),       \
                     "r"(arg5)                                           \
                   : "memory");                                          \
  return arg1
#else
#define INLINE_SYSCALLS 0
#endif

#endif
