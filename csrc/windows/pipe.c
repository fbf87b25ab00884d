/* Pipes: our end overlapped, on the port; the child's an ordinary one. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum {
  MOST_WRITTEN = 256 * 1024, /* of one ap_pipe_write */
  ATTEMPTS = 16              /* at a name that nobody else has */
};

/* -- opening */

static volatile LONG names;

static int open_ours(int what, uint32_t size, wchar_t *name, HANDLE *result) {
  static const wchar_t digits[] = L"0123456789abcdef";
  /* A pipe that we write to is read from as well: the read ends when nobody holds the
   * other end any more. */
  DWORD access = what == AP_WE_READ ? PIPE_ACCESS_INBOUND : PIPE_ACCESS_DUPLEX;
  for (int i = 0; i < ATTEMPTS; i++) {
    LARGE_INTEGER now;
    QueryPerformanceCounter(&now);
    uint64_t parts[] = {GetCurrentProcessId(), (uint64_t)InterlockedIncrement(&names),
                        (uint64_t)now.QuadPart};
    wchar_t *at = name;
    for (const wchar_t *from = L"\\\\.\\pipe\\aioproc"; *from;) *at++ = *from++;
    for (int part = 0; part < 3; part++) {
      *at++ = L'-';
      for (int shift = part == 2 ? 60 : 28; shift >= 0; shift -= 4)
        *at++ = digits[(parts[part] >> shift) & 15];
    }
    *at = L'\0';
    *result = CreateNamedPipeW(
        name, access | FILE_FLAG_OVERLAPPED | FILE_FLAG_FIRST_PIPE_INSTANCE,
        PIPE_TYPE_BYTE | PIPE_READMODE_BYTE | PIPE_WAIT | PIPE_REJECT_REMOTE_CLIENTS, 1,
        what == AP_WE_READ ? 0 : size, what == AP_WE_READ ? size : 0, 0, NULL);
    if (*result != INVALID_HANDLE_VALUE) return 0;
    /* The name exists. */
    if (GetLastError() != ERROR_ACCESS_DENIED && GetLastError() != ERROR_PIPE_BUSY)
      break;
  }
  return failure();
}

static int open_both(int what, uint32_t size, HANDLE *ours, HANDLE *theirs) {
  wchar_t name[64];
  DWORD access = what == AP_WE_READ ? GENERIC_WRITE | FILE_READ_ATTRIBUTES
                                    : GENERIC_READ | FILE_WRITE_ATTRIBUTES;
  for (int i = 0;; i++) {
    int error = open_ours(what, size, name, ours);
    if (error) return error;
    /* This connects them; ConnectNamedPipe would only say so. */
    *theirs = CreateFileW(name, access, 0, NULL, OPEN_EXISTING, 0, NULL);
    if (*theirs != INVALID_HANDLE_VALUE) return 0;
    error = failure();
    CloseHandle(*ours);
    /* Somebody else came between the two calls. It has done them no good. */
    if (error != -ERROR_PIPE_BUSY || i == ATTEMPTS) return error;
  }
}

int ap_pipe_open(ap_port *port, int64_t key, int what, uint32_t size, ap_pipe **result,
                 int64_t *theirs) {
  int error = 0;
  HANDLE end = INVALID_HANDLE_VALUE;
  ap_pipe *pipe = calloc(1, sizeof *pipe);
  if (!pipe) return -ERROR_NOT_ENOUGH_MEMORY;
  pipe->key = key;
  pipe->port = port;
  pipe->read.pipe = pipe->write.pipe = pipe;
  error = open_both(what, size, &pipe->handle, &end);
  if (error) goto finish;
  if (!CreateIoCompletionPort(pipe->handle, port->iocp, KEY_PIPE, 0)) {
    error = failure();
    CloseHandle(pipe->handle);
    CloseHandle(end);
    goto finish;
  }
  pipe->skips = SetFileCompletionNotificationModes(pipe->handle,
                                                   FILE_SKIP_COMPLETION_PORT_ON_SUCCESS);
  *theirs = (int64_t)(intptr_t)end;
  lock();
  pipe->next = port->pipes;
  if (pipe->next) pipe->next->prev = pipe;
  port->pipes = pipe;
  port->live++;
  unlock();
  *result = pipe;
  pipe = NULL;

finish:
  free(pipe);
  return error;
}

