/*
 * texts.c: the texts of errors.
 *
 * A handle's texts belong to the call that holds the handle (rw_slot_claim). A call that has no handle, or could not get it
 * because another call holds it, must not touch them; its text goes to a buffer of its thread. So that
 * receivewal_errmsg(rw) finds the text of a clash, the buffer remembers the handle that it speaks for.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static _Thread_local struct
{
    receivewal *clash;
    char message[2048];
} thread_error;

/* What a forked child gets: made of nothing that the fork may have left half done. */
static const char forked_message[] =
    "this process was forked by one that had already used libreceivewal; fork before its first use, or exec";

void rw_texts_clear(rw_texts *texts)
{
    free(texts->message);
    free(texts->sqlstate);
    free(texts->detail);
    free(texts->hint);
    memset(texts, 0, sizeof(*texts));
}

receivewal_status rw_texts_set(rw_texts *texts, receivewal_status status, const char *format, ...)
{
    va_list args;
    int length;
    char *message = NULL;

    va_start(args, format);
    length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (length >= 0)
        message = malloc((size_t)length + 1);
    if (message != NULL)
    {
        va_start(args, format);
        vsnprintf(message, (size_t)length + 1, format, args);
        va_end(args);
    }
    rw_texts_clear(texts);
    texts->status = status;
    texts->message = message;
    return status;
}

receivewal_status rw_thread_verror(receivewal *clash, receivewal_status status, const char *format, va_list args)
{
    thread_error.clash = clash;
    if (vsnprintf(thread_error.message, sizeof(thread_error.message), format, args) < 0)
        thread_error.message[0] = '\0';
    return status;
}

receivewal_status rw_thread_error(receivewal *clash, receivewal_status status, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    rw_thread_verror(clash, status, format, args);
    va_end(args);
    return status;
}

void rw_thread_settled(receivewal *rw)
{
    if (thread_error.clash == rw)
        thread_error.clash = NULL;
}

/* Which of a handle's texts. */
typedef enum { MESSAGE, SQLSTATE, DETAIL, HINT } which_text;

static const char *text_of(receivewal *rw, which_text which)
{
    rw_slot *slot;
    const char *text = NULL;

    if (rw_forked())
        return which == MESSAGE ? forked_message : "";
    if (thread_error.clash != NULL && thread_error.clash == rw)
        return which == MESSAGE ? thread_error.message : "";
    switch (rw_slot_claim(rw, &slot))
    {
        case RECEIVEWAL_OK:
            if (which == MESSAGE)
            {
                text = slot->texts.message;
                if (text == NULL && slot->texts.status != RECEIVEWAL_OK)
                    text = receivewal_strerror(slot->texts.status);
            }
            else
                text = which == SQLSTATE ? slot->texts.sqlstate : which == DETAIL ? slot->texts.detail : slot->texts.hint;
            rw_slot_release(slot);
            break;
        case RECEIVEWAL_ERR_BUSY:
            /* Whoever holds the handle may be replacing its texts right now: they are not for us to read. */
            break;
        default:
            if (which == MESSAGE)
                text = thread_error.message;
    }
    return text == NULL ? "" : text;
}

const char *receivewal_errmsg(receivewal *rw)
{
    return text_of(rw, MESSAGE);
}

const char *receivewal_sqlstate(receivewal *rw)
{
    return text_of(rw, SQLSTATE);
}

const char *receivewal_errdetail(receivewal *rw)
{
    return text_of(rw, DETAIL);
}

const char *receivewal_errhint(receivewal *rw)
{
    return text_of(rw, HINT);
}

const char *receivewal_strerror(receivewal_status status)
{
    switch (status)
    {
        case RECEIVEWAL_OK: return "success";
        case RECEIVEWAL_PENDING: return "still running";
        case RECEIVEWAL_ERR_INVALID: return "invalid argument";
        case RECEIVEWAL_ERR_SIZE: return "struct of another size";
        case RECEIVEWAL_ERR_HANDLE: return "not a handle";
        case RECEIVEWAL_ERR_CLOSED: return "handle already detached";
        case RECEIVEWAL_ERR_BUSY: return "handle in use, or nothing to wait for";
        case RECEIVEWAL_ERR_FORKED: return "library used before fork";
        case RECEIVEWAL_ERR_CORE: return "core library missing or of another version";
        case RECEIVEWAL_ERR_LIMIT: return "out of memory, descriptors or handles";
        case RECEIVEWAL_ERR_BAD_FD: return "descriptor not open";
        case RECEIVEWAL_ERR_NOT_SOCKET: return "descriptor not a stream socket";
        case RECEIVEWAL_ERR_NOT_CONNECTED: return "socket not connected";
        case RECEIVEWAL_ERR_ENCRYPTED: return "connection encrypted";
        case RECEIVEWAL_ERR_CONNECTION: return "connection lost";
        case RECEIVEWAL_ERR_PROTOCOL: return "protocol violation";
        case RECEIVEWAL_ERR_SERVER: return "server error";
        case RECEIVEWAL_ERR_WAL_REMOVED: return "WAL no longer on the server";
        case RECEIVEWAL_ERR_NO_SLOT: return "replication slot does not exist";
        case RECEIVEWAL_ERR_SLOT_BUSY: return "replication slot in use";
        case RECEIVEWAL_ERR_SLOT_EXISTS: return "replication slot already exists";
        case RECEIVEWAL_ERR_UNSUPPORTED: return "not supported by the server";
        case RECEIVEWAL_ERR_NO_DIRECTORY: return "no such directory";
        case RECEIVEWAL_ERR_PERMISSION: return "permission denied";
        case RECEIVEWAL_ERR_LOCKED: return "directory locked by another receiver";
        case RECEIVEWAL_ERR_DISK_FULL: return "disk full";
        case RECEIVEWAL_ERR_IO: return "input/output error";
        case RECEIVEWAL_ERR_NO_FILE: return "no such file of the WAL";
        case RECEIVEWAL_ERR_GAP: return "gap in the WAL";
        case RECEIVEWAL_ERR_FOREIGN: return "WAL of another cluster";
        case RECEIVEWAL_ERR_TIMELINE: return "timeline not in the server's history";
        case RECEIVEWAL_ERR_STOPPED: return "stopped";
        case RECEIVEWAL_ERR_INTERNAL: return "internal error";
    }
    return "unknown status";
}

const char *receivewal_state_name(receivewal_state state)
{
    switch (state)
    {
        case RECEIVEWAL_STATE_IDLE: return "idle";
        case RECEIVEWAL_STATE_STARTING: return "starting";
        case RECEIVEWAL_STATE_STREAMING: return "streaming";
        case RECEIVEWAL_STATE_STOPPING: return "stopping";
        case RECEIVEWAL_STATE_RECONNECTING: return "reconnecting";
        case RECEIVEWAL_STATE_DISK_FULL: return "disk full";
    }
    return "unknown state";
}
