/*
 * A host with one thread and an event loop: epoll on receivewal_event_fd, receivewal_dispatch where that is readable. All
 * streams of a process run like this, however many.
 *
 *     loop STREAMS FOLDER CONNINFO...     stream i receives from one server after the other into FOLDER/<i>
 */
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "postgres.h"

#define MIB 1024

/* What the library may cost at most: above what is measured, and below what a mistake costs. */
enum { BASE_KIB_MAX = 20 * MIB, IDLE_KIB_MAX = 100, BUFFERS_KIB_MAX = 6 * MIB };

typedef struct server
{
    const char *conninfo;
    PGconn *sql;
    receivewal_lsn target;
} server;

typedef struct stream
{
    PGconn *conn;
    receivewal *rw;
    server *from;
    receivewal_lsn written;
    int completed;
    bool ended, elsewhere;
    receivewal_status status;
} stream;

static stream *streams;
static server *servers;
static int stream_count, server_count, poll_fd, most_threads, threads_max;
static pid_t main_thread;

static receivewal_lsn ask_lsn(server *s, const char *sql)
{
    PGresult *result = PQexec(s->sql, sql);
    receivewal_lsn lsn;

    if (PQresultStatus(result) != PGRES_TUPLES_OK)
        printf("# %s: %s", sql, PQerrorMessage(s->sql));
    REQUIRE(PQresultStatus(result) == PGRES_TUPLES_OK);
    lsn = pg_lsn(PQgetvalue(result, 0, 0));
    PQclear(result);
    return lsn;
}

static void here(stream *s)
{
    s->elsewhere |= (pid_t)syscall(SYS_gettid) != main_thread;
}

static int on_completed(void *ctx, const receivewal_segment *segment)
{
    stream *s = ctx;

    (void)segment;
    here(s);
    s->completed++;
    return 0;
}

static int on_progress(void *ctx, const receivewal_progress *progress)
{
    stream *s = ctx;

    here(s);
    s->written = progress->written_lsn;
    return 0;
}

static void begin(int i)
{
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
    stream *s = &streams[i];
    char directory[PATH_MAX];
    char folder[PATH_MAX];
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = s };

    o.directory = numbered(getcwd(folder, sizeof(folder)), i, directory);
    o.progress_interval = 100;
    o.events.ctx = s;
    o.events.segment_completed = on_completed;
    o.events.progress = on_progress;
    s->rw = pg_attach(s->conn);
    REQUIRE(epoll_ctl(poll_fd, EPOLL_CTL_ADD, receivewal_event_fd(s->rw), &event) == 0);
    s->status = receivewal_start(s->rw, &o);
    if (s->status != RECEIVEWAL_OK)
        printf("# stream %d: %d %s\n", i, (int)s->status, receivewal_errmsg(s->rw));
    REQUIRE(s->status == RECEIVEWAL_OK);
}

/* Runs the loop for some milliseconds at most, or until all streams with a handle satisfy a condition. */
static bool loop(int ms, bool (*done)(stream *s))
{
    const int64_t until = milliseconds() + ms;
    struct epoll_event ready[64];

    for (;;)
    {
        int count, missing = 0;

        for (int i = 0; i < stream_count && done != NULL; i++)
            missing += streams[i].rw != NULL && !done(&streams[i]);
        if (done != NULL && missing == 0)
            return true;
        if (milliseconds() > until)
            return false;
        count = epoll_wait(poll_fd, ready, 64, 50);
        for (int i = 0; i < count; i++)
        {
            stream *s = ready[i].data.ptr;
            receivewal_status status = receivewal_dispatch(s->rw);

            if (status == RECEIVEWAL_PENDING)
                continue;
            s->status = status;
            s->ended = true;
            epoll_ctl(poll_fd, EPOLL_CTL_DEL, receivewal_event_fd(s->rw), NULL);
        }
        if (threads() > most_threads)
            most_threads = threads();
    }
}

static bool caught_up(stream *s)
{
    return s->ended || s->written >= s->from->target;
}

static bool ended(stream *s)
{
    return s->ended;
}

static long rss(void)
{
    return proc_kb("/proc/self/smaps_rollup", "Rss");
}

/* The memory in use once nothing happens: after two seconds, or, while it is more than most KiB, up to a minute. */
static long rest(long most)
{
    const int64_t until = milliseconds() + 60000;

    do
        loop(2000, NULL);
    while (rss() > most && milliseconds() < until);
    return rss();
}

