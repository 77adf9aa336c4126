/*
 * api.c: the public functions that need a handle or the core. Each checks what it was given, hands a request to the core and
 * waits for its end in rw_pump.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

/* ------------------------------------------------------------------------------------ entering and leaving */

static receivewal_status refuse(receivewal *rw, receivewal_status status, const char *function)
{
    switch (status)
    {
        case RECEIVEWAL_ERR_HANDLE:
            return rw_thread_error(NULL, status, "%s: %s", function,
                                   rw == NULL ? "the handle is NULL" : "this is not a handle of libreceivewal");
        case RECEIVEWAL_ERR_CLOSED:
            return rw_thread_error(NULL, status, "%s: the handle was detached before", function);
        case RECEIVEWAL_ERR_BUSY:
            return rw_thread_error(rw, status, "%s: another call is in progress on this handle", function);
        default:
            return status;
    }
}

/* Begins a call that holds the handle. Its texts are cleared. */
static receivewal_status enter(receivewal *rw, const char *function, rw_slot **slot)
{
    receivewal_status status;

    if (rw_forked())
        return RECEIVEWAL_ERR_FORKED;
    status = rw_slot_claim(rw, slot);
    if (status != RECEIVEWAL_OK)
        return refuse(rw, status, function);
    rw_thread_settled(rw);
    rw_texts_clear(&(*slot)->texts);
    return RECEIVEWAL_OK;
}

static receivewal_status leave(receivewal *rw, rw_slot *slot, receivewal_status status)
{
    /* A clash inside one of its callbacks is no longer this thread's last word on the handle. */
    rw_thread_settled(rw);
    rw_slot_release(slot);
    return status;
}

/* As enter, for a call that starts a request: it must not meet one that receivewal_start began. */
static receivewal_status enter_idle(receivewal *rw, const char *function, rw_slot **slot)
{
    receivewal_status status = enter(rw, function, slot);

    if (status == RECEIVEWAL_OK && (*slot)->running)
        return leave(rw, *slot,
                     rw_texts_set(&(*slot)->texts, RECEIVEWAL_ERR_BUSY,
                                  "%s: the receive that receivewal_start began has not been waited for (receivewal_wait)", function));
    return status;
}

/* The texts of an error that the core gave as a malloc'ed string, which is freed. */
static receivewal_status core_error(rw_texts *texts, receivewal_status status, char *text)
{
    rw_texts_set(texts, status, "%s", text == NULL ? receivewal_strerror(status) : text);
    free(text);
    return status;
}

/* Moves the texts out of a DONE. */
static receivewal_status done_texts(rw_texts *texts, rw_core_event *done)
{
    rw_texts_clear(texts);
    texts->status = done->status;
    texts->message = done->text;
    texts->sqlstate = done->sqlstate;
    texts->detail = done->detail;
    texts->hint = done->hint;
    done->text = done->sqlstate = done->detail = done->hint = NULL;
    return texts->status;
}

/* A request's end: whatever stop came up to now was meant for it, and must not end the next one. */
static void settle_stop(const rw_slot *slot)
{
    uint64_t stops;

    while (read(slot->stop_fd, &stops, sizeof(stops)) < 0 && errno == EINTR)
        ;
}

/*
 * Runs a request of a claimed handle to its end. Returns its DONE, for the caller to free, or NULL with *status and
 * the handle's texts set. The thread can't be cancelled meanwhile: it would never release the handle.
 */
static rw_core_event *run(rw_slot *slot, rw_core_request *request, const receivewal_events *events, receivewal_status *status)
{
    rw_core_event *done = NULL;
    char *text = NULL;
    int cancel_state;

    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    *status = rw_core_begin(slot->pump.core_id, request, &text);
    if (*status != RECEIVEWAL_OK)
        core_error(&slot->texts, *status, text);
    else
    {
        done = rw_pump_run(&slot->pump, events, -1);
        if (done == NULL)
            *status = RECEIVEWAL_ERR_FORKED;
        else
        {
            settle_stop(slot);
            *status = done_texts(&slot->texts, done);
        }
    }
    pthread_setcancelstate(cancel_state, NULL);
    return done;
}

