/* The pipes of a child to be, and its /dev/null: opened in one call, so that nothing of them
 * is lost when the caller is interrupted. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include "internal.h"

#if AP_LINUX || defined(__FreeBSD__) || defined(__NetBSD__) || defined(__OpenBSD__)
static int open_pipe(int ends[2]) { return pipe2(ends, O_CLOEXEC) < 0 ? -errno : 0; }
#else
/* macOS: a fork in another thread may come between, as with Python's os.pipe(). */
static int open_pipe(int ends[2]) {
  if (pipe(ends) < 0) return -errno;
  fcntl(ends[0], F_SETFD, FD_CLOEXEC);
  fcntl(ends[1], F_SETFD, FD_CLOEXEC);
  return 0;
}
#endif

/* Opens one stream; 0 or -errno. */
static int open_stream(ap_request *request, int number, int *theirs) {
  if (request->fds[number] == AP_NULL) {
    /* One for all. */
    for (int i = 0; i < number; i++)
      if (request->fds[i] == request->null_fd) {
        request->fds[number] = request->null_fd;
        return 0;
      }
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (fd < 0) return -errno;
    request->fds[number] = request->null_fd = *theirs = fd;
  } else if (request->fds[number] == AP_PIPE) {
    int ends[2];
    int result = open_pipe(ends);
    if (result < 0) return result;
    int mine = number == 0;
    request->ours[number] = ends[mine];
    request->fds[number] = *theirs = ends[!mine];
    /* What is read at the child's end alone does not block. */
    bool waits = mine ? request->input_size > PIPE_BUF || !request->input
                      : !(request->flags & AP_COLLECT);
    /* Of our end only: the flag is the end's, and programs expect blocking. */
    if (waits && fcntl(ends[mine], F_SETFL, O_NONBLOCK) < 0) return -errno;
#ifdef F_SETPIPE_SZ
    if (request->pipe_size > 0 && fcntl(ends[1], F_SETPIPE_SZ, request->pipe_size) < 0)
      return -errno;
#endif
  }
  return 0;
}

/* Before there is a child, so that there is a reader in any case, and no SIGPIPE. */
static void write_input(ap_request *request) {
  int fd = request->ours[0];
  if (fd < 0) return;
  ssize_t n = request->input_size ? write(fd, request->input, (size_t)request->input_size) : 0;
  request->input_taken = n > 0 ? n : 0;
  if (request->input_taken == request->input_size) {
    close(fd);
    request->ours[0] = -1;
  }
}

int stdio_open(ap_request *request, int *theirs) {
  int result = 0;
  request->null_fd = -1;
  for (int i = 0; i < STDIO_COUNT; i++) request->ours[i] = theirs[i] = -1;
  for (int i = 0; i < STDIO_COUNT && result == 0; i++)
    result = open_stream(request, i, &theirs[i]);
  if (result == 0 && request->input) write_input(request);
  if (result < 0)
    stdio_close(request, theirs, false);
  else if (request->err_to_out)
    /* Without a stdout of its own the child has ours. */
    request->fds[2] = request->fds[1] >= 0 ? request->fds[1] : 1;
  return result;
}

void stdio_close(ap_request *request, int *theirs, bool made) {
  for (int i = 0; i < STDIO_COUNT; i++) {
    if (theirs[i] >= 0) close(theirs[i]);
    theirs[i] = -1;
    if (!made && request->ours[i] >= 0) {
      close(request->ours[i]);
      request->ours[i] = -1;
    }
  }
}
