/* What the children of the benchmark do, where coreutils has no program that does just
 * that: quick ones, so that the parent is measured and not the child. */

#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* What cat uses. */
static char block[128 * 1024];

static void put(const char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = write(1, data, size);
        if (n < 0)
            exit(1);
        data += n;
        size -= (size_t)n;
    }
}

/* Writes so many bytes. */
static void flood(size_t size)
{
    memset(block, 'x', sizeof block);
    for (; size > sizeof block; size -= sizeof block)
        put(block, sizeof block);
    put(block, size);
}

/* Writes so many short lines. */
static void lines(size_t count)
{
    static const char line[] = "a line of output, short\n";
    const size_t size = sizeof line - 1, most = sizeof block / size;
    for (size_t i = 0; i < most; i++)
        memcpy(block + i * size, line, size);
    for (; count > most; count -= most)
        put(block, most * size);
    put(block, count * size);
}

/* Reads stdin to its end. */
static void sink(void)
{
    ssize_t n;
    do
        n = read(0, block, sizeof block);
    while (n > 0);
}

/* Tells the time in ns and ends at once. */
static void stamp(void)
{
    char text[32];
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int size = snprintf(text, sizeof text, "%lld", now.tv_sec * 1000000000LL + now.tv_nsec);
    put(text, (size_t)size);
    _exit(0);
}

/* Until the other end of a pipe is closed: by whoever has it, or by its death. */
static void stay(int fd)
{
    struct pollfd pipe = {.fd = fd};
    while (!(pipe.revents & (POLLHUP | POLLERR)))
        poll(&pipe, 1, -1);
}

/* So many idle processes, with this one, till the end of stdin. A byte says that all are
 * there. */
static void crowd(long count)
{
    for (long i = 1; i < count; i++) {
        pid_t pid = fork();
        if (pid < 0)
            exit(1); /* nobody has stdout any more: it is seen, and stdin closed */
        if (pid == 0) {
            close(1);
            stay(0);
            _exit(0);
        }
    }
    put("+", 1);
    stay(0);
    while (wait(NULL) > 0)
        ;
}

static struct timespec delay;

/* Writes its number and the time in ns, in binary, and ends. */
static void obey(int number)
{
    (void)number;
    nanosleep(&delay, NULL);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long long stamp[] = {getpid(), now.tv_sec * 1000000000LL + now.tv_nsec};
    _exit(write(1, stamp, sizeof stamp) != sizeof stamp);
}

/* So many processes, with this one, that end by SIGTERM: this one at once, each other a bit
 * later than the one before it, the last after nearly so many microseconds. A byte says that
 * all are there, or that there is no room for them. They stay no longer than somebody can
 * read what they write. */
static void tree(long count, long spread)
{
    signal(SIGTERM, obey);
    for (long i = 1; i < count; i++) {
        pid_t pid = fork();
        if (pid < 0) {
            put("-", 1);
            exit(1);
        }
        if (pid == 0) {
            long long wait = spread * 1000LL * i / count;
            delay = (struct timespec){.tv_sec = wait / 1000000000, .tv_nsec = wait % 1000000000};
            stay(1);
            _exit(0);
        }
    }
    put("+", 1);
    stay(1);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    long number = argc > 2 ? atol(argv[2]) : 0;
    if (!strcmp(what, "flood"))
        flood((size_t)number);
    else if (!strcmp(what, "lines"))
        lines((size_t)number);
    else if (!strcmp(what, "sink"))
        sink();
    else if (!strcmp(what, "stamp"))
        stamp();
    else if (!strcmp(what, "pause"))
        pause();
    else if (!strcmp(what, "crowd"))
        crowd(number);
    else if (!strcmp(what, "tree"))
        tree(number, argc > 3 ? atol(argv[3]) : 0);
    else
        return 2;
    return 0;
}