/* A relative directory means the working directory of now, whatever the host does to it later. Returns path or buffer. */
static const char *absolute(const char *path, char buffer[PATH_MAX])
{
    size_t length, rest = strlen(path);

    if (path[0] == '/' || getcwd(buffer, PATH_MAX) == NULL || buffer[0] != '/')
        return path;
    length = strlen(buffer);
    if (length + 1 + rest >= PATH_MAX)
        return path;
    buffer[length] = '/';
    memcpy(buffer + length + 1, path, rest + 1);
    return buffer;
}

/* ---------------------------------------------------------------------------------------- attach and detach */

/* Opens what a handle needs; on failure closes it again. */
static receivewal_status open_slot(rw_slot *slot, const rw_connection *lent)
{
    char problem[RW_PROBLEM_MAX];
    receivewal_status status;

    slot->stop_fd = rw_eventfd();
    if (slot->stop_fd < 0 || !rw_pump_open(&slot->pump))
        status = rw_thread_error(NULL, RECEIVEWAL_ERR_LIMIT, "cannot make an eventfd: %s", strerror(errno));
    else
    {
        status = rw_connection_lend(lent, &slot->pump, slot->stop_fd, problem);
        if (status == RECEIVEWAL_OK)
            return status;
        rw_thread_error(NULL, status, "%s", problem);
        rw_pump_close(&slot->pump);
    }
    rw_close(slot->stop_fd);
    return status;
}

receivewal_status receivewal_attach(const receivewal_connection *connection, receivewal **rw)
{
    rw_connection ours;
    receivewal_status status;
    char problem[RW_PROBLEM_MAX];
    rw_slot *slot;

    if (rw != NULL)
        *rw = NULL;
    if (rw_forked())
        return RECEIVEWAL_ERR_FORKED;
    if (rw == NULL || connection == NULL)
        return rw_thread_error(NULL, RECEIVEWAL_ERR_INVALID, "receivewal_attach: %s is NULL", rw == NULL ? "rw" : "connection");
    status = rw_connection_check(connection, &ours, problem);
    if (status != RECEIVEWAL_OK)
        return rw_thread_error(NULL, status, "%s", problem);
    status = rw_core_need();
    if (status != RECEIVEWAL_OK)
        return status;
    slot = rw_slot_new();
    if (slot == NULL)
        return rw_thread_error(NULL, RECEIVEWAL_ERR_LIMIT, "too many handles are open");
    status = open_slot(slot, &ours);
    if (status != RECEIVEWAL_OK)
        rw_slot_free(slot);
    else
        *rw = rw_slot_publish(slot);
    return status;
}

receivewal_status receivewal_detach(receivewal *rw)
{
    rw_slot *slot;
    receivewal_status status = enter_idle(rw, "receivewal_detach", &slot);

    if (status != RECEIVEWAL_OK)
        return status;
    rw_slot_retire(slot);
    rw_core_close(slot->pump.core_id);
    rw_pump_close(&slot->pump);
    rw_close(slot->stop_fd);
    rw_texts_clear(&slot->texts);
    rw_slot_free(slot);
    return RECEIVEWAL_OK;
}

int receivewal_connection_usable(receivewal *rw)
{
    rw_slot *slot;
    int usable;

    /* Not through enter: the question leaves the texts of the last error as they are. */
    if (rw_forked() || rw_slot_claim(rw, &slot) != RECEIVEWAL_OK)
        return 0;
    usable = !slot->running && rw_pump_usable(&slot->pump);
    rw_slot_release(slot);
    return usable;
}

/* --------------------------------------------------------------------------------- at any time, from any thread */

