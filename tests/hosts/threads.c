/* Threads that race: on the very first call of a process, and on one handle. */
#include <pthread.h>
#include <stdatomic.h>

#include "server.h"

enum { THREADS = 16 };

static pthread_barrier_t barrier;
static int connections[THREADS];
static int thread_number[THREADS];

static void *first_call(void *number)
{
    receivewal_connection c = RECEIVEWAL_CONNECTION_INIT;
    receivewal_start_point start = RECEIVEWAL_START_POINT_INIT;
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
    receivewal *rw = NULL;
    int i = *(int *)number;
    bool good;

    c.fd = connections[i];
    pthread_barrier_wait(&barrier);
    if (i % 4 == 3)
        good = receivewal_find_start(".", 0, &start) == RECEIVEWAL_OK;
    else
        good = receivewal_attach(&c, &rw) == RECEIVEWAL_OK && receivewal_identify(rw, &system) == RECEIVEWAL_OK &&
               system.system_identifier == SERVER_SYSTEM && receivewal_detach(rw) == RECEIVEWAL_OK;
    return (void *)(intptr_t)good;
}

/* Everybody uses one handle after the other: whatever the order, each call has its end, and no handle is taken for another. */
static _Atomic(receivewal *) shared;
static _Atomic int unexpected, attached, finished;

static void *mix(void *number)
{
    unsigned random = (unsigned)*(int *)number * 2654435761u + 1;
    int fd = connections[*(int *)number];
    bool loop = true;

    for (int round = 0; loop && round < 400; round++)
    {
        receivewal *rw = atomic_load(&shared);
        receivewal_status status = RECEIVEWAL_OK;
        receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;
        receivewal_system system = RECEIVEWAL_SYSTEM_INIT;

        random = random * 1664525 + 1013904223;
        switch (random >> 24 & 7)
        {
            case 0:
            case 1:
                status = receivewal_stop(rw);
                break;
            case 2:
            case 3:
                status = receivewal_get_progress(rw, &progress);
                break;
            case 4:
                status = receivewal_identify(rw, &system);
                /* Somebody else's stop may leave a server's answer unread. */
                if (status == RECEIVEWAL_ERR_CONNECTION)
                    status = RECEIVEWAL_OK;
                break;
            case 5:
                status = receivewal_wait(rw, 1);
                break;
            case 6:
                receivewal_errmsg(rw);
                receivewal_connection_usable(rw);
                receivewal_event_fd(rw);
                break;
            case 7:
                status = receivewal_detach(rw);
                if (status == RECEIVEWAL_OK)
                {
                    atomic_store(&shared, attach(fd));
                    atomic_fetch_add(&attached, 1);
                }
        }
        switch (status)
        {
            case RECEIVEWAL_OK:
            case RECEIVEWAL_ERR_HANDLE:
            case RECEIVEWAL_ERR_CLOSED:
            case RECEIVEWAL_ERR_BUSY:
            case RECEIVEWAL_ERR_STOPPED:
                break;
            default:
                printf("# status %d: %s\n", (int)status, receivewal_errmsg(rw));
                atomic_fetch_add(&unexpected, 1);
        }
    }
    atomic_fetch_add(&finished, 1);
    return NULL;
}

int main(void)
{
    static server servers[THREADS];
    pthread_t t[THREADS];
    int failed = 0, before;
    void *good;

    pthread_barrier_init(&barrier, NULL, THREADS);
    for (int i = 0; i < THREADS; i++)
    {
        thread_number[i] = i;
        connections[i] = server_start(&servers[i], SERVER_START, 0);
    }
    for (int i = 0; i < THREADS; i++)
        REQUIRE(pthread_create(&t[i], NULL, first_call, &thread_number[i]) == 0);
    for (int i = 0; i < THREADS; i++)
    {
        pthread_join(t[i], &good);
        failed += good == NULL;
    }
    CHECK("16 threads race on the first call", failed == 0, "%d failed", failed);

    before = descriptors();
    atomic_store(&shared, attach(connections[0]));
    for (int i = 0; i < THREADS; i++)
        REQUIRE(pthread_create(&t[i], NULL, mix, &thread_number[i]) == 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    CHECK("16 threads race on one handle", atomic_load(&unexpected) == 0, "%d unexpected", atomic_load(&unexpected));
    CHECK("it was detached and attached", atomic_load(&attached) > 0, "%d times", atomic_load(&attached));
    CHECK_STATUS("the last is good", receivewal_detach(atomic_load(&shared)), RECEIVEWAL_OK);
    CHECK("no descriptor is left", descriptors() == before, "%d before, %d after", before, descriptors());
    for (int i = 0; i < THREADS; i++)
    {
        server_stop(&servers[i]);
        close(connections[i]);
    }
    return 0;
}