int64_t ap_pipe_handle(const ap_pipe *pipe) {
  return (int64_t)(intptr_t)pipe->handle;
}

/* -- operations */

static bool reserve(ap_operation *operation, uint32_t size) {
  if (size > operation->allocated) {
    free(operation->buffer); /* what is in it has been fetched, or has gone out */
    operation->buffer = malloc(size);
    operation->allocated = operation->buffer ? size : 0;
  }
  operation->size = size;
  return operation->buffer != NULL;
}

/* 0 when it has been done at once, and no packet comes; -AP_PENDING; -error. */
static int issue(ap_operation *operation) {
  ap_pipe *pipe = operation->pipe;
  bool skips = pipe->skips;
  memset(&operation->overlapped, 0, sizeof operation->overlapped);
  BOOL done = operation == &pipe->read
                  ? ReadFile(pipe->handle, operation->buffer, operation->size, NULL,
                             &operation->overlapped)
                  : WriteFile(pipe->handle, operation->buffer, operation->size, NULL,
                              &operation->overlapped);
  /* A pending one may be over by now, and the pipe gone with it. */
  if (done) return skips ? 0 : -AP_PENDING;
  return failure();
}

/* As issue, in the loop's thread, with the packet accounted for. */
static int start(ap_operation *operation) {
  lock();
  ap_port *port = operation->pipe->port;
  bool possible = port && !port->closing;
  if (possible) {
    operation->pending = true;
    port->pending++;
  }
  unlock();
  if (!possible) return -ERROR_OPERATION_ABORTED;
  int result = issue(operation);
  if (result != -AP_PENDING) {
    lock();
    operation->pending = false;
    port->pending--;
    unlock();
  }
  return result;
}

/* What it brought: bytes, 0 for a read at the end, -error. -ERROR_RETRY for a read that
 * a write of no bytes has ended. */
static int outcome(ap_operation *operation) {
  DWORD n = 0;
  bool reads = operation == &operation->pipe->read;
  if (GetOverlappedResult(operation->pipe->handle, &operation->overlapped, &n, FALSE))
    return n || !reads ? (int)n : -ERROR_RETRY;
  return failure();
}

static int end_or_error(int result) {
  switch (-result) {
    case ERROR_BROKEN_PIPE:
    case ERROR_HANDLE_EOF:
    case ERROR_NO_DATA:
    case ERROR_PIPE_NOT_CONNECTED:
      return 0;
    default:
      return result;
  }
}

static bool is_pending(const ap_operation *operation) {
  lock();
  bool pending = operation->pending;
  unlock();
  return pending;
}

int ap_pipe_read(ap_pipe *pipe, uint32_t size) {
  int result;
  if (is_pending(&pipe->read)) return -AP_PENDING;
  if (!reserve(&pipe->read, size)) return -ERROR_NOT_ENOUGH_MEMORY;
  do {
    result = start(&pipe->read);
    if (result == 0) result = outcome(&pipe->read);
  } while (result == -ERROR_RETRY);
  return end_or_error(result);
}

int ap_pipe_arriving(ap_pipe *pipe) {
  lock();
  bool arriving =
      !pipe->read.pending || HasOverlappedIoCompleted(&pipe->read.overlapped);
  unlock();
  return arriving;
}

char *ap_pipe_data(ap_pipe *pipe) { return pipe->read.buffer; }