receivewal_status receivewal_get_progress(receivewal *rw, receivewal_progress *progress)
{
    receivewal_progress ours = RECEIVEWAL_PROGRESS_INIT;
    receivewal_status status;
    char problem[RW_PROBLEM_MAX];
    rw_slot *slot;

    if (rw_forked())
        return RECEIVEWAL_ERR_FORKED;
    status = rw_slot_use(rw, &slot);
    if (status != RECEIVEWAL_OK)
        return refuse(rw, status, "receivewal_get_progress");
    if (progress == NULL)
        status = rw_thread_error(rw, RECEIVEWAL_ERR_INVALID, "receivewal_get_progress: progress is NULL");
    else if (!rw_struct_check(&rw_layout_progress, progress, problem))
        status = rw_thread_error(rw, RECEIVEWAL_ERR_SIZE, "%s", problem);
    else
    {
        status = rw_core_progress(slot->pump.core_id, &ours);
        if (status == RECEIVEWAL_OK)
            rw_struct_out(&rw_layout_progress, &ours, progress);
        else
            rw_thread_error(rw, status, "receivewal_get_progress: %s", receivewal_strerror(status));
    }
    rw_slot_unuse(slot);
    return status;
}

receivewal_status receivewal_confirm(receivewal *rw, receivewal_lsn lsn)
{
    receivewal_status status;
    char *text = NULL;
    rw_slot *slot;

    if (rw_forked())
        return RECEIVEWAL_ERR_FORKED;
    status = rw_slot_use(rw, &slot);
    if (status != RECEIVEWAL_OK)
        return refuse(rw, status, "receivewal_confirm");
    status = rw_core_confirm(slot->pump.core_id, lsn, &text);
    if (status != RECEIVEWAL_OK)
        rw_thread_error(rw, status, "receivewal_confirm: %s", text == NULL ? receivewal_strerror(status) : text);
    free(text);
    rw_slot_unuse(slot);
    return status;
}

receivewal_status receivewal_stop(receivewal *rw)
{
    const int saved_errno = errno;
    receivewal_status status;
    rw_slot *slot;

    /* Only what a signal handler may do: getpid, atomics, write. The eventfds of a forked child are its parent's. */
    if (rw_forked())
        return RECEIVEWAL_ERR_FORKED;
    status = rw_slot_use(rw, &slot);
    if (status == RECEIVEWAL_OK)
    {
        rw_signal(slot->stop_fd);
        rw_slot_unuse(slot);
    }
    errno = saved_errno;
    return status;
}

int receivewal_event_fd(receivewal *rw)
{
    rw_slot *slot;
    int fd;

    if (rw_forked() || rw_slot_use(rw, &slot) != RECEIVEWAL_OK)
        return -1;
    fd = slot->pump.poll_fd;
    rw_slot_unuse(slot);
    return fd;
}

/* --------------------------------------------------------------------------------------------------- receive */

static uint32_t wanted(const receivewal_events *events)
{
    return (events->log != NULL ? RW_CORE_WANT_LOG : 0) | (events->segment_opened != NULL ? RW_CORE_WANT_OPENED : 0) |
           (events->segment_completed != NULL ? RW_CORE_WANT_COMPLETED : 0) |
           (events->timeline_switched != NULL ? RW_CORE_WANT_TIMELINE : 0) | (events->progress != NULL ? RW_CORE_WANT_PROGRESS : 0) |
           (events->reconnect != NULL ? RW_CORE_WANT_RECONNECT : 0) | (events->problem != NULL ? RW_CORE_WANT_PROBLEM : 0) |
           (events->disk_full != NULL ? RW_CORE_WANT_DISK_FULL : 0) | (events->mirror != NULL ? RW_CORE_WANT_MIRROR : 0) |
           (events->data != NULL ? RW_CORE_WANT_DATA : 0);
}

/* What a receive request points to: it must outlive the request, and is then forgotten. */
typedef struct receive_input
{
    receivewal_options options;
    char directory[PATH_MAX];
    char *mirrors[RW_MIRRORS_MAX]; /* absolute; malloc'ed */
} receive_input;

static void forget(receive_input *input)
{
    for (size_t i = 0; i < RW_MIRRORS_MAX; i++)
        free(input->mirrors[i]);
}

