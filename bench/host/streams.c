/*
 * streams.c: a host with many streams on one thread, in background mode, around one epoll loop: what the bench measures
 * memory, threads and fairness on.
 *
 *     streams COUNT CONNINFO DIRECTORY START_LSN     stream i writes to DIRECTORY/i
 *
 * It connects, prints "connected" and waits for a line on standard input; then it starts all streams and prints
 * "started". From then on, each line is answered by one: how many bytes of WAL each stream has received. At the end of its input it stops them and ends.
 *
 * BSD-3-Clause. See LICENSE.
 */
#include <errno.h>
#include <inttypes.h>
#include <libpq-fe.h>
#include <limits.h>
#include <receivewal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct stream
{
    PGconn *conn;
    receivewal *rw;
} stream;

static _Noreturn void die(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fputs("streams: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    exit(1);
}

static void on_log(void *ctx, receivewal_log_level level, const char *text)
{
    (void)ctx;
    if (level >= RECEIVEWAL_LOG_WARNING)
        fprintf(stderr, "streams: %s\n", text);
}

static PGconn *connect_to(const char *conninfo)
{
    const char *keywords[] = { "dbname", "replication", NULL };
    const char *values[] = { conninfo, "true", NULL };
    PGconn *conn = PQconnectdbParams(keywords, values, 1);

    if (PQstatus(conn) != CONNECTION_OK)
        die("%s", PQerrorMessage(conn));
    return conn;
}

static void start(stream *s, int number, const char *folder, receivewal_lsn lsn)
{
    receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;
    receivewal_options options = RECEIVEWAL_OPTIONS_INIT;
    char directory[PATH_MAX];

    if (snprintf(directory, sizeof(directory), "%s/%d", folder, number) >= (int)sizeof(directory))
        die("%s is too long", folder);
    if (mkdir(directory, 0700) != 0)
        die("%s: %s", directory, strerror(errno));
    connection.fd = PQsocket(s->conn);
    connection.server_version = PQserverVersion(s->conn);
    options.directory = directory;
    options.start_lsn = lsn;
    options.events.log = on_log;
    if (receivewal_attach(&connection, &s->rw) != RECEIVEWAL_OK)
        die("%s", receivewal_errmsg(NULL));
    if (receivewal_start(s->rw, &options) != RECEIVEWAL_OK)
        die("%s", receivewal_errmsg(s->rw));
}

static void print_bytes(const stream *streams, int count)
{
    for (int i = 0; i < count; i++)
    {
        receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;

        if (receivewal_get_progress(streams[i].rw, &progress) != RECEIVEWAL_OK)
            die("%s", receivewal_errmsg(streams[i].rw));
        printf("%" PRIu64 "%c", progress.bytes, i + 1 < count ? ' ' : '\n');
    }
    fflush(stdout);
}

/* What came on standard input: 1 if the streams are to go on. */
static int answer(const stream *streams, int count)
{
    char line[100];
    const ssize_t n = read(STDIN_FILENO, line, sizeof(line));

    if (n < 0)
        die("read: %s", strerror(errno));
    if (n > 0)
        print_bytes(streams, count);
    return n > 0;
}

static void loop(const stream *streams, int count)
{
    const int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = { .events = EPOLLIN, .data.fd = -1 };

    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event) != 0)
        die("epoll: %s", strerror(errno));
    for (int i = 0; i < count; i++)
    {
        event.data.fd = i;
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, receivewal_event_fd(streams[i].rw), &event) != 0)
            die("epoll: %s", strerror(errno));
    }
    for (;;)
    {
        struct epoll_event events[64];
        const int n = epoll_wait(epoll, events, 64, -1);

        for (int i = 0; i < n; i++)
        {
            receivewal *rw = events[i].data.fd < 0 ? NULL : streams[events[i].data.fd].rw;

            if (rw == NULL && !answer(streams, count))
                return;
            if (rw != NULL && receivewal_dispatch(rw) != RECEIVEWAL_PENDING)
                die("stream %d: %s", events[i].data.fd, receivewal_errmsg(rw));
        }
    }
}

int main(int argc, char **argv)
{
    const int count = argc == 5 ? atoi(argv[1]) : 0;
    struct rlimit limit;
    receivewal_lsn lsn;
    stream *streams;
    char line[10];

    if (count < 1 || receivewal_lsn_parse(argv[4], &lsn) != RECEIVEWAL_OK)
        die("see the top of streams.c");
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    streams = calloc((size_t)count, sizeof(*streams));
    if (streams == NULL)
        die("out of memory");
    for (int i = 0; i < count; i++)
        streams[i].conn = connect_to(argv[2]);
    puts("connected");
    fflush(stdout);
    if (read(STDIN_FILENO, line, sizeof(line)) <= 0)
        die("no input");
    for (int i = 0; i < count; i++)
        start(&streams[i], i, argv[3], lsn);
    puts("started");
    fflush(stdout);
    loop(streams, count);
    for (int i = 0; i < count; i++)
        receivewal_stop(streams[i].rw);
    for (int i = 0; i < count; i++)
    {
        if (receivewal_wait(streams[i].rw, -1) != RECEIVEWAL_ERR_STOPPED)
            die("stream %d: %s", i, receivewal_errmsg(streams[i].rw));
        receivewal_detach(streams[i].rw);
        PQfinish(streams[i].conn);
    }
    free(streams);
    return 0;
}
