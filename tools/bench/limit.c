/* The limit: what plain C gets out of posix_spawn and waitid, with nothing around it.
 *
 *   limit [options] program [arguments]      starts it again and again
 *
 *   -n COUNT    children in all                    -t THREADS  that start them
 *   -w WIDTH    of them alive at a time
 *   -o SIZE     read their output from a pipe,     -i          and write 1 kB to their stdin
 *               which is so many bytes             -e          and read their stderr from
 *                                                              another, which is empty
 *   -d          their streams are /dev/null
 *   -s          they tell when they ended (child.c, stamp): exit-to-wakeup latency
 *
 * and before the clock starts:
 *
 *   -m MIB      of touched heap                    -f FDS      open descriptors
 *   -l LIVE     children that stay alive           -p PROGRAM  which (child.c, pause)
 *
 * Prints a JSON object: seconds of wall time and of this process's CPU time, and with -s
 * the median latency in seconds.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static int with_output, with_input, with_errors, with_null, with_stamp;
static size_t output_size;
static int stamps[2], null_fd;
static char **command;

struct child {
    pid_t pid;
    int output, errors;
};

struct worker {
    pthread_t thread;
    long count, width;
    double *latencies;
    char *output; /* room for one byte more than there should be */
};

static void die(const char *what, int error)
{
    fprintf(stderr, "limit: %s: %s\n", what, strerror(error));
    exit(1);
}