/* Makes the paths of the mirrors absolute. false: out of memory. */
static bool make_mirrors_absolute(receive_input *input)
{
    char buffer[PATH_MAX];

    for (size_t i = 0; i < input->options.mirror_count; i++)
        if ((input->mirrors[i] = strdup(absolute(input->options.mirrors[i], buffer))) == NULL)
            return false;
    input->options.mirrors = (const char *const *)input->mirrors;
    return true;
}

/* Checks the options and makes a request of them. Whatever it returns, input is to be forgotten. */
static receivewal_status receive_request(rw_slot *slot, const char *function, const receivewal_options *theirs, receive_input *input,
                                         rw_core_request *request)
{
    receivewal_options *ours = &input->options;
    char problem[RW_PROBLEM_MAX];

    memset(input->mirrors, 0, sizeof(input->mirrors));

    if (theirs == NULL)
        return rw_texts_set(&slot->texts, RECEIVEWAL_ERR_INVALID, "%s: options is NULL", function);
    if (!rw_struct_check(&rw_layout_options, theirs, problem))
        return rw_texts_set(&slot->texts, RECEIVEWAL_ERR_SIZE, "%s", problem);
    rw_struct_in(&rw_layout_options, theirs, ours);
    if (!rw_options_check(ours, problem))
        return rw_texts_set(&slot->texts, RECEIVEWAL_ERR_INVALID, "%s", problem);
    if (!make_mirrors_absolute(input))
        return rw_texts_set(&slot->texts, RECEIVEWAL_ERR_LIMIT, "%s: out of memory", function);
    *request = (rw_core_request){
        .op = RW_CORE_RECEIVE, .wanted = wanted(&ours->events), .directory = absolute(ours->directory, input->directory), .options = ours
    };
    return RECEIVEWAL_OK;
}

receivewal_status receivewal_receive(receivewal *rw, const receivewal_options *options)
{
    receive_input input;
    rw_core_request request;
    rw_slot *slot;
    receivewal_status status = enter_idle(rw, "receivewal_receive", &slot);

    if (status != RECEIVEWAL_OK)
        return status;
    status = receive_request(slot, "receivewal_receive", options, &input, &request);
    if (status == RECEIVEWAL_OK)
        rw_event_free(run(slot, &request, &input.options.events, &status));
    forget(&input);
    return leave(rw, slot, status);
}

receivewal_status receivewal_start(receivewal *rw, const receivewal_options *options)
{
    receive_input input;
    rw_core_request request;
    char *text = NULL;
    rw_slot *slot;
    receivewal_status status = enter_idle(rw, "receivewal_start", &slot);

    if (status != RECEIVEWAL_OK)
        return status;
    status = receive_request(slot, "receivewal_start", options, &input, &request);
    if (status == RECEIVEWAL_OK)
    {
        status = rw_core_begin(slot->pump.core_id, &request, &text);
        if (status != RECEIVEWAL_OK)
            core_error(&slot->texts, status, text);
        else
        {
            slot->events = input.options.events;
            slot->running = true;
            rw_pump_started(&slot->pump);
        }
    }
    forget(&input);
    return leave(rw, slot, status);
}

static receivewal_status wait_for(receivewal *rw, const char *function, int timeout)
{
    rw_core_event *done;
    int cancel_state;
    rw_slot *slot;
    receivewal_status status = enter(rw, function, &slot);

    if (status != RECEIVEWAL_OK)
        return status;
    if (!slot->running)
        return leave(rw, slot,
                     rw_texts_set(&slot->texts, RECEIVEWAL_ERR_BUSY, "%s: nothing was started (receivewal_start)", function));
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    done = rw_pump_run(&slot->pump, &slot->events, timeout);
    if (done != NULL)
    {
        slot->running = false;
        settle_stop(slot);
        status = done_texts(&slot->texts, done);
        rw_event_free(done);
    }
    else
        status = rw_forked() ? RECEIVEWAL_ERR_FORKED : RECEIVEWAL_PENDING;
    pthread_setcancelstate(cancel_state, NULL);
    return leave(rw, slot, status);
}

