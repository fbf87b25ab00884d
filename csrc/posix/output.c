/* What a child has written, read at its end in the loop's place. Most children write little,
 * and end before anybody needs it. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "internal.h"

bool output_has_ended(const ap_child *child) {
  struct pollfd pipes[OUTPUT_COUNT];
  for (int i = 0; i < OUTPUT_COUNT; i++)
    pipes[i] = (struct pollfd){.fd = child->output[i]}; /* poll(2) passes over -1 */
  if (poll(pipes, OUTPUT_COUNT, 0) < 0) return false;
  for (int i = 0; i < OUTPUT_COUNT; i++)
    if (pipes[i].fd >= 0 && !(pipes[i].revents & POLLHUP)) return false;
  return true;
}

/* Reads a pipe that has no writer any more. True: to its end. */
static bool read_all(int fd, char *memory, size_t room, size_t *size) {
  for (*size = 0; *size < room;) {
    ssize_t n = read(fd, memory + *size, room - *size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false; /* whoever reads it next is told why */
    if (n == 0) return true;
    *size += (size_t)n;
    /* On Linux that was all, if there was room for more (anon_pipe_read in fs/pipe.c). */
    if (AP_LINUX && *size < room) return true;
  }
  return false;
}

void output_read(ap_port *port, ap_child *child, ap_completion *out) {
  out->collected = 1;
  out->output = port->memory + port->memory_used;
  for (int i = 0; i < OUTPUT_COUNT; i++) {
    int fd = child->output[i];
    if (fd < 0) continue;
    size_t room = OUTPUT_MEMORY - port->memory_used, size = 0;
    if (read_all(fd, port->memory + port->memory_used, room, &size))
      close(fd);
    else
      out->open |= 1 << i;
    out->sizes[i] = (int32_t)size;
    port->memory_used += size;
  }
  child->collects = false;
}