int ap_pipe_write(ap_pipe *pipe, const char *data, uint32_t n) {
  ap_operation *operation = &pipe->write;
  if (is_pending(operation)) return -AP_PENDING;
  if (operation->result < 0) return operation->result;
  if (n > MOST_WRITTEN) n = MOST_WRITTEN;
  if (!reserve(operation, n)) return -ERROR_NOT_ENOUGH_MEMORY;
  memcpy(operation->buffer, data, n);
  int result = start(operation);
  if (result == -AP_PENDING) return (int)n;
  operation->result = result == 0 ? outcome(operation) : result;
  return operation->result;
}

int ap_pipe_writing(ap_pipe *pipe) { return is_pending(&pipe->write); }

/* -- the end */

static void unlink_pipe(ap_pipe *pipe) {
  ap_port *port = pipe->port;
  if (!port) return;
  if (pipe->prev)
    pipe->prev->next = pipe->next;
  else
    port->pipes = pipe->next;
  if (pipe->next) pipe->next->prev = pipe->prev;
  pipe->port = NULL;
  port->live--;
}

static void close_handle(ap_pipe *pipe) {
  if (pipe->handle != INVALID_HANDLE_VALUE) CloseHandle(pipe->handle);
  pipe->handle = INVALID_HANDLE_VALUE;
}

/* Frees a pipe that was closed and has nothing going on any more. */
static void free_if_over(ap_pipe *pipe) {
  if (!pipe->closed || pipe->read.pending || pipe->write.pending) return;
  close_handle(pipe);
  if (pipe->in_news) return; /* ap_port_next will come upon it */
  unlink_pipe(pipe);
  free(pipe->read.buffer);
  free(pipe->write.buffer);
  free(pipe);
}

static void cancel(ap_operation *operation) {
  if (operation->pending && operation->pipe->handle != INVALID_HANDLE_VALUE)
    CancelIoEx(operation->pipe->handle, &operation->overlapped);
}

void ap_pipe_close(ap_pipe *pipe) {
  lock();
  ap_port *port = pipe->port;
  pipe->closed = true;
  cancel(&pipe->read);
  /* What was taken goes out first: for the caller it is in the pipe. */
  if (port && port->closing) cancel(&pipe->write);
  if (!port || port->closing || !pipe->write.pending) close_handle(pipe);
  free_if_over(pipe);
  unlock();
}

void pipe_completed(ap_operation *operation) {
  ap_pipe *pipe = operation->pipe;
  ap_port *port = pipe->port;
  int result = outcome(operation);
  bool goes_on = !pipe->closed && !port->closing;
  while (result == -ERROR_RETRY && goes_on) {
    result = issue(operation);
    if (result == -AP_PENDING) return;
    if (result == 0) result = outcome(operation);
  }
  operation->pending = false;
  operation->result = operation == &pipe->read ? end_or_error(result) : result;
  port->pending--;
  if (goes_on) {
    operation->told = true;
    tell_pipe(port, pipe);
    return;
  }
  if (port->closing && !pipe->read.pending && !pipe->write.pending) unlink_pipe(pipe);
  free_if_over(pipe);
}

int pipe_next(ap_pipe *pipe, ap_completion *out) {
  memset(out, 0, sizeof *out);
  out->token = pipe->key;
  if (pipe->closed) {
    free_if_over(pipe);
    return 0;
  }
  if (pipe->read.told) {
    pipe->read.told = false;
    out->kind = AP_READ;
    out->result = pipe->read.result;
    if (pipe->write.told) tell_pipe(pipe->port, pipe);
    return 1;
  }
  pipe->write.told = false;
  out->kind = AP_WRITTEN;
  return 1;
}

void pipes_detach(ap_port *port) {
  ap_pipe *next;
  for (ap_pipe *pipe = port->pipes; pipe; pipe = next) {
    next = pipe->next;
    pipe->in_news = false;
    cancel(&pipe->read);
    cancel(&pipe->write);
    if (pipe->read.pending || pipe->write.pending) continue;
    unlink_pipe(pipe);
    free_if_over(pipe);
  }
}