receivewal_status receivewal_wait(receivewal *rw, int timeout)
{
    return wait_for(rw, "receivewal_wait", timeout);
}

receivewal_status receivewal_dispatch(receivewal *rw)
{
    return wait_for(rw, "receivewal_dispatch", 0);
}

/* --------------------------------------------------------------------------------------------- ask the server */

static const receivewal_events no_events;

/* Checks where an answer goes: NULL is INVALID unless optional. */
static receivewal_status check_result(rw_slot *slot, const rw_layout *layout, const char *what, const void *result, bool optional)
{
    char problem[RW_PROBLEM_MAX];

    if (result == NULL)
        return optional ? RECEIVEWAL_OK : rw_texts_set(&slot->texts, RECEIVEWAL_ERR_INVALID, "%s is NULL", what);
    if (!rw_struct_check(layout, result, problem))
        return rw_texts_set(&slot->texts, RECEIVEWAL_ERR_SIZE, "%s", problem);
    return RECEIVEWAL_OK;
}

static receivewal_status check_slot_call(rw_slot *slot, const char *what, const char *name, uint32_t flags, uint32_t known)
{
    char problem[RW_PROBLEM_MAX];

    if (!rw_slot_name_check(what, name, problem))
        return rw_texts_set(&slot->texts, RECEIVEWAL_ERR_INVALID, "%s", problem);
    if ((flags & ~known) != 0)
        return rw_texts_set(&slot->texts, RECEIVEWAL_ERR_INVALID, "flags 0x%x are not known to this function",
                            (unsigned)(flags & ~known));
    return RECEIVEWAL_OK;
}

receivewal_status receivewal_identify(receivewal *rw, receivewal_system *system)
{
    rw_core_request request = { .op = RW_CORE_IDENTIFY };
    rw_core_event *done;
    rw_slot *slot;
    receivewal_status status = enter_idle(rw, "receivewal_identify", &slot);

    if (status != RECEIVEWAL_OK)
        return status;
    status = check_result(slot, &rw_layout_system, "receivewal_identify: system", system, false);
    if (status == RECEIVEWAL_OK)
    {
        done = run(slot, &request, &no_events, &status);
        if (status == RECEIVEWAL_OK)
            rw_struct_out(&rw_layout_system, &done->u.system, system);
        rw_event_free(done);
    }
    return leave(rw, slot, status);
}

/* What create and read have in common: a slot's name in, perhaps a slot's position out. */
static receivewal_status ask_slot(rw_slot *slot, rw_core_op op, const char *name, uint32_t flags, receivewal_slot *result)
{
    rw_core_request request = { .op = op, .name = name, .flags = flags };
    receivewal_status status;
    rw_core_event *done = run(slot, &request, &no_events, &status);

    if (status == RECEIVEWAL_OK && result != NULL)
        rw_struct_out(&rw_layout_slot, &done->u.slot, result);
    rw_event_free(done);
    return status;
}

receivewal_status receivewal_create_slot(receivewal *rw, const char *name, uint32_t flags, receivewal_slot *result)
{
    rw_slot *slot;
    receivewal_status status = enter_idle(rw, "receivewal_create_slot", &slot);

    if (status != RECEIVEWAL_OK)
        return status;
    status = check_slot_call(slot, "receivewal_create_slot: name", name, flags,
                             RECEIVEWAL_SLOT_RESERVE_WAL | RECEIVEWAL_SLOT_TEMPORARY | RECEIVEWAL_SLOT_IF_NOT_EXISTS);
    if (status == RECEIVEWAL_OK)
        status = check_result(slot, &rw_layout_slot, "receivewal_create_slot: slot", result, true);
    if (status == RECEIVEWAL_OK)
        status = ask_slot(slot, RW_CORE_CREATE_SLOT, name, flags, result);
    return leave(rw, slot, status);
}