static void check(const char *what, int error)
{
    if (error)
        die(what, error);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static double cpu_time(void)
{
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return use.ru_utime.tv_sec + use.ru_stime.tv_sec
        + (use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
}

static void open_pipe(int ends[2])
{
    if (pipe2(ends, O_CLOEXEC) < 0)
        die("pipe2", errno);
}

static void start(struct child *child)
{
    posix_spawn_file_actions_t actions;
    int input[2] = {-1, -1}, output[2] = {-1, -1}, errors[2] = {-1, -1};

    posix_spawn_file_actions_init(&actions);
    if (with_output) {
        open_pipe(output);
        posix_spawn_file_actions_adddup2(&actions, output[1], 1);
    }
    if (with_errors) {
        open_pipe(errors);
        posix_spawn_file_actions_adddup2(&actions, errors[1], 2);
    }
    if (with_null)
        for (int fd = 0; fd < 3; fd++)
            posix_spawn_file_actions_adddup2(&actions, null_fd, fd);
    if (with_input) {
        open_pipe(input);
        posix_spawn_file_actions_adddup2(&actions, input[0], 0);
    }
    if (with_stamp)
        posix_spawn_file_actions_adddup2(&actions, stamps[1], 1);
    check(command[0], posix_spawn(&child->pid, command[0], &actions, NULL, command, environ));
    posix_spawn_file_actions_destroy(&actions);
    if (with_output)
        close(output[1]);
    if (with_errors)
        close(errors[1]);
    child->output = output[0];
    child->errors = errors[0];
    if (with_input) {
        char data[1024];
        memset(data, 'x', sizeof data);
        close(input[0]);
        if (write(input[1], data, sizeof data) != sizeof data)
            die("write", errno);
        close(input[1]);
    }
}

static void finish(struct child *child, char *output)
{
    siginfo_t info;

    if (child->output >= 0) {
        size_t size = 0;
        ssize_t n;
        while ((n = read(child->output, output + size, output_size + 1 - size)) > 0)
            size += (size_t)n;
        if (n < 0)
            die("read", errno);
        if (size != output_size)
            die("a child's output has another size", 0);
        close(child->output);
    }
    if (child->errors >= 0) {
        char byte;
        ssize_t n = read(child->errors, &byte, 1);
        if (n < 0)
            die("read", errno);
        if (n > 0)
            die("a child wrote to stderr", 0);
        close(child->errors);
    }
    if (waitid(P_PID, (id_t)child->pid, &info, WEXITED) < 0)
        die("waitid", errno);
    if (info.si_status != 0)
        die("a child failed", 0);
}

/* Keeps `width` children alive; the oldest is finished to make room for the next. */
static void *work(void *argument)
{
    struct worker *worker = argument;
    struct child *ring = calloc((size_t)worker->width, sizeof *ring);
    for (long i = 0; i < worker->count + worker->width; i++) {
        struct child *child = &ring[i % worker->width];
        if (i >= worker->width && i - worker->width < worker->count) {
            finish(child, worker->output);
            if (with_stamp) {
                double end = now();
                char text[32] = "";
                if (read(stamps[0], text, sizeof text - 1) < 0)
                    die("read", errno);
                worker->latencies[i - worker->width] = end - (double)atoll(text) / 1e9;
            }
        }
        if (i < worker->count)
            start(child);
    }
    free(ring);
    return NULL;
}

static void allow_descriptors(void)
{
    struct rlimit limit = {1 << 20, 1 << 20};
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0) {
        getrlimit(RLIMIT_NOFILE, &limit);
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void open_descriptors(long count)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (long i = 1; i < count; i++)
        if (fcntl(null, F_DUPFD_CLOEXEC, 0) < 0)
            die("F_DUPFD_CLOEXEC", errno);
}

static pid_t *start_live(long count, char *program)
{
    char *arguments[] = {program, "pause", NULL};
    pid_t *pids = calloc((size_t)count, sizeof *pids);
    for (long i = 0; i < count; i++)
        check(program, posix_spawn(&pids[i], program, NULL, NULL, arguments, environ));
    return pids;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    long count = 1, width = 1, threads = 1, heap = 0, descriptors = 0, live = 0;
    char *live_program = "";
    int option;

    while ((option = getopt(argc, argv, "+n:w:t:o:iedsm:f:l:p:")) != -1) {
        switch (option) {
        case 'n': count = atol(optarg); break;
        case 'w': width = atol(optarg); break;
        case 't': threads = atol(optarg); break;
        case 'o': with_output = 1, output_size = (size_t)atol(optarg); break;
        case 'i': with_input = 1; break;
        case 'e': with_errors = 1; break;
        case 'd': with_null = 1; break;
        case 's': with_stamp = 1; break;
        case 'm': heap = atol(optarg); break;
        case 'f': descriptors = atol(optarg); break;
        case 'l': live = atol(optarg); break;
        case 'p': live_program = optarg; break;
        default: return 2;
        }
    }
    command = argv + optind;
    if (!*command || count < threads || threads < 1 || threads > 64)
        return 2;

    if (heap > 0) {
        char *memory = malloc((size_t)heap << 20);
        if (!memory)
            die("malloc", errno);
        memset(memory, 'x', (size_t)heap << 20);
        __asm__ volatile("" : : "r"(memory) : "memory"); /* it is wanted */
    }
    if (descriptors > 0) {
        allow_descriptors();
        open_descriptors(descriptors);
    }
    pid_t *pids = start_live(live, live_program);
    if (with_stamp)
        open_pipe(stamps);
    if (with_null && (null_fd = open("/dev/null", O_RDWR | O_CLOEXEC)) < 0)
        die("/dev/null", errno);

    double *latencies = calloc((size_t)count, sizeof *latencies);
    struct worker workers[64];
    double wall = now(), cpu = cpu_time();
    for (long i = 0, first = 0; i < threads; i++) {
        long share = count / threads + (i < count % threads);
        workers[i] = (struct worker){
            .count = share,
            .width = width > threads ? width / threads : 1,
            .latencies = latencies + first,
            .output = malloc(output_size + 1),
        };
        first += share;
        if (!workers[i].output)
            die("malloc", errno);
        check("pthread_create", pthread_create(&workers[i].thread, NULL, work, &workers[i]));
    }
    for (long i = 0; i < threads; i++)
        pthread_join(workers[i].thread, NULL);
    wall = now() - wall;
    cpu = cpu_time() - cpu;

    for (long i = 0; i < live; i++) {
        kill(pids[i], SIGKILL);
        waitpid(pids[i], NULL, 0);
    }
    printf("{\"wall\": %.9f, \"cpu\": %.9f", wall, cpu);
    if (with_stamp) {
        qsort(latencies, (size_t)count, sizeof *latencies, by_size);
        printf(", \"latency\": %.9f", latencies[count / 2]);
    }
    puts("}");
    return 0;
}
