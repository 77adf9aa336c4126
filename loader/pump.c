/*
 * pump.c: a host's thread waiting for a request of the core, in plain C: running the host's callbacks, and moving the bytes of
 * a connection that the host reads and writes itself.
 *
 * The thread sleeps in epoll_wait. A signal handler of the host interrupts that as it would any wait of the host's own, on the
 * host's own stack. What it waits for is in one epoll descriptor, which is also what receivewal_event_fd gives out.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

/* How often a relay is settled before the connection counts as lost: a server that goes on and on is not idle. */
#define SETTLE_ROUNDS 8

/* How much data a host takes, and for how many milliseconds, before the core is told. */
#define TELL_BYTES (1 << 20)
#define TELL_INTERVAL 50

int rw_not_standard(int fd)
{
    int other;

    if (fd < 0 || fd > 2)
        return fd;
    other = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    close(fd);
    return other;
}

int rw_eventfd(void)
{
    return rw_own(rw_not_standard(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)));
}

void rw_signal(int event_fd)
{
    const uint64_t one = 1;

    while (write(event_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

bool rw_pump_open(rw_pump *p)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = RW_WATCH_CORE };

    *p = (rw_pump){ .event_fd = rw_eventfd(), .poll_fd = rw_own(rw_not_standard(epoll_create1(EPOLL_CLOEXEC))) };
    if (p->event_fd >= 0 && p->poll_fd >= 0 && epoll_ctl(p->poll_fd, EPOLL_CTL_ADD, p->event_fd, &event) == 0)
        return true;
    rw_pump_close(p);
    return false;
}

void rw_pump_close(rw_pump *p)
{
    rw_relay_free(p->relay, p->poll_fd);
    rw_close(p->poll_fd);
    rw_close(p->event_fd);
    *p = (rw_pump){ .event_fd = -1, .poll_fd = -1 };
}

/* ------------------------------------------------------------------------------------------------- events */

void rw_event_free(rw_core_event *event)
{
    if (event == NULL)
        return;
    free(event->text);
    free(event->file);
    free(event->directory);
    free(event->sqlstate);
    free(event->detail);
    free(event->hint);
    free(event->data);
    free(event);
}

static void ask_for_connection(rw_pump *p, const rw_core_event *event, const receivewal_events *events)
{
    /* Room for a host with a newer header that assigns a whole, larger struct. */
    union
    {
        receivewal_connection connection;
        char room[1024];
    } theirs = { .room = { 0 } };
    const receivewal_connection nothing = RECEIVEWAL_CONNECTION_INIT;
    const receivewal_reconnection why = { .size = sizeof(why),
                                          .attempt = event->u.attempt,
                                          .status = event->status,
                                          .errmsg = event->text == NULL ? "" : event->text,
                                          .sqlstate = event->sqlstate == NULL ? "" : event->sqlstate };
    char problem[RW_PROBLEM_MAX], line[RW_PROBLEM_MAX + 64];
    receivewal_status status;
    rw_connection ours;
    int answer;

    /* The host may close the old connection from here on. */
    rw_relay_free(p->relay, p->poll_fd);
    p->relay = NULL;
    theirs.connection = nothing;
    answer = events->reconnect(events->ctx, &why, &theirs.connection);
    if (rw_forked())
        return;
    if (answer != 0)
    {
        rw_core_reconnect(p->core_id, RW_CORE_GIVE_UP, -1, NULL, NULL);
        return;
    }
    if (theirs.connection.fd != -1)
    {
        status = rw_connection_check(&theirs.connection, &ours, problem);
        if (status == RECEIVEWAL_OK)
            status = rw_connection_lend(&ours, p, -1, problem);
        if (status == RECEIVEWAL_OK || status == RECEIVEWAL_ERR_STOPPED)
            return;
        snprintf(line, sizeof(line), "the new connection cannot be used: %s", problem);
        if (events->log != NULL)
            events->log(events->ctx, RECEIVEWAL_LOG_WARNING, line);
        if (rw_forked())
            return;
    }
    rw_core_reconnect(p->core_id, RW_CORE_LATER, -1, NULL, NULL);
}

static bool has_ended(const rw_core_event *event)
{
    while (event != NULL && event->kind != RW_CORE_DONE)
        event = event->next;
    return event != NULL;
}

static int64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Tells the core what the host has taken: the server may be told that it is flushed. */
static void tell_taken(rw_pump *p)
{
    if (p->taken == 0 || rw_forked())
        return;
    rw_core_taken(p->core_id, p->taken);
    p->taken = 0;
}

static int deliver_data(rw_pump *p, const rw_core_event *event, const receivewal_events *events)
{
    if (p->refused || events->data == NULL)
        return 0;
    if (events->data(events->ctx, &event->u.data) != 0)
    {
        p->refused = true;
        return 1;
    }
    p->taken += event->u.data.length;
    return 0;
}

/* Returns what the callback answered; 0 where there is none, or none whose answer stops. */
static int deliver(rw_pump *p, rw_core_event *event, const receivewal_events *events)
{
    const char *text = event->text == NULL ? "" : event->text;

    switch (event->kind)
    {
        case RW_CORE_LOG:
            if (events->log != NULL)
                events->log(events->ctx, event->level, text);
            return 0;
        case RW_CORE_OPENED:
            event->u.segment.name = text;
            return events->segment_opened == NULL ? 0 : events->segment_opened(events->ctx, &event->u.segment);
        case RW_CORE_COMPLETED:
            event->u.segment.name = text;
            return events->segment_completed == NULL ? 0 : events->segment_completed(events->ctx, &event->u.segment);
        case RW_CORE_TIMELINE:
            return events->timeline_switched == NULL ? 0 : events->timeline_switched(events->ctx, &event->u.timeline_switch);
        case RW_CORE_PROGRESS:
            return events->progress == NULL ? 0 : events->progress(events->ctx, &event->u.progress);
        case RW_CORE_PROBLEM:
            event->u.problem.text = text;
            event->u.problem.file = event->file == NULL ? "" : event->file;
            event->u.problem.directory = event->directory == NULL ? "" : event->directory;
            return events->problem == NULL ? 0 : events->problem(events->ctx, &event->u.problem);
        case RW_CORE_DISK_FULL:
            event->u.disk_full.errmsg = text;
            return events->disk_full == NULL ? 0 : events->disk_full(events->ctx, &event->u.disk_full);
        case RW_CORE_MIRROR:
            event->u.mirror.status = event->status;
            event->u.mirror.errmsg = text;
            event->u.mirror.directory = event->directory == NULL ? "" : event->directory;
            return events->mirror == NULL ? 0 : events->mirror(events->ctx, &event->u.mirror);
        case RW_CORE_DATA:
            return deliver_data(p, event, events);
        case RW_CORE_RECONNECT:
            /* Not after a stop: the core has ended, or is about to, without waiting for the answer. */
            if (!p->cancelled && !has_ended(event) && events->reconnect != NULL)
                ask_for_connection(p, event, events);
            return 0;
        case RW_CORE_DONE:
            break;
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------- waiting */

/* Waits until there is something to do, or until timeout milliseconds (negative: for ever) have passed. */
static void wait_for_work(rw_pump *p, int timeout)
{
    const struct timespec pause = { 0, 20000000 };
    struct epoll_event ready[3];
    int count = -1;

    if (p->relay == NULL || rw_relay_watch(p->relay, p->poll_fd))
    {
        count = epoll_wait(p->poll_fd, ready, 3, timeout);
        if (count < 0 && errno == EINTR)
            return;
    }
    if (count < 0)
    {
        /* The host has closed our descriptor, or the kernel is out of memory: go on without, at a slower pace. */
        nanosleep(&pause, NULL);
        if (p->relay != NULL)
            rw_relay_ready(p->relay, EPOLLIN | EPOLLOUT);
        p->due = true;
    }
    for (int i = 0; i < count; i++)
        if (ready[i].data.u32 == RW_WATCH_CORE)
            p->due = true;
        else if (ready[i].data.u32 == RW_WATCH_HOST && p->relay != NULL)
            rw_relay_ready(p->relay, ready[i].events);
}

/*
 * After a callback that got data, before the next one: a host may take its time with each, and many may wait. The core learns of
 * what was taken, and the connection goes on, where it is read and written here.
 */
static void between_data(rw_pump *p)
{
    if (p->taken >= TELL_BYTES || now() - p->told >= TELL_INTERVAL)
    {
        tell_taken(p);
        p->told = now();
    }
    if (p->relay != NULL)
    {
        wait_for_work(p, 0);
        rw_relay_work(p->relay);
    }
}

/* Gives the events that wait to the callbacks. Returns the request's DONE if it was among them. */
static rw_core_event *take_events(rw_pump *p, const receivewal_events *events)
{
    rw_core_event *list = NULL;

    p->due = false;
    p->told = now();
    rw_core_take(p->core_id, &list);
    while (list != NULL)
    {
        rw_core_event *event = list;

        if (event->kind == RW_CORE_DONE)
        {
            p->taken = 0; /* the receive has ended */
            return event; /* the last one */
        }
        if (deliver(p, event, events) != 0 && !p->cancelled && !rw_forked())
        {
            p->cancelled = true;
            rw_core_cancel(p->core_id);
        }
        if (event->kind == RW_CORE_DATA && !rw_forked())
            between_data(p);
        list = event->next;
        rw_event_free(event);
    }
    tell_taken(p);
    return NULL;
}

/*
 * A request has ended, and its connection is the host's again as soon as no byte of it is left in the relay: what was read ahead of
 * the core is for the core, which knows whether that is a message that may come at any time. Returns the request's DONE, or NULL
 * while that goes on.
 */
static rw_core_event *settle(rw_pump *p, rw_core_event *done)
{
    rw_core_request request = { .op = RW_CORE_SETTLE };

    if (p->done == NULL)
        p->done = done;
    else
        rw_event_free(done);
    if (p->relay != NULL && p->settling < SETTLE_ROUNDS && rw_relay_open(p->relay) && !rw_relay_empty(p->relay) && rw_core_usable(p->core_id))
    {
        p->settling++;
        request.passed = rw_relay_passed(p->relay);
        if (rw_core_begin(p->core_id, &request, NULL) == RECEIVEWAL_OK)
            return NULL;
    }
    done = p->done;
    p->done = NULL;
    p->settling = 0;
    p->cancelled = p->refused = false;
    return done;
}

rw_core_event *rw_pump_run(rw_pump *p, const receivewal_events *events, int timeout)
{
    const int64_t deadline = timeout < 0 ? -1 : now() + timeout;
    bool going;

    if (p->relay != NULL)
        wait_for_work(p, 0);
    p->due = true;
    for (;;)
    {
        rw_core_event *done;
        int64_t left;

        going = p->relay != NULL && rw_relay_work(p->relay);
        /* A callback may have forked, and its child returned to here. */
        if (rw_forked())
            return NULL;
        done = p->due ? take_events(p, events) : NULL;
        if (rw_forked())
            return NULL;
        if (done != NULL)
        {
            done = settle(p, done);
            if (done != NULL)
                return done;
            going = true;
        }
        left = deadline < 0 ? -1 : deadline - now();
        if (deadline >= 0 && left <= 0)
            break;
        wait_for_work(p, going ? 0 : left > INT_MAX ? INT_MAX : (int)left);
    }
    /* What could go on at once does so in the next call; nothing that a descriptor shows may tell of it. */
    if (p->relay != NULL)
        rw_relay_watch(p->relay, p->poll_fd);
    if (going)
        rw_signal(p->event_fd);
    return NULL;
}

void rw_pump_started(const rw_pump *p)
{
    /* What the relay waits for is not known yet; the host comes once and finds out. */
    if (p->relay != NULL)
        rw_signal(p->event_fd);
}

bool rw_pump_usable(const rw_pump *p)
{
    return rw_core_usable(p->core_id) == 1 && (p->relay == NULL || (rw_relay_open(p->relay) && rw_relay_empty(p->relay)));
}
