/*
 * guide.c: runs the functions of the documents' C, with which it is linked.
 *
 *     guide backup|ever|run|term CONNINFO DIRECTORY
 *
 * prints the status that the function returns.
 */
#include <libpq-fe.h>
#include <receivewal.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

receivewal_status backup_wal(PGconn *conn, const char *directory);
receivewal_status receive_for_ever(const char *conninfo, const char *directory);
receivewal_status receive_until_term(receivewal *rw, const receivewal_options *options);
receivewal_status run(receivewal *rw, const receivewal_options *options, int loop, void (*other)(const struct epoll_event *));

static int segments, others, other_pipe[2];

static int on_segment(void *ctx, const receivewal_segment *segment)
{
    (void)segment;
    if (++segments == 1 && write(other_pipe[1], "x", 1) != 1)
        return 1;
    return *(int *)ctx > 0 && segments >= *(int *)ctx;
}

static void on_other(const struct epoll_event *event)
{
    char byte;

    others += event->data.fd == other_pipe[0] && read(other_pipe[0], &byte, 1) == 1;
}

int main(int argc, char **argv)
{
    const char *keywords[] = { "dbname", "replication", NULL }, *values[] = { argc > 2 ? argv[2] : "", "true", NULL };
    receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;
    receivewal_options options = RECEIVEWAL_OPTIONS_INIT;
    struct epoll_event event = { .events = EPOLLIN };
    const int loop = epoll_create1(0);
    receivewal_status status;
    receivewal *rw;
    PGconn *conn;
    int wanted = 0;

    if (argc != 4 || pipe(other_pipe) != 0)
        return 2;
    if (strcmp(argv[1], "ever") == 0)
        return printf("status %d\n", (int)receive_for_ever(argv[2], argv[3])), 0;
    conn = PQconnectdbParams(keywords, values, 1);
    if (strcmp(argv[1], "backup") == 0)
        return printf("status %d\n", (int)backup_wal(conn, argv[3])), 0;
    connection.fd = PQsocket(conn);
    if (receivewal_attach(&connection, &rw) != RECEIVEWAL_OK)
        return 1;
    options.directory = argv[3];
    options.events.ctx = &wanted;
    options.events.segment_completed = on_segment;
    if (strcmp(argv[1], "term") == 0)
        status = receive_until_term(rw, &options);
    else
    {
        wanted = 3;
        event.data.fd = other_pipe[0];
        epoll_ctl(loop, EPOLL_CTL_ADD, other_pipe[0], &event);
        status = run(rw, &options, loop, on_other);
    }
    printf("status %d, usable %d, %d others\n", (int)status, receivewal_connection_usable(rw), others);
    receivewal_detach(rw);
    PQfinish(conn);
    return 0;
}