static double cpu(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv)
{
    struct rlimit limit, now;
    long before, one, idle, later;
    int wrong = 0, elsewhere = 0, missed = 0, unusable = 0, before_fds, first_threads;
    double used;
    int64_t began;

    REQUIRE(argc >= 4);
    setvbuf(stdout, NULL, _IOLBF, 0);
    threads_max = 26 + 2 * (int)sysconf(_SC_NPROCESSORS_ONLN);
    main_thread = (pid_t)syscall(SYS_gettid);
    stream_count = atoi(argv[1]);
    REQUIRE(chdir(argv[2]) == 0);
    server_count = argc - 3;
    servers = calloc((size_t)server_count, sizeof(*servers));
    streams = calloc((size_t)stream_count, sizeof(*streams));
    REQUIRE(servers != NULL && streams != NULL && getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = (rlim_t)stream_count * 12 + 100;
    REQUIRE(limit.rlim_cur <= limit.rlim_max && setrlimit(RLIMIT_NOFILE, &limit) == 0);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    REQUIRE(poll_fd >= 0);
    for (int i = 0; i < server_count; i++)
    {
        servers[i].conninfo = argv[3 + i];
        servers[i].sql = PQconnectdb(servers[i].conninfo);
        REQUIRE(PQstatus(servers[i].sql) == CONNECTION_OK);
    }
    for (int i = 0; i < stream_count; i++)
    {
        streams[i].from = &servers[i % server_count];
        streams[i].conn = pg_connect(streams[i].from->conninfo, "loop");
    }

    /* The base: all that the first stream costs. */
    before = rss();
    receivewal_detach(pg_attach(streams[0].conn)); /* the runtime opens some descriptors for good */
    before_fds = descriptors();
    for (int i = 0; i < server_count; i++)
        servers[i].target = ask_lsn(&servers[i], "select pg_current_wal_flush_lsn()");
    begin(0);
    CHECK("the first stream catches up", loop(60000, caught_up), "at %llx", (unsigned long long)streams[0].written);
    loop(500, NULL);
    one = rss();
    first_threads = threads();
    began = milliseconds();
    for (int i = 1; i < stream_count; i++)
    {
        begin(i);
        loop(0, NULL);
    }
    CHECK("all streams catch up", loop(300000, caught_up), "they don't");
    printf("# %d streams after %d ms\n", stream_count, (int)(milliseconds() - began));
    idle = rest(one + IDLE_KIB_MAX * (stream_count - 1));
    used = cpu();
    loop(3000, NULL);
    printf("# %.2f ms of CPU a second while all are idle\n", (cpu() - used) * 1000 / 3);
    printf("# base %ld KiB, %ld KiB an idle stream, %d descriptors a stream\n", one - before, (idle - one) / (stream_count - 1),
           (descriptors() - before_fds) / stream_count);

    /* A burst on every stream, and back to rest. */
    for (int i = 0; i < server_count; i++)
    {
        ask_lsn(&servers[i], "select pg_logical_emit_message(false, 'x', repeat('y', 1200000))");
        ask_lsn(&servers[i], "select pg_switch_wal()");
        ask_lsn(&servers[i], "select pg_logical_emit_message(true, 'x', 'y')");
        servers[i].target = ask_lsn(&servers[i], "select pg_current_wal_flush_lsn()");
    }
    began = milliseconds();
    CHECK("all streams receive", loop(300000, caught_up), "they don't");
    printf("# a burst after %d ms\n", (int)(milliseconds() - began));
    later = rest(one + BUFFERS_KIB_MAX + IDLE_KIB_MAX * (stream_count - 1));
    printf("# %ld KiB a stream after the burst; threads: %d with one stream, at most %d\n", (later - one) / (stream_count - 1), first_threads,
           most_threads);
    CHECK("threads don't grow with streams", most_threads < threads_max, "%d", most_threads);
    CHECK("the base", one - before <= BASE_KIB_MAX, "%ld KiB", one - before);
    CHECK("an idle stream", (idle - one) / (stream_count - 1) <= IDLE_KIB_MAX, "%ld KiB", (idle - one) / (stream_count - 1));
    CHECK("streams that are idle again", later - one <= BUFFERS_KIB_MAX + stream_count * IDLE_KIB_MAX, "%ld KiB", later - one);
    REQUIRE(getrlimit(RLIMIT_NOFILE, &now) == 0);
    CHECK("the limit of descriptors is as it was", now.rlim_cur == limit.rlim_cur && now.rlim_max == limit.rlim_max, "%lu instead of %lu",
          (unsigned long)now.rlim_cur, (unsigned long)limit.rlim_cur);

    for (int i = 0; i < stream_count; i++)
        wrong += receivewal_stop(streams[i].rw) != RECEIVEWAL_OK;
    CHECK("all streams end", loop(120000, ended), "they don't");
    for (int i = 0; i < stream_count; i++)
    {
        stream *s = &streams[i];

        if (s->status != RECEIVEWAL_ERR_STOPPED)
            printf("# stream %d: %d %s\n", i, (int)s->status, receivewal_errmsg(s->rw));
        wrong += s->status != RECEIVEWAL_ERR_STOPPED;
        elsewhere += s->elsewhere;
        missed += s->completed < 1;
        wrong += receivewal_detach(s->rw) != RECEIVEWAL_OK;
        unusable += !pg_usable(s->conn);
    }
    CHECK("each by receivewal_stop", wrong == 0, "%d did not", wrong);
    CHECK("callbacks ran on the loop's thread", elsewhere == 0, "%d did not", elsewhere);
    CHECK("each stream told of its segments", missed == 0, "%d did not", missed);
    CHECK("the connections are the host's again", unusable == 0, "%d are not", unusable);
    CHECK("no descriptor is left", descriptors() == before_fds, "%d before, %d after", before_fds, descriptors());
    CHECK("threads are still few", threads() < threads_max, "%d", threads());
    for (int i = 0; i < stream_count; i++)
        PQfinish(streams[i].conn);
    for (int i = 0; i < server_count; i++)
        PQfinish(servers[i].sql);
    return 0;
}
