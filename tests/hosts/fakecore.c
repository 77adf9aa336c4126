/*
 * fakecore.c: a core in plain C, for tests of the loader alone: with the sanitizers, which can't look into Go, and with a
 * version that doesn't fit (FAKE_VERSION). What it does is the least that loader/core.h allows: a question
 * is answered after a millisecond, a receive completes a segment each millisecond until it is stopped.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

#ifndef FAKE_VERSION
#define FAKE_VERSION RW_CORE_HANDSHAKE
#endif

typedef struct session
{
    int event_fd, stop_fd;
    pthread_mutex_t mutex;
    pthread_t thread;
    bool joinable, cancelled, running;
    rw_core_op op;
    rw_core_event *first, **last;
    uint64_t segments;
} session;

const char *receivewal_core_version(void);
receivewal_status receivewal_core_open(int fd, const receivewal_connection *connection, int event_fd, int stop_fd, uint64_t *id, char **text);
receivewal_status receivewal_core_begin(uint64_t id, rw_core_request *request, char **text);
receivewal_status receivewal_core_take(uint64_t id, rw_core_event **list);
receivewal_status receivewal_core_cancel(uint64_t id);
receivewal_status receivewal_core_reconnect(uint64_t id, rw_core_answer answer, int fd, const receivewal_connection *connection, char **text);
receivewal_status receivewal_core_lost(uint64_t id, const char *reason);
receivewal_status receivewal_core_taken(uint64_t id, uint64_t bytes);
receivewal_status receivewal_core_confirm(uint64_t id, receivewal_lsn lsn, char **text);
receivewal_status receivewal_core_progress(uint64_t id, receivewal_progress *progress);
int receivewal_core_usable(uint64_t id);
receivewal_status receivewal_core_close(uint64_t id);
void receivewal_core_share(_Atomic uint64_t *descriptors, size_t words);

const char *receivewal_core_version(void)
{
    return FAKE_VERSION;
}

receivewal_status receivewal_core_open(int fd, const receivewal_connection *connection, int event_fd, int stop_fd, uint64_t *id, char **text)
{
    session *s = calloc(1, sizeof(*s));

    (void)connection;
    if (s == NULL || fd == 1000000)
    {
        *text = strdup("no");
        free(s);
        return RECEIVEWAL_ERR_LIMIT;
    }
    s->event_fd = event_fd;
    s->stop_fd = stop_fd;
    s->last = &s->first;
    pthread_mutex_init(&s->mutex, NULL);
    *id = (uint64_t)(uintptr_t)s;
    return RECEIVEWAL_OK;
}

static session *find(uint64_t id)
{
    return (session *)(uintptr_t)id;
}

static void add(session *s, rw_core_event *event)
{
    const uint64_t one = 1;

    pthread_mutex_lock(&s->mutex);
    if (s->first == NULL && write(s->event_fd, &one, sizeof(one)) < 0)
        abort();
    *s->last = event;
    s->last = &event->next;
    if (event->kind == RW_CORE_DONE)
        s->running = false;
    pthread_mutex_unlock(&s->mutex);
}

/* Whether somebody wants the operation to end, waiting for that at most a millisecond. */
static bool stopped(session *s)
{
    struct pollfd p = { .fd = s->stop_fd, .events = POLLIN };
    uint64_t count;
    bool cancelled;

    if (s->stop_fd >= 0 && poll(&p, 1, 1) == 1 && read(s->stop_fd, &count, sizeof(count)) > 0)
        return true;
    pthread_mutex_lock(&s->mutex);
    cancelled = s->cancelled;
    pthread_mutex_unlock(&s->mutex);
    return cancelled;
}

