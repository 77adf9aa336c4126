/*
 * connection.c: a connection that a host lends, at first (receivewal_attach) or in place of a lost one (events.reconnect).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

#define READ_AHEAD_MAX ((size_t)1 << 30) /* more is a length that was not set */

static receivewal_status check_socket(int fd, char problem[RW_PROBLEM_MAX])
{
    struct sockaddr_storage peer;
    socklen_t length = sizeof(int);
    int type = 0;

    if (fcntl(fd, F_GETFD) < 0)
    {
        snprintf(problem, RW_PROBLEM_MAX, "descriptor %d is not open", fd);
        return RECEIVEWAL_ERR_BAD_FD;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) != 0 || type != SOCK_STREAM)
    {
        snprintf(problem, RW_PROBLEM_MAX, "descriptor %d is %s", fd, type == 0 ? "not a socket" : "a socket, but not a stream socket");
        return RECEIVEWAL_ERR_NOT_SOCKET;
    }
    length = sizeof(peer);
    if (getpeername(fd, (struct sockaddr *)&peer, &length) != 0)
    {
        snprintf(problem, RW_PROBLEM_MAX, "the socket with descriptor %d has no peer: %s", fd, strerror(errno));
        return RECEIVEWAL_ERR_NOT_CONNECTED;
    }
    return RECEIVEWAL_OK;
}

receivewal_status rw_connection_check(const receivewal_connection *theirs, rw_connection *ours, char problem[RW_PROBLEM_MAX])
{
    receivewal_connection *c = &ours->connection;
    const char *complaint = NULL;

    if (!rw_struct_check(&rw_layout_connection, theirs, problem))
        return RECEIVEWAL_ERR_SIZE;
    rw_struct_in(&rw_layout_connection, theirs, c);
    if (c->io != NULL)
    {
        if (!rw_struct_check(&rw_layout_io, c->io, problem))
            return RECEIVEWAL_ERR_SIZE;
        rw_struct_in(&rw_layout_io, c->io, &ours->io);
        c->io = &ours->io;
    }
    if (c->server_version < 0)
        complaint = "server_version is negative";
    else if (c->io != NULL && (c->io->read == NULL || c->io->write == NULL))
        complaint = "io has no read or no write";
    else if (c->read_ahead == NULL && c->read_ahead_length > 0)
        complaint = "read_ahead is NULL, but read_ahead_length is not 0";
    else if (c->read_ahead_length > READ_AHEAD_MAX)
        complaint = "read_ahead_length is impossible";
    else if (c->streaming && c->stream_timeline == 0)
        complaint = "stream_timeline is 0, but streaming is set";
    else if (!c->streaming && (c->stream_timeline != 0 || c->stream_lsn != 0))
        complaint = "stream_timeline or stream_lsn is set without streaming";
    else if (c->segment_size != 0 && !rw_segment_size_valid(c->segment_size))
        complaint = "segment_size is not a power of two from 1 MiB to 1 GiB";
    if (complaint != NULL)
    {
        snprintf(problem, RW_PROBLEM_MAX, "receivewal_connection.%s", complaint);
        return RECEIVEWAL_ERR_INVALID;
    }
    return check_socket(c->fd, problem);
}

receivewal_status rw_connection_lend(const rw_connection *lent, rw_pump *p, int stop_fd, char problem[RW_PROBLEM_MAX])
{
    const receivewal_connection *c = &lent->connection;
    receivewal_status status;
    rw_relay *relay = NULL;
    char *text = NULL;
    int fd = c->fd;

    if (c->io != NULL)
    {
        relay = rw_relay_new(c, &fd);
        if (relay == NULL)
        {
            snprintf(problem, RW_PROBLEM_MAX, "cannot make a socket pair: %s", strerror(errno));
            return RECEIVEWAL_ERR_LIMIT;
        }
    }
    if (p->core_id == 0)
        status = rw_core_open(fd, c, p->event_fd, stop_fd, &p->core_id, &text);
    else
        status = rw_core_reconnect(p->core_id, RW_CORE_CONNECTED, fd, c, &text);
    if (relay != NULL)
        rw_close(fd); /* the core has its own */
    if (status != RECEIVEWAL_OK)
    {
        snprintf(problem, RW_PROBLEM_MAX, "%s", text == NULL ? receivewal_strerror(status) : text);
        rw_relay_free(relay, p->poll_fd);
    }
    else if (relay != NULL)
    {
        rw_relay_serve(relay, p->core_id);
        p->relay = relay;
    }
    free(text);
    return status;
}