receivewal_status receivewal_drop_slot(receivewal *rw, const char *name, uint32_t flags)
{
    rw_slot *slot;
    receivewal_status status = enter_idle(rw, "receivewal_drop_slot", &slot);

    if (status != RECEIVEWAL_OK)
        return status;
    status = check_slot_call(slot, "receivewal_drop_slot: name", name, flags, RECEIVEWAL_SLOT_WAIT);
    if (status == RECEIVEWAL_OK)
        status = ask_slot(slot, RW_CORE_DROP_SLOT, name, flags, NULL);
    return leave(rw, slot, status);
}

receivewal_status receivewal_read_slot(receivewal *rw, const char *name, receivewal_slot *result)
{
    rw_slot *slot;
    receivewal_status status = enter_idle(rw, "receivewal_read_slot", &slot);

    if (status != RECEIVEWAL_OK)
        return status;
    status = check_slot_call(slot, "receivewal_read_slot: name", name, 0, 0);
    if (status == RECEIVEWAL_OK)
        status = check_result(slot, &rw_layout_slot, "receivewal_read_slot: slot", result, false);
    if (status == RECEIVEWAL_OK)
        status = ask_slot(slot, RW_CORE_READ_SLOT, name, 0, result);
    return leave(rw, slot, status);
}

/* ------------------------------------------------------------------------------------------ ask the directory */

/*
 * Runs a request that is about a directory only, with a session of its own. Returns OK and its DONE, for the caller to free; else
 * NULL, with the thread's error set.
 */
static receivewal_status ask_directory(rw_core_request *request, const char *directory, const receivewal_events *events, rw_core_event **result)
{
    char path[PATH_MAX];
    rw_core_event *done = NULL;
    receivewal_status status = rw_core_need();
    char *text = NULL;
    int cancel_state;
    rw_pump pump;

    *result = NULL;
    if (status != RECEIVEWAL_OK)
        return status;
    if (!rw_pump_open(&pump))
        return rw_thread_error(NULL, RECEIVEWAL_ERR_LIMIT, "cannot make an eventfd: %s", strerror(errno));
    request->directory = absolute(directory, path);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    status = rw_core_open(-1, NULL, pump.event_fd, -1, &pump.core_id, &text);
    if (status == RECEIVEWAL_OK)
    {
        status = rw_core_begin(pump.core_id, request, &text);
        if (status == RECEIVEWAL_OK)
        {
            done = rw_pump_run(&pump, events, -1);
            status = done == NULL ? RECEIVEWAL_ERR_FORKED : done->status;
        }
        if (status != RECEIVEWAL_ERR_FORKED)
            rw_core_close(pump.core_id);
    }
    pthread_setcancelstate(cancel_state, NULL);
    rw_pump_close(&pump);
    if (status == RECEIVEWAL_OK)
        *result = done;
    else
    {
        const char *reason = done != NULL ? done->text : text;

        rw_thread_error(NULL, status, "%s", reason == NULL ? receivewal_strerror(status) : reason);
        rw_event_free(done);
    }
    free(text);
    return status;
}

/* Checks the arguments that both questions about a directory have. */
static receivewal_status check_directory_arguments(const char *function, const char *directory, uint32_t segment_size)
{
    char what[64], problem[RW_PROBLEM_MAX];

    snprintf(what, sizeof(what), "%s: directory", function);
    if (!rw_directory_check(what, directory, problem))
        return rw_thread_error(NULL, RECEIVEWAL_ERR_INVALID, "%s", problem);
    if (segment_size != 0 && !rw_segment_size_valid(segment_size))
        return rw_thread_error(NULL, RECEIVEWAL_ERR_INVALID, "segment_size is %u: it is a power of two from 1 MiB to 1 GiB, or 0",
                               (unsigned)segment_size);
    return RECEIVEWAL_OK;
}