static void *work(void *argument)
{
    session *s = argument;
    rw_core_event *event;
    bool stop = stopped(s);

    while (s->op == RW_CORE_RECEIVE && !stop)
    {
        event = calloc(1, sizeof(*event));
        event->kind = RW_CORE_COMPLETED;
        event->text = strdup("000000010000000000000001");
        event->u.segment.size = sizeof(event->u.segment);
        add(s, event);
        stop = stopped(s);
    }
    event = calloc(1, sizeof(*event));
    event->kind = RW_CORE_DONE;
    if (stop)
    {
        event->status = RECEIVEWAL_ERR_STOPPED;
        event->text = strdup("stopped");
    }
    else if (s->op == RW_CORE_DROP_SLOT)
    {
        event->status = RECEIVEWAL_ERR_NO_SLOT;
        event->text = strdup("no such slot");
        event->sqlstate = strdup("42704");
        event->detail = strdup("detail");
        event->hint = strdup("hint");
    }
    else if (s->op == RW_CORE_IDENTIFY)
        event->u.system.system_identifier = UINT64_C(7000000000000000001);
    add(s, event);
    return NULL;
}

receivewal_status receivewal_core_begin(uint64_t id, rw_core_request *request, char **text)
{
    session *s = find(id);

    if (s->joinable)
        pthread_join(s->thread, NULL);
    s->op = request->op;
    s->cancelled = false;
    s->running = true;
    s->joinable = pthread_create(&s->thread, NULL, work, s) == 0;
    if (s->joinable)
        return RECEIVEWAL_OK;
    *text = strdup("no thread");
    return RECEIVEWAL_ERR_LIMIT;
}

receivewal_status receivewal_core_take(uint64_t id, rw_core_event **list)
{
    session *s = find(id);
    uint64_t count;
    ssize_t n;

    pthread_mutex_lock(&s->mutex);
    n = read(s->event_fd, &count, sizeof(count));
    (void)n;
    *list = s->first;
    s->first = NULL;
    s->last = &s->first;
    pthread_mutex_unlock(&s->mutex);
    return RECEIVEWAL_OK;
}

receivewal_status receivewal_core_cancel(uint64_t id)
{
    session *s = find(id);

    pthread_mutex_lock(&s->mutex);
    s->cancelled = true;
    pthread_mutex_unlock(&s->mutex);
    return RECEIVEWAL_OK;
}

receivewal_status receivewal_core_reconnect(uint64_t id, rw_core_answer answer, int fd, const receivewal_connection *connection, char **text)
{
    (void)id;
    (void)answer;
    (void)fd;
    (void)connection;
    (void)text;
    return RECEIVEWAL_ERR_STOPPED;
}

receivewal_status receivewal_core_lost(uint64_t id, const char *reason)
{
    (void)id;
    (void)reason;
    return RECEIVEWAL_OK;
}

receivewal_status receivewal_core_taken(uint64_t id, uint64_t bytes)
{
    (void)id;
    (void)bytes;
    return RECEIVEWAL_OK;
}

receivewal_status receivewal_core_confirm(uint64_t id, receivewal_lsn lsn, char **text)
{
    (void)id;
    (void)lsn;
    (void)text;
    return RECEIVEWAL_OK;
}

receivewal_status receivewal_core_progress(uint64_t id, receivewal_progress *progress)
{
    session *s = find(id);

    pthread_mutex_lock(&s->mutex);
    progress->state = s->running ? RECEIVEWAL_STATE_STREAMING : RECEIVEWAL_STATE_IDLE;
    pthread_mutex_unlock(&s->mutex);
    return RECEIVEWAL_OK;
}

int receivewal_core_usable(uint64_t id)
{
    (void)id;
    return 1;
}

receivewal_status receivewal_core_close(uint64_t id)
{
    session *s = find(id);
    rw_core_event *next;

    if (s->joinable)
        pthread_join(s->thread, NULL);
    for (rw_core_event *event = s->first; event != NULL; event = next)
    {
        next = event->next;
        free(event->text);
        free(event);
    }
    pthread_mutex_destroy(&s->mutex);
    free(s);
    return RECEIVEWAL_OK;
}

void receivewal_core_share(_Atomic uint64_t *descriptors, size_t words)
{
    (void)descriptors;
    (void)words;
}
