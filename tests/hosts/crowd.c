/*
 * A host with threads: each receives with a handle of its own, while others look, stop, and get in the way.
 *
 *     crowd CONNINFO FOLDER SEGMENTS     each stream receives so many segments
 */
#include <pthread.h>
#include <sys/syscall.h>

#include "postgres.h"

enum { STREAMS = 4, LOOKERS = 2, STOPPERS = 1, CLASHERS = 2 };

typedef struct stream
{
    _Atomic(receivewal *) rw;
    PGconn *conn;
    int number;
    pid_t thread;            /* that is in receivewal_receive */
    _Atomic int inside;      /* callbacks that run now */
    _Atomic int elsewhere, together, refused;
    int completed, stopped, lost;
    receivewal_status status;
    char problem[300];
} stream;

static stream streams[STREAMS];
static const char *conninfo, *folder;
static int wanted;
static _Atomic int running = STREAMS;
static _Atomic int looked, nonsense, stops, wrong_answers, clashes;

static void enter(stream *s)
{
    s->elsewhere += (pid_t)syscall(SYS_gettid) != s->thread;
    s->together += atomic_fetch_add(&s->inside, 1) != 0;
}

static void leave(stream *s)
{
    atomic_fetch_sub(&s->inside, 1);
}

static void on_log(void *ctx, receivewal_log_level level, const char *text)
{
    (void)level;
    (void)text;
    enter(ctx);
    leave(ctx);
}

static int on_completed(void *ctx, const receivewal_segment *segment)
{
    stream *s = ctx;
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;

    (void)segment;
    enter(s);
    s->refused += receivewal_detach(s->rw) == RECEIVEWAL_ERR_BUSY && receivewal_identify(s->rw, &system) == RECEIVEWAL_ERR_BUSY &&
                  receivewal_get_progress(s->rw, &progress) == RECEIVEWAL_OK;
    s->completed++;
    sched_yield();
    leave(s);
    return s->completed >= wanted;
}

static int on_progress(void *ctx, const receivewal_progress *progress)
{
    (void)progress;
    enter(ctx);
    leave(ctx);
    return 0;
}

static void reconnect(stream *s)
{
    while (receivewal_detach(s->rw) == RECEIVEWAL_ERR_BUSY)
        sleep_ms(1);
    PQfinish(s->conn);
    s->conn = pg_connect(conninfo, "crowd");
    s->rw = pg_attach(s->conn);
}

static void *receive(void *argument)
{
    stream *s = argument;
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
    char directory[PATH_MAX];

    s->thread = (pid_t)syscall(SYS_gettid);
    o.directory = numbered(folder, s->number, directory);
    o.progress_interval = 10;
    o.events.ctx = s;
    o.events.log = on_log;
    o.events.segment_completed = on_completed;
    o.events.progress = on_progress;
    /* Others stop it again and again: it goes on where it was. */
    while (s->completed < wanted)
    {
        s->status = receivewal_receive(s->rw, &o);
        s->stopped += s->status == RECEIVEWAL_ERR_STOPPED;
        /* A clasher may be in a call of its own on this handle. Where the server owes an answer for too long after a stop (a
         * machine that stands still), the connection is lost. */
        if (s->status == RECEIVEWAL_ERR_CONNECTION && s->lost++ < 5)
            reconnect(s);
        else if (s->status != RECEIVEWAL_ERR_STOPPED && s->status != RECEIVEWAL_ERR_BUSY)
        {
            snprintf(s->problem, sizeof(s->problem), "%d %s", (int)s->status, receivewal_errmsg(s->rw));
            break;
        }
    }
    atomic_fetch_sub(&running, 1);
    return NULL;
}

static void *look(void *unused)
{
    while (atomic_load(&running) > 0)
    {
        for (int i = 0; i < STREAMS; i++)
        {
            receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;
            receivewal_status status = receivewal_get_progress(streams[i].rw, &progress);

            wrong_answers += status != RECEIVEWAL_OK && status != RECEIVEWAL_ERR_CLOSED;
            receivewal_event_fd(streams[i].rw);
            nonsense += progress.flushed_lsn > progress.written_lsn;
            looked++;
        }
        sleep_ms(1);
    }
    return unused;
}

static void *stop(void *unused)
{
    for (unsigned i = 0; atomic_load(&running) > 0; i++)
    {
        receivewal_status status = receivewal_stop(streams[i % STREAMS].rw);

        wrong_answers += status != RECEIVEWAL_OK && status != RECEIVEWAL_ERR_CLOSED;
        stops++;
        sleep_ms(40);
    }
    return unused;
}