receivewal_status receivewal_find_start(const char *directory, uint32_t segment_size, receivewal_start_point *start)
{
    char problem[RW_PROBLEM_MAX];
    rw_core_request request = { .op = RW_CORE_FIND_START, .segment_size = segment_size };
    rw_core_event *done;
    receivewal_status status;

    if (rw_forked())
        return RECEIVEWAL_ERR_FORKED;
    status = check_directory_arguments("receivewal_find_start", directory, segment_size);
    if (status != RECEIVEWAL_OK)
        return status;
    if (start == NULL)
        return rw_thread_error(NULL, RECEIVEWAL_ERR_INVALID, "receivewal_find_start: start is NULL");
    if (!rw_struct_check(&rw_layout_start_point, start, problem))
        return rw_thread_error(NULL, RECEIVEWAL_ERR_SIZE, "%s", problem);
    status = ask_directory(&request, directory, &no_events, &done);
    if (status == RECEIVEWAL_OK)
        rw_struct_out(&rw_layout_start_point, &done->u.start, start);
    rw_event_free(done);
    return status;
}

/* Whom receivewal_check_directory tells, until that answers that it has heard enough. */
typedef struct listener
{
    const receivewal_check_options *options;
    bool enough;
} listener;

static int tell_problem(void *ctx, const receivewal_problem *problem)
{
    listener *l = ctx;

    if (!l->enough && l->options->problem != NULL)
        l->enough = l->options->problem(l->options->ctx, problem) != 0;
    return 0;
}

receivewal_status receivewal_check_directory(const char *directory, const receivewal_check_options *options, receivewal_check *check)
{
    const receivewal_check_options usual = RECEIVEWAL_CHECK_OPTIONS_INIT;
    receivewal_check_options ours;
    listener l = { .options = &ours };
    const receivewal_events events = { .ctx = &l, .problem = tell_problem };
    char problem[RW_PROBLEM_MAX];
    rw_core_request request = { .op = RW_CORE_CHECK };
    rw_core_event *done;
    receivewal_status status;

    if (rw_forked())
        return RECEIVEWAL_ERR_FORKED;
    if (options == NULL)
        options = &usual;
    if (check == NULL)
        return rw_thread_error(NULL, RECEIVEWAL_ERR_INVALID, "receivewal_check_directory: check is NULL");
    if (!rw_struct_check(&rw_layout_check_options, options, problem) || !rw_struct_check(&rw_layout_check, check, problem))
        return rw_thread_error(NULL, RECEIVEWAL_ERR_SIZE, "%s", problem);
    rw_struct_in(&rw_layout_check_options, options, &ours);
    status = check_directory_arguments("receivewal_check_directory", directory, ours.segment_size);
    if (status != RECEIVEWAL_OK)
        return status;
    request.segment_size = ours.segment_size;
    request.flags = ours.decode != 0;
    if (rw_suffixes_complaint(ours.suffixes, ours.suffix_count) != NULL)
        return rw_thread_error(NULL, RECEIVEWAL_ERR_INVALID, "receivewal_check_options.%s",
                               rw_suffixes_complaint(ours.suffixes, ours.suffix_count));
    request.suffixes = ours.suffixes;
    request.suffix_count = ours.suffix_count;
    status = ask_directory(&request, directory, &events, &done);
    if (status == RECEIVEWAL_OK)
        rw_struct_out(&rw_layout_check, &done->u.check, check);
    rw_event_free(done);
    return status;
}

receivewal_status receivewal_restore(const char *directory, const char *name, const char *target)
{
    char path[PATH_MAX], problem[RW_PROBLEM_MAX];
    rw_core_request request = { .op = RW_CORE_RESTORE, .name = name };
    rw_core_event *done;
    receivewal_status status;

    if (rw_forked())
        return RECEIVEWAL_ERR_FORKED;
    if (!rw_directory_check("receivewal_restore: directory", directory, problem) ||
        !rw_directory_check("receivewal_restore: name", name, problem) ||
        !rw_directory_check("receivewal_restore: target", target, problem))
        return rw_thread_error(NULL, RECEIVEWAL_ERR_INVALID, "%s", problem);
    request.target = absolute(target, path);
    status = ask_directory(&request, directory, &no_events, &done);
    rw_event_free(done);
    return status;
}
