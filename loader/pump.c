/*
 * pump.c: a host's thread waiting for a request of the core, in plain C, and running the host's callbacks.
 *
 * The thread sleeps in poll on the handle's eventfd. A signal handler of the host interrupts that as it would any poll of the
 * host's own, on the host's own stack.
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

int rw_eventfd(void)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    /* Not in the place of a standard descriptor that the host has closed: it may write its messages there. */
    if (fd >= 0 && fd <= 2)
    {
        int other = fcntl(fd, F_DUPFD_CLOEXEC, 3);

        close(fd);
        return other;
    }
    return fd;
}

void rw_event_free(rw_core_event *event)
{
    if (event == NULL)
        return;
    free(event->text);
    free(event->sqlstate);
    free(event->detail);
    free(event->hint);
    free(event);
}

/* Returns what the callback answered; 0 where there is none, or none that can answer. */
static int deliver(rw_core_event *event, const receivewal_events *events)
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
        case RW_CORE_DONE:
            break;
    }
    return 0;
}

static int64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Waits until events wait or the deadline (negative: none) has passed; false when it has. */
static bool wait_for_events(int event_fd, int64_t deadline)
{
    struct pollfd p = { .fd = event_fd, .events = POLLIN };
    const struct timespec pause = { 0, 20000000 };

    for (;;)
    {
        int64_t left = deadline < 0 ? -1 : deadline - now();
        int ready;

        if (deadline >= 0 && left <= 0)
            return false;
        ready = poll(&p, 1, left > INT_MAX ? INT_MAX : (int)left);
        if (ready > 0 && !(p.revents & POLLNVAL))
            return true;
        if (ready > 0 || (ready < 0 && errno != EINTR))
        {
            /* The host has closed our descriptor, or the kernel is out of memory: go on without, at a slower pace. */
            nanosleep(&pause, NULL);
            return true;
        }
    }
}

rw_core_event *rw_pump(uint64_t core_id, int event_fd, const receivewal_events *events, int timeout)
{
    int64_t deadline = timeout < 0 ? -1 : now() + timeout;
    bool cancelled = false;

    do
    {
        rw_core_event *list = NULL;
        rw_core_event *done = NULL;

        rw_core_take(core_id, &list);
        while (list != NULL)
        {
            rw_core_event *event = list;

            list = event->next;
            if (event->kind == RW_CORE_DONE)
            {
                done = event;
                continue;
            }
            if (deliver(event, events) != 0 && !cancelled && !rw_forked())
            {
                cancelled = true;
                rw_core_cancel(core_id);
            }
            rw_event_free(event);
        }
        if (done != NULL)
            return done;
        /* A callback may have forked, and its child returned to here. */
        if (rw_forked())
            return NULL;
    } while (wait_for_events(event_fd, deadline));
    return NULL;
}