/* What cannot be done now is refused, and does no harm. */
static void *clash(void *unused)
{
    while (atomic_load(&running) > 0)
    {
        for (int i = 0; i < STREAMS; i++)
        {
            receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
            receivewal *rw = streams[i].rw;

            o.directory = "";
            /* Between two receives these come through; then they are refused for their arguments. */
#define REFUSED(call, or_else)                                                                                                            \
    do                                                                                                                                    \
    {                                                                                                                                     \
        receivewal_status status_ = (call);                                                                                               \
        clashes += status_ == RECEIVEWAL_ERR_BUSY;                                                                                        \
        wrong_answers += status_ != RECEIVEWAL_ERR_BUSY && status_ != RECEIVEWAL_ERR_CLOSED && status_ != (or_else);                 \
    } while (0)
            REFUSED(receivewal_receive(rw, &o), RECEIVEWAL_ERR_INVALID);
            REFUSED(receivewal_start(rw, &o), RECEIVEWAL_ERR_INVALID);
            REFUSED(receivewal_wait(rw, 0), RECEIVEWAL_ERR_BUSY);
            REFUSED(receivewal_dispatch(rw), RECEIVEWAL_ERR_BUSY);
            REFUSED(receivewal_drop_slot(rw, "No", 0), RECEIVEWAL_ERR_INVALID);
        }
        sleep_ms(2);
    }
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t receivers[STREAMS], others[LOOKERS + STOPPERS + CLASHERS];
    int failed = 0, elsewhere = 0, together = 0, stopped = 0, refused = 0, completed = 0, unusable = 0, lost = 0, n = 0;

    REQUIRE(argc == 4);
    conninfo = argv[1];
    folder = argv[2];
    wanted = atoi(argv[3]);
    for (int i = 0; i < STREAMS; i++)
    {
        streams[i].conn = pg_connect(conninfo, "crowd");
        streams[i].number = i;
        streams[i].rw = pg_attach(streams[i].conn);
    }
    for (int i = 0; i < STREAMS; i++)
        REQUIRE(pthread_create(&receivers[i], NULL, receive, &streams[i]) == 0);
    for (int i = 0; i < LOOKERS; i++)
        REQUIRE(pthread_create(&others[n++], NULL, look, NULL) == 0);
    for (int i = 0; i < STOPPERS; i++)
        REQUIRE(pthread_create(&others[n++], NULL, stop, NULL) == 0);
    for (int i = 0; i < CLASHERS; i++)
        REQUIRE(pthread_create(&others[n++], NULL, clash, NULL) == 0);
    for (int i = 0; i < STREAMS; i++)
        pthread_join(receivers[i], NULL);
    for (int i = 0; i < n; i++)
        pthread_join(others[i], NULL);
    for (int i = 0; i < STREAMS; i++)
    {
        stream *s = &streams[i];

        if (s->problem[0] != '\0')
            printf("# stream %d: %s\n", i, s->problem);
        failed += s->problem[0] != '\0';
        elsewhere += s->elsewhere;
        together += s->together;
        stopped += s->stopped;
        refused += s->refused;
        completed += s->completed;
        failed += receivewal_detach(s->rw) != RECEIVEWAL_OK;
        lost += s->lost;
        unusable += !pg_usable(s->conn);
        PQfinish(s->conn);
    }
    printf("# %d segments, %d stops, %d receives stopped, %d looks, %d clashes, %d connections lost\n", completed, stops, stopped, looked, clashes, lost);
    CHECK("all streams receive", failed == 0, "%d failed", failed);
    CHECK("callbacks run on the thread that receives", elsewhere == 0, "%d did not", elsewhere);
    CHECK("one at a time", together == 0, "%d met another", together);
    CHECK("in a callback the handle is busy, but tells its progress", refused == completed, "%d of %d times", refused, completed);
    CHECK("others stop it", stopped > STREAMS, "%d times", stopped);
    CHECK("others look at it", looked > 100 && nonsense == 0, "%d times, %d nonsense", looked, nonsense);
    CHECK("calls that clash are refused", clashes > 100 && wrong_answers == 0, "%d were, %d wrong answers", clashes, wrong_answers);
    CHECK("the connections are the host's again", unusable == 0, "%d are not", unusable);
    return 0;
}
