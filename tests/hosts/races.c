/* The loader's own races, for ThreadSanitizer with the fake core: everything that may come at any time, at the same time. */
#include "server.h"

enum { THREADS = 6, ROUNDS = 60 };

static _Atomic(receivewal *) shared;
static _Atomic bool over;
static int connection;

static int some_segments(void *ctx, const receivewal_segment *segment)
{
    (void)segment;
    return ++*(int *)ctx > 3;
}

static void *look(void *unused)
{
    while (!atomic_load(&over))
    {
        receivewal *rw = atomic_load(&shared);
        receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;
        receivewal_options options = RECEIVEWAL_OPTIONS_INIT;

        receivewal_get_progress(rw, &progress);
        options.directory = "Clash";
        options.file_mode = 1; /* refused, should it get in */
        receivewal_receive(rw, &options);
        receivewal_errmsg(rw); /* not looked into: it may be the handle's, and is valid only until the next call on it, by whomever */
        if (receivewal_get_progress(rw, NULL) == RECEIVEWAL_ERR_INVALID && strstr(receivewal_errmsg(rw), "progress is NULL") == NULL)
            printf("FAIL text: not that of this thread's own call\n");
        receivewal_event_fd(rw);
        receivewal_connection_usable(rw);
        sleep_ms(1);
    }
    return unused;
}

static void *stop(void *unused)
{
    while (!atomic_load(&over))
    {
        receivewal *rw = atomic_load(&shared);

        receivewal_stop(rw);
        receivewal_errmsg(rw); /* not looked into, too */
        sleep_ms(3);
    }
    return unused;
}

int main(void)
{
    pthread_t t[THREADS];
    int peer, ends = 0, stops = 0;

    connection = silent_connection(&peer);
    atomic_store(&shared, attach(connection));
    for (int i = 0; i < THREADS; i++)
        REQUIRE(pthread_create(&t[i], NULL, i % 2 ? look : stop, NULL) == 0);
    for (int i = 0; i < ROUNDS; i++)
    {
        receivewal *rw = atomic_load(&shared);
        receivewal_options options = RECEIVEWAL_OPTIONS_INIT;
        receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
        receivewal_status status;
        int segments = 0;

        options.directory = ".";
        options.events.ctx = &segments;
        options.events.segment_completed = some_segments;
        do
            status = receivewal_receive(rw, &options);
        while (status == RECEIVEWAL_ERR_BUSY);
        stops += status == RECEIVEWAL_ERR_STOPPED;
        while (receivewal_start(rw, &options) == RECEIVEWAL_ERR_BUSY)
            ;
        do
            status = receivewal_wait(rw, 2);
        while (status == RECEIVEWAL_PENDING || status == RECEIVEWAL_ERR_BUSY);
        stops += status == RECEIVEWAL_ERR_STOPPED;
        receivewal_drop_slot(rw, "a", 0);
        receivewal_sqlstate(rw);
        receivewal_identify(rw, &system);
        while (receivewal_detach(rw) == RECEIVEWAL_ERR_BUSY)
            ;
        ends++;
        atomic_store(&shared, attach(connection));
    }
    atomic_store(&over, true);
    for (int i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    CHECK("every round ended", ends == ROUNDS, "%d", ends);
    CHECK("each receive was stopped", stops == 2 * ROUNDS, "%d", stops);
    CHECK_STATUS("detach", receivewal_detach(atomic_load(&shared)), RECEIVEWAL_OK);
    return 0;
}
